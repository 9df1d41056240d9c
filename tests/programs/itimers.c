// SPDX-License-Identifier: Apache-2.0
/* Interval timers: remaining time and interval, and one that fires on. */
#include "program.h"
#include <sys/time.h>

static const int timers[] = {ITIMER_VIRTUAL, ITIMER_PROF};
static volatile int ticks;

static void tick(int signo unused)
{
	ticks++;
}

static int64_t micros(struct timeval t)
{
	return t.tv_sec * 1000000LL + t.tv_usec;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct itimerval value, real = {.it_value = {0, 50000}, .it_interval = {0, 50000}};
	for (unsigned i = 0; i < lengthof(timers); i++) {
		value = (struct itimerval){.it_value = {1000 + i, 5000}, .it_interval = {500 + i, 7}};
		need(!setitimer(timers[i], &value, NULL));
	}
	signal(SIGALRM, tick);
	need(!setitimer(ITIMER_REAL, &real, NULL));

	checkpoint();

	for (unsigned i = 0; i < lengthof(timers); i++) {
		check_is(getitimer(timers[i], &value), 0);
		check_is(micros(value.it_interval), (500 + i) * 1000000LL + 7);
		int64_t left = micros(value.it_value), whole = (1000 + i) * 1000000LL + 5000;
		check(left <= whole + 10000 && left > whole - 5000000, "%ld of %ld", left, whole);
	}
	check_is(getitimer(ITIMER_REAL, &value), 0);
	check_is(micros(value.it_interval), 50000);
	check(micros(value.it_value) <= 55000);
	ticks = 0;
	for (int i = 0; i < 400 && ticks < 3; i++)
		usleep(5000);
	check(ticks >= 3, "%d ticks", ticks);
	return verdict();
}
