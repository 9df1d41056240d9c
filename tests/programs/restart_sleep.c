// SPDX-License-Identifier: Apache-2.0
/* Interrupted sleeps: nanosleep, clock_nanosleep by a time span and up to a point in time. */
#include "restart.h"

static long relative(void)
{
	struct timespec span = to_timespec(TIMEOUT);
	return OR_ERRNO(syscall(SYS_nanosleep, &span, NULL));
}

static long clock_relative(void)
{
	struct timespec span = to_timespec(TIMEOUT);
	return -clock_nanosleep(CLOCK_MONOTONIC, 0, &span, NULL);
}

static long clock_boot(void)
{
	struct timespec span = to_timespec(TIMEOUT), rest = {};
	return -clock_nanosleep(CLOCK_BOOTTIME, 0, &span, &rest);
}

static long absolute(void)
{
	struct timespec when = to_timespec(now_ns(CLOCK_MONOTONIC) + TIMEOUT);
	return -clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL);
}

static long absolute_real(void)
{
	struct timespec when = to_timespec(now_ns(CLOCK_REALTIME) + TIMEOUT);
	return -clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &when, NULL);
}

static struct call calls[] = {
	{"nanosleep", SYS_nanosleep, GOES_ON, relative, 0, NULL},
	{"clock_nanosleep", SYS_clock_nanosleep, GOES_ON, clock_relative, 0, NULL},
	{"clock_nanosleep boottime", SYS_clock_nanosleep, GOES_ON, clock_boot, 0, NULL},
	{"clock_nanosleep absolute", SYS_clock_nanosleep, BEGINS_AGAIN, absolute, 0, NULL},
	{"clock_nanosleep absolute realtime", SYS_clock_nanosleep, BEGINS_AGAIN, absolute_real,
	 0, NULL},
};

int main(int argc, char **argv)
{
	begin(argc, argv);
	checkpoint_calls(argv, calls, lengthof(calls));
	return verdict();
}
