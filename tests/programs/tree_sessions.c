// SPDX-License-Identifier: Apache-2.0
/*
 * Sessions and groups: children from before setsid(2) and from after it, an orphan of a session
 * whose leader has ended and of one that is led further below, groups, and one without its leader.
 */
#include "tree.h"
#include <sys/prctl.h>

struct place {
	pid_t pid, ppid, pgid, sid;
};

static struct place place(void)
{
	return (struct place){getpid(), getppid(), getpgrp(), getsid(0)};
}

static void stays(int unused number)
{
	struct place was = place();
	arrived();
	struct place is = place();
	check_is(is.pid, was.pid);
	check_is(is.ppid, was.ppid);
	check_is(is.pgid, was.pgid);
	check_is(is.sid, was.sid);
}

/* Leads a session; one child is still in the old one. */
static void leader(int number)
{
	pid_t elder = child(stays, 0), young;
	need(setsid() == getpid());
	young = number ? child(leader, number - 1) : child(stays, 0);
	stays(0);
	collect(elder);
	collect(young);
}

static void own_group(int unused number)
{
	need(!setpgid(0, 0));
	pid_t member = child(stays, 0);
	stays(0);
	collect(member);
}

static int tell_pid[2];

static void orphan(int old)
{
	pid_t me = getpid();
	while (getppid() == old)
		usleep(1000);
	need(write(tell_pid[1], &me, sizeof(me)) == sizeof(me));
	close(tell_pid[0]);
	close(tell_pid[1]);
	stays(0);
}

/* Ends at once, and leaves two behind that are in its session, or in its group. */
static void leaves(int session)
{
	need(session ? setsid() == getpid() : !setpgid(0, 0));
	child(orphan, getpid());
	child(orphan, getpid());
	_exit(0);
}

static void leaves_one(int unused number)
{
	child(orphan, getpid());
	_exit(0);
}

/* Leads a session that is not its parent's child's: an orphan of it goes to the root. */
static void far(int unused number)
{
	need(setsid() == getpid());
	pid_t gone = child(leaves_one, 0);
	need(waitpid(gone, NULL, 0) == gone);
	stays(0);
}

static void between(int unused number)
{
	pid_t below = child(far, 0);
	stays(0);
	collect(below);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	pid_t pids[8];
	need(!prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
	need(!pipe(tell_pid));
	for (int i = 0; i < 2; i++) {
		pid_t gone = child(leaves, i);
		need(waitpid(gone, NULL, 0) == gone);
		need(read(tell_pid[0], &pids[2 * i], sizeof(pid_t)) == sizeof(pid_t));
		need(read(tell_pid[0], &pids[2 * i + 1], sizeof(pid_t)) == sizeof(pid_t));
	}
	pids[6] = child(between, 0);
	need(read(tell_pid[0], &pids[7], sizeof(pid_t)) == sizeof(pid_t));
	close(tell_pid[0]);
	close(tell_pid[1]);
	pids[4] = child(leader, 1);
	pids[5] = child(own_group, 0);
	all_arrived(4 + 4 + 2 + 3);

	checkpoint();

	for (size_t i = 0; i < lengthof(pids); i++)
		collect(pids[i]);
	check_is(waitpid(-1, NULL, WNOHANG), -1);
	return verdict();
}
