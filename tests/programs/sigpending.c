// SPDX-License-Identifier: Apache-2.0
/*
 * Blocked and pending signals, of the process and of each thread: which, in what order, with what
 * they carry; and the masks of the threads.
 */
#include "threads.h"

static void queue(pid_t tid, int signo, int value)
{
	siginfo_t info = {.si_code = SI_QUEUE};
	info.si_pid = getpid();
	info.si_uid = 123;
	info.si_value.sival_int = value;
	long result = tid ? syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, signo, &info)
			  : syscall(SYS_rt_sigqueueinfo, getpid(), signo, &info);
	need(!result);
}

static void set_up(int number)
{
	sigset_t mask;
	sigfillset(&mask);
	if (number)
		sigdelset(&mask, SIGHUP + number); /* never sent */
	need(!pthread_sigmask(SIG_SETMASK, &mask, NULL));
	for (int i = 0; i < 3; i++)
		queue(gettid(), SIGRTMIN + 2, 1000 * number + i);
	queue(gettid(), SIGRTMIN + 1, -number);
	need(!syscall(SYS_tgkill, getpid(), gettid(), SIGUSR2));
}

static siginfo_t next(int signo)
{
	siginfo_t info = {};
	struct timespec none = {};
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, signo);
	/* glibc's own would not tell SI_TKILL from SI_USER */
	if (syscall(SYS_rt_sigtimedwait, &set, &info, &none, 8) != signo)
		info.si_signo = -1;
	return info;
}

static void check_queued(int signo, int value)
{
	siginfo_t info = next(signo);
	check_is(info.si_signo, signo);
	check_is(info.si_code, SI_QUEUE);
	check_is(info.si_pid, getpid());
	check_is(info.si_uid, 123);
	check_is(info.si_value.sival_int, value);
}

static void check_up(int number)
{
	sigset_t mask;
	siginfo_t info;
	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	for (int signo = 1; signo < 32; signo++)
		if (signo != SIGKILL && signo != SIGSTOP)
			check(sigismember(&mask, signo) == !(number && signo == SIGHUP + number),
			      "thread %d, signal %d", number, signo);
	for (int i = 0; i < 3; i++)
		check_queued(SIGRTMIN + 2, 1000 * number + i);
	check_queued(SIGRTMIN + 1, -number);
	info = next(SIGUSR2);
	check_is(info.si_signo, SIGUSR2);
	check_is(info.si_code, SI_TKILL);
	check_is(info.si_pid, getpid());
	if (number == 0) {
		for (int i = 0; i < 20; i++)
			check_queued(SIGRTMIN + 5, i * 7);
		check_queued(SIGRTMAX, 42);
		info = next(SIGUSR1);
		check_is(info.si_signo, SIGUSR1);
		check_is(info.si_code, SI_USER);
	}
	for (int signo = 1; number == 0 && signo <= SIGRTMAX; signo++)
		if (signo < 32 || signo >= SIGRTMIN)
			check(next(signo).si_signo == -1, "signal %d once more", signo);
	check_is(next(SIGRTMIN + 2).si_signo, -1);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	sigset_t all;
	sigfillset(&all);
	need(!pthread_sigmask(SIG_SETMASK, &all, NULL));
	for (int i = 0; i < 20; i++)
		queue(0, SIGRTMIN + 5, i * 7);
	queue(0, SIGRTMAX, 42);
	need(!kill(getpid(), SIGUSR1) && !kill(getpid(), SIGUSR1));
	checkpoint_threads(3, set_up, check_up);
	return verdict();
}
