// SPDX-License-Identifier: Apache-2.0
/* Scheduling policy, priority and niceness of each thread. */
#include "threads.h"
#include <sched.h>
#include <sys/resource.h>

static const struct {
	int policy, priority, nice;
} wanted[] = {
	{SCHED_OTHER, 0, 3}, {SCHED_BATCH, 0, 7}, {SCHED_IDLE, 0, 0},
	{SCHED_FIFO, 3, 0},  {SCHED_RR, 4, 0},	  {SCHED_OTHER, 0, 19},
};

static void set_up(int number)
{
	struct sched_param param = {.sched_priority = wanted[number].priority};
	need(!setpriority(PRIO_PROCESS, gettid(), wanted[number].nice));
	if (sched_setscheduler(gettid(), wanted[number].policy, &param))
		skip("no permission for scheduling policy %d", wanted[number].policy);
}

static void check_up(int number)
{
	struct sched_param param = {};
	check(sched_getscheduler(gettid()) == wanted[number].policy, "thread %d", number);
	sched_getparam(gettid(), &param);
	check_is(param.sched_priority, wanted[number].priority);
	check_is(getpriority(PRIO_PROCESS, gettid()), wanted[number].nice);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	checkpoint_threads(lengthof(wanted) - 1, set_up, check_up);
	return verdict();
}
