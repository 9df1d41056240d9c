// SPDX-License-Identifier: Apache-2.0
/* Who is signaled when a descriptor is ready, and with what; it is still. */
#include "program.h"

static volatile int got, got_fd;

static void handler(int signo, siginfo_t *info, void *context unused)
{
	got = signo;
	got_fd = info->si_fd;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct f_owner_ex owner;
	int ends[2], other[2];
	struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
	need(!sigaction(SIGRTMIN + 4, &action, NULL) && !pipe(ends) && !pipe(other));
	need(!fcntl(ends[0], F_SETOWN, getpid()) && !fcntl(ends[0], F_SETSIG, SIGRTMIN + 4));
	need(!fcntl(ends[0], F_SETFL, O_ASYNC | O_NONBLOCK));
	need(!fcntl(other[1], F_SETOWN, -getpgrp()) && !fcntl(other[1], F_SETSIG, SIGURG));

	checkpoint();

	check_is(fcntl(ends[0], F_GETOWN), getpid());
	check_is(fcntl(ends[0], F_GETSIG), SIGRTMIN + 4);
	check_is(fcntl(ends[0], F_GETFL) & (O_ASYNC | O_NONBLOCK), O_ASYNC | O_NONBLOCK);
	check_is(fcntl(other[1], F_GETOWN_EX, &owner), 0);
	check_is(owner.type, F_OWNER_PGRP);
	check_is(owner.pid, getpgrp());
	check_is(fcntl(other[1], F_GETSIG), SIGURG);
	check_is(fcntl(other[0], F_GETSIG), 0);
	check_is(got, 0);
	need(write(ends[1], "x", 1) == 1);
	check_is(got, SIGRTMIN + 4);
	check_is(got_fd, ends[0]);
	return verdict();
}
