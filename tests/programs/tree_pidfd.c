// SPDX-License-Identifier: Apache-2.0
/* Descriptors of processes: of a child, of one that has ended, and one that both share. */
#include "tree.h"
#include <poll.h>

static int parent;

static bool ended(int pidfd)
{
	struct pollfd one = {.fd = pidfd, .events = POLLIN};
	return poll(&one, 1, 0) == 1;
}

static void runs(int unused number)
{
	arrived();
	check(!ended(parent));
	check_is(syscall(SYS_pidfd_send_signal, parent, 0, NULL, 0), 0);
	await_file("looked");
	check_is(fcntl(parent, F_SETFL, O_NONBLOCK), 0);
}

static void ends(int unused number)
{
	_exit(3);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	parent = syscall(SYS_pidfd_open, getpid(), 0);
	pid_t alive = child(runs, 0), dead = child(ends, 0);
	await_state(dead, 'Z');
	int one = syscall(SYS_pidfd_open, alive, 0), two = syscall(SYS_pidfd_open, dead, 0);
	siginfo_t info = {0};
	need(parent >= 0 && one >= 0 && two >= 0);
	all_arrived(1);

	checkpoint();

	check(!ended(one) && ended(two));
	check_is(waitid(P_PIDFD, two, &info, WEXITED), 0);
	check_is(info.si_pid, dead);
	check_is(info.si_status, 3);
	tell("looked", "");
	collect(alive);
	check(ended(one));
	check(fcntl(parent, F_GETFL) & O_NONBLOCK);
	return verdict();
}
