// SPDX-License-Identifier: Apache-2.0
/* Timers as descriptors: clocks, remaining time, interval, ticks that nobody has read. */
#include "program.h"
#include <sys/timerfd.h>

static int timer(clockid_t clock, int flags, int64_t value, int64_t interval)
{
	int fd = timerfd_create(clock, TFD_NONBLOCK);
	struct itimerspec spec = {{interval / 1000, interval % 1000 * 1000000},
				  {value / 1000, value % 1000 * 1000000}};
	need(fd >= 0 && !timerfd_settime(fd, flags, &spec, NULL));
	return fd;
}

static uint64_t ticks(int fd)
{
	uint64_t count = 0;
	return read(fd, &count, sizeof(count)) < 0 ? 0 : count;
}

static void check_left(int fd, int64_t value, int64_t interval)
{
	struct itimerspec spec;
	check_is(timerfd_gettime(fd, &spec), 0);
	check_is(spec.it_interval.tv_sec * 1000 + spec.it_interval.tv_nsec / 1000000, interval);
	int64_t left = spec.it_value.tv_sec * 1000 + spec.it_value.tv_nsec / 1000000;
	check(left <= value && left >= value - 60000, "%ld left of %ld", left, value);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	int64_t real = now_ns(CLOCK_REALTIME) / 1000000, boot = now_ns(CLOCK_BOOTTIME) / 1000000;
	int relative = timer(CLOCK_MONOTONIC, 0, 1000000, 0);
	int repeated = timer(CLOCK_BOOTTIME, 0, 2000000, 70000);
	int absolute = timer(CLOCK_REALTIME, TFD_TIMER_ABSTIME, real + 3000000, 0);
	int boot_time = timer(CLOCK_BOOTTIME, TFD_TIMER_ABSTIME, boot + 4000000, 5000);
	int disarmed = timer(CLOCK_MONOTONIC, 0, 0, 0), expired = timer(CLOCK_MONOTONIC, 0, 1, 0);
	usleep(20000);
	need(fcntl(relative, F_SETFD, FD_CLOEXEC) == 0);

	checkpoint();

	check_is(fcntl(relative, F_GETFD), FD_CLOEXEC);
	check_is(fcntl(relative, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	check_left(relative, 1000000, 0);
	check_left(repeated, 2000000, 70000);
	check_left(absolute, 3000000, 0);
	check_left(boot_time, 4000000, 5000);
	check_left(disarmed, 0, 0);
	check_is(ticks(disarmed), 0);
	check_is(ticks(relative), 0);
	check_is(ticks(expired), 1);
	return verdict();
}
