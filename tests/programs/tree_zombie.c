// SPDX-License-Identifier: Apache-2.0
/* Children that have ended and are still to be waited for, with just that status; nobody else. */
#include "tree.h"

static volatile int told;

static void count(int unused signo)
{
	told++;
}

static void ends(int how)
{
	if (how >= 0)
		_exit(how);
	signal(-how, SIG_DFL);
	kill(getpid(), -how);
	pause();
}

static void leaves(int unused signo)
{
	_exit(9);
}

static void pauses(int unused number)
{
	while (true)
		pause();
}

/* Has one of a group whose leader is gone. */
static void middle(int unused number)
{
	signal(SIGUSR1, leaves);
	pid_t leader = child(pauses, 0), gone = child(pauses, 0);
	need(!setpgid(leader, leader) && !setpgid(gone, leader));
	kill(leader, SIGKILL);
	need(waitpid(leader, NULL, 0) == leader);
	kill(gone, SIGUSR1);
	await_state(gone, 'Z');
	int before = told, status = -1;
	arrived();
	check_is(told, before);
	check_is(getpgid(gone), leader);
	check_is(waitpid(gone, &status, 0), gone);
	check_is(status, 9 << 8);
}

int main(int argc, char **argv)
{
	static const int how[] = {0, 7, 255, -SIGKILL, -SIGTERM, -SIGUSR1, -SIGINT, -SIGPIPE};
	static const int expected[] = {0, 7 << 8, 255 << 8, SIGKILL, SIGTERM, SIGUSR1, SIGINT, SIGPIPE};
	pid_t pids[lengthof(how)];
	begin(argc, argv);
	signal(SIGCHLD, count);
	for (size_t i = 0; i < lengthof(how); i++)
		pids[i] = child(ends, how[i]);
	pid_t alive = child(middle, 0);
	for (size_t i = 0; i < lengthof(how); i++)
		await_state(pids[i], 'Z');
	all_arrived(1);
	int before = told;

	checkpoint();

	check(told <= before + 1);	/* the other child may have ended by now */
	for (size_t i = 0; i < lengthof(how); i++) {
		int status = -1;
		check_is(waitpid(pids[i], &status, 0), pids[i]);
		check_is(status, expected[i]);
	}
	collect(alive);
	check_is(waitpid(-1, NULL, WNOHANG), -1);
	check_is(errno, ECHILD);
	return verdict();
}
