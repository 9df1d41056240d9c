// SPDX-License-Identifier: Apache-2.0
/*
 * A timer that ticks on: it has expired and nobody has read it. The kernel starts it again only when
 * somebody reads it or asks for its time, so that it looks disarmed to those who only read fdinfo.
 */
#include "program.h"
#include <sys/timerfd.h>

static uint64_t ticks(int fd)
{
	uint64_t count = 0;
	return read(fd, &count, sizeof(count)) < 0 ? 0 : count;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct itimerspec spec = {{0, 30000000}, {0, 10000000}};
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
	need(fd >= 0 && !timerfd_settime(fd, 0, &spec, NULL));
	usleep(100000);

	checkpoint();

	check(ticks(fd) >= 3);
	usleep(100000);
	check(ticks(fd) >= 3);
	return verdict();
}
