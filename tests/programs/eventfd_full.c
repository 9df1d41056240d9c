// SPDX-License-Identifier: Apache-2.0
/* Event counters beyond 32 bits, one as full as can be: not writable until read. */
#include "program.h"
#include <poll.h>
#include <sys/eventfd.h>

static const uint64_t most = 0xfffffffffffffffeULL, large = 0x123456789abcdefULL;

static int counter(uint64_t value)
{
	int fd = eventfd(0, EFD_NONBLOCK);
	need(fd >= 0 && write(fd, &value, sizeof(value)) == sizeof(value));
	return fd;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	int full = counter(most), half = counter(large);
	struct pollfd out = {.fd = full, .events = POLLOUT};
	uint64_t value = 0;

	checkpoint();

	check_is(poll(&out, 1, 0), 0);
	check_is(read(full, &value, sizeof(value)), sizeof(value));
	check_is(value, most);
	check_is(read(half, &value, sizeof(value)), sizeof(value));
	check_is(value, large);
	return verdict();
}
