// SPDX-License-Identifier: Apache-2.0
/* Devices that hold no state: null, zero, full, random, urandom; flags of the descriptors. */
#include "program.h"

int main(int argc, char **argv)
{
	begin(argc, argv);
	char byte = 'x', some[16] = "";
	int null = open("/dev/null", O_WRONLY | O_CLOEXEC), zero = open("/dev/zero", O_RDONLY);
	int full = open("/dev/full", O_RDWR), random = open("/dev/urandom", O_RDONLY | O_NONBLOCK);
	need(null >= 0 && zero >= 0 && full >= 0 && random >= 0);

	checkpoint();

	check_is(fcntl(null, F_GETFD), FD_CLOEXEC);
	check_is(fcntl(null, F_GETFL) & O_ACCMODE, O_WRONLY);
	check_is(fcntl(random, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_NONBLOCK);
	check_is(write(null, "x", 1), 1);
	check_is(read(zero, &byte, 1), 1);
	check_is(byte, 0);
	check_is(write(full, "x", 1), -1);
	check_is(errno, ENOSPC);
	check_is(read(random, some, sizeof(some)), sizeof(some));
	check(!all_zero(some, sizeof(some)));
	for (int fd = 0; fd < 3; fd++) /* the harness gave us /dev/null */
		check_is(fcntl(fd, F_GETFD), 0);
	return verdict();
}
