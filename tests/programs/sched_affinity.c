// SPDX-License-Identifier: Apache-2.0
/* Which processors each thread may use. */
#include "threads.h"
#include <sched.h>

static cpu_set_t masks[3];

static void set_up(int number)
{
	CPU_ZERO(&masks[number]);
	CPU_SET(number % sysconf(_SC_NPROCESSORS_ONLN), &masks[number]);
	need(!sched_setaffinity(0, sizeof(cpu_set_t), &masks[number]));
}

static void check_up(int number)
{
	cpu_set_t now;
	check_is(sched_getaffinity(0, sizeof(now), &now), 0);
	check(CPU_EQUAL(&now, &masks[number]), "thread %d", number);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		skip("one processor only");
	checkpoint_threads(2, set_up, check_up);
	return verdict();
}
