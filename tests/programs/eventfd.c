// SPDX-License-Identifier: Apache-2.0
/* Event counters: value, descriptor flags, one shared by dup. */
#include "program.h"
#include <sys/eventfd.h>

static uint64_t take(int fd)
{
	uint64_t value = 0;
	return read(fd, &value, sizeof(value)) == sizeof(value) ? value : 0;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	uint64_t value;
	int plain = eventfd(7, EFD_NONBLOCK | EFD_CLOEXEC);
	int empty = eventfd(0, EFD_NONBLOCK);
	int twin = dup(plain);
	int blocking = eventfd(1, 0);
	need(plain >= 0 && empty >= 0 && twin >= 0 && blocking >= 0);

	checkpoint();

	check_is(fcntl(plain, F_GETFD), FD_CLOEXEC);
	check_is(fcntl(twin, F_GETFD), 0);
	check_is(fcntl(plain, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	check_is(fcntl(blocking, F_GETFL) & O_NONBLOCK, 0);
	check_is(take(twin), 7);
	check_is(read(plain, &value, sizeof(value)), -1);
	check_is(errno, EAGAIN);
	check_is(take(empty), 0);
	check_is(take(blocking), 1);
	return verdict();
}
