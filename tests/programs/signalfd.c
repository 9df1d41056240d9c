// SPDX-License-Identifier: Apache-2.0
/* Signals read from a descriptor: its mask, and what was pending. */
#include "program.h"
#include <sys/signalfd.h>

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct signalfd_siginfo info = {};
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGRTMIN + 7);
	need(!sigprocmask(SIG_BLOCK, &set, NULL));
	int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC), twin = dup(fd);
	need(fd >= 0 && twin >= 0 && !sigqueue(getpid(), SIGRTMIN + 7, (union sigval){.sival_int = 9}));

	checkpoint();

	check_is(fcntl(fd, F_GETFD), FD_CLOEXEC);
	check_is(fcntl(fd, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	check_is(read(twin, &info, sizeof(info)), sizeof(info));
	check_is(info.ssi_signo, SIGRTMIN + 7);
	check_is(info.ssi_int, 9);
	check_is(read(fd, &info, sizeof(info)), -1);
	check_is(errno, EAGAIN);
	need(!kill(getpid(), SIGUSR1));
	check_is(read(fd, &info, sizeof(info)), sizeof(info));
	check_is(info.ssi_signo, SIGUSR1);
	return verdict();
}
