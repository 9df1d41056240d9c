// SPDX-License-Identifier: Apache-2.0
/* Resource limits, soft and hard. */
#include "program.h"
#include <sys/resource.h>

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct rlimit before[RLIM_NLIMITS], now;
	struct rlimit nofile = {123, 456}, core = {4096, 1 << 20}, stack = {1 << 22, 1 << 24};
	struct rlimit space = {1UL << 40, RLIM_INFINITY}, cpu = {3600, RLIM_INFINITY};
	need(!setrlimit(RLIMIT_NOFILE, &nofile) && !setrlimit(RLIMIT_STACK, &stack));
	need(!setrlimit(RLIMIT_CPU, &cpu) && !setrlimit(RLIMIT_AS, &space));
	setrlimit(RLIMIT_CORE, &core);
	for (int i = 0; i < RLIM_NLIMITS; i++)
		need(!getrlimit(i, &before[i]));

	checkpoint();

	for (int i = 0; i < RLIM_NLIMITS; i++) {
		check_is(getrlimit(i, &now), 0);
		check(now.rlim_cur == before[i].rlim_cur, "soft limit %d: %#lx", i, now.rlim_cur);
		check(now.rlim_max == before[i].rlim_max, "hard limit %d: %#lx", i, now.rlim_max);
	}
	return verdict();
}
