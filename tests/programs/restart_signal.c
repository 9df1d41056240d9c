// SPDX-License-Identifier: Apache-2.0
/* Interrupted waits for signals: sigtimedwait, sigwaitinfo, pause, sigsuspend, a signalfd. */
#include "restart.h"
#include <sys/signalfd.h>

static volatile int handled;
static pthread_t pausing, suspended;
static int signal_fd;

static void handler(int signo)
{
	handled += signo;
}

static sigset_t only(int signo)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, signo);
	return set;
}

static long timed(void)
{
	sigset_t set = only(SIGRTMIN + 1);
	struct timespec limit = to_timespec(TIMEOUT);
	return OR_ERRNO(sigtimedwait(&set, NULL, &limit));
}

static long endless(void)
{
	sigset_t set = only(SIGRTMIN + 2);
	return OR_ERRNO(sigwaitinfo(&set, NULL));
}

static void send_waited(void)
{
	kill(getpid(), SIGRTMIN + 2);
}

static long pauses(void)
{
	sigset_t set = only(SIGUSR1);
	pausing = pthread_self();
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	return OR_ERRNO(pause());
}

static void send_paused(void)
{
	pthread_kill(pausing, SIGUSR1);
}

static long suspends(void)
{
	sigset_t set;
	suspended = pthread_self();
	sigfillset(&set);
	sigdelset(&set, SIGUSR2);
	return OR_ERRNO(sigsuspend(&set));
}

static void send_suspended(void)
{
	pthread_kill(suspended, SIGUSR2);
}

static long reads(void)
{
	struct signalfd_siginfo info = {};
	long size = OR_ERRNO(read(signal_fd, &info, sizeof(info)));
	return size == sizeof(info) ? info.ssi_int : size;
}

static void send_queued(void)
{
	sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 55});
}

static struct call calls[] = {
	{"sigtimedwait", SYS_rt_sigtimedwait, FAILS, timed, -EAGAIN, NULL},
	{"sigwaitinfo", SYS_rt_sigtimedwait, FAILS, endless, 0, send_waited},
	{"pause", SYS_pause, BEGINS_AGAIN, pauses, -EINTR, send_paused},
	{"sigsuspend", SYS_rt_sigsuspend, BEGINS_AGAIN, suspends, -EINTR, send_suspended},
	{"read of a signalfd", SYS_read, BEGINS_AGAIN, reads, 55, send_queued},
};

int main(int argc, char **argv)
{
	begin(argc, argv);
	sigset_t all, queued = only(SIGRTMIN + 3);
	calls[1].result = SIGRTMIN + 2;
	sigfillset(&all);
	need(!pthread_sigmask(SIG_SETMASK, &all, NULL));
	need(signal(SIGUSR1, handler) != SIG_ERR && signal(SIGUSR2, handler) != SIG_ERR);
	signal_fd = signalfd(-1, &queued, 0);
	need(signal_fd >= 0);
	checkpoint_calls(argv, calls, lengthof(calls));
	check_is(handled, SIGUSR1 + SIGUSR2);
	return verdict();
}
