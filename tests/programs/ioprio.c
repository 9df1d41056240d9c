// SPDX-License-Identifier: Apache-2.0
/* I/O class and priority of each thread. */
#include "threads.h"

enum { OF_TASK = 1, BEST_EFFORT = 2 << 13, IDLE = 3 << 13 };

static const int wanted[] = {BEST_EFFORT | 6, IDLE | 7, BEST_EFFORT | 1};

static void set_up(int number)
{
	need(!syscall(SYS_ioprio_set, OF_TASK, 0, wanted[number]));
}

static void check_up(int number)
{
	check_is(syscall(SYS_ioprio_get, OF_TASK, 0), wanted[number]);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	checkpoint_threads(lengthof(wanted) - 1, set_up, check_up);
	return verdict();
}
