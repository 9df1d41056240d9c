// SPDX-License-Identifier: Apache-2.0
/* What happens when one of them ends: a signal to its children, a new parent for its orphans. */
#include "tree.h"
#include <sys/prctl.h>

static volatile int told;
static int answer[2];

static void count(int unused signo)
{
	told++;
}

static void orphan(int unused number)
{
	pid_t parent = getppid();
	signal(SIGUSR1, count);
	need(!prctl(PR_SET_PDEATHSIG, SIGUSR1, 0, 0, 0));
	arrived();
	while (getppid() == parent)
		usleep(1000);
	check_is(told, 1);
	pid_t now = getppid();
	check_is(write(answer[1], &now, sizeof(now)), sizeof(now));
}

static void middle(int unused number)
{
	child(orphan, 0);
	arrived();
	check_is(told, 0);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	pid_t got = -1;
	need(!prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
	need(!pipe(answer));
	pid_t pid = child(middle, 0);
	all_arrived(2);

	checkpoint();

	collect(pid);
	check_is(read(answer[0], &got, sizeof(got)), sizeof(got));
	check_is(got, getpid());
	pid = waitpid(-1, NULL, 0);
	check(pid > 0);
	char name[32];
	snprintf(name, sizeof(name), "failed.%d", pid);
	check_text(slurp(path(name)), "");
	return verdict();
}
