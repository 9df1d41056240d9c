// SPDX-License-Identifier: Apache-2.0
/* An event counter in semaphore mode: every read takes one. */
#include "program.h"
#include <sys/eventfd.h>

int main(int argc, char **argv)
{
	begin(argc, argv);
	uint64_t value;
	int fd = eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK);
	need(fd >= 0);

	checkpoint();

	for (int i = 0; i < 3; i++) {
		value = 0;
		check_is(read(fd, &value, sizeof(value)), sizeof(value));
		check_is(value, 1);
	}
	check_is(read(fd, &value, sizeof(value)), -1);
	check_is(errno, EAGAIN);
	return verdict();
}
