// SPDX-License-Identifier: Apache-2.0
/*
 * POSIX timers: their ids with gaps, clocks, who is told and how, remaining time and interval; one
 * that fires on, one for a thread, one disarmed. With another argument: their overrun counts.
 */
#include "program.h"
#include <pthread.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

enum { COUNT = 3 };

static int ids[COUNT]; /* the kernel's: glibc hides them */
static volatile pid_t waiter;
static siginfo_t waited;

static int create(clockid_t clock, int notify, int signo, int value, pid_t tid)
{
	struct sigevent event = {.sigev_notify = notify, .sigev_signo = signo};
	int id = -1;
	event.sigev_value.sival_int = value;
	event.sigev_notify_thread_id = tid;
	need(!syscall(SYS_timer_create, clock, &event, &id));
	return id;
}

static void arm(int id, int flags, int64_t value, int64_t interval)
{
	struct itimerspec spec = {{interval / 1000, interval % 1000 * 1000000},
				  {value / 1000, value % 1000 * 1000000}};
	need(!syscall(SYS_timer_settime, id, flags, &spec, NULL));
}

/* Remaining milliseconds and the interval of a timer. */
static int64_t left(int id, int64_t *interval)
{
	struct itimerspec spec = {};
	if (syscall(SYS_timer_gettime, id, &spec))
		return -errno;
	*interval = spec.it_interval.tv_sec * 1000 + spec.it_interval.tv_nsec / 1000000;
	return spec.it_value.tv_sec * 1000 + spec.it_value.tv_nsec / 1000000;
}

static void check_armed(int id, int64_t value, int64_t interval, int64_t passed)
{
	int64_t got_interval = -1, got = left(id, &got_interval);
	check(got <= value + 5 && got >= value - passed - 50, "timer %d: %ld left of %ld", id, got,
	      value);
	check(got_interval == interval, "timer %d: interval %ld", id, got_interval);
}

static void *wait_for_signal(void *set)
{
	waiter = gettid();
	while (sigwaitinfo(set, &waited) < 0)
		; /* that it is interrupted is another program's matter */
	return NULL;
}

static int overruns(int id)
{
	return syscall(SYS_timer_getoverrun, id);
}

/* Have a timer go off, which has then been due for that many intervals more. */
static void overrun(int id, clockid_t clock, int count, int64_t interval)
{
	int64_t past = count * interval + interval / 2, now = now_ns(clock) / 1000000;
	if (now <= past)
		skip("the machine was only just started");
	arm(id, TIMER_ABSTIME, now - past, interval);
}

enum { INTERVAL = 600, LONG = 7000 };
static const union sigval other = {.sival_int = 17};
static int of_thread;

/* The thread takes the signals of its timers itself. */
static void *count_in_thread(void *set)
{
	waiter = gettid();
	while (!of_thread)
		usleep(1000);
	overrun(of_thread, CLOCK_BOOTTIME, 3, LONG);
	need(sigwaitinfo(set, &waited) > 0);
	while (of_thread)
		usleep(1000);
	return NULL;
}

/* Overrun counts: of the process, of a thread; where another signal waits, and where none ran over. */
static void counts(void)
{
	int signo = SIGRTMIN + 1, often = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, signo, 1, 0);
	int twice = create(CLOCK_TAI, SIGEV_SIGNAL, signo, 2, 0);
	int never = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, signo, 3, 0);
	int ignored = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGALRM, 4, 0);
	int64_t interval = 0;
	pthread_t thread;
	siginfo_t info = {};
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, signo);
	sigaddset(&set, SIGALRM);
	sigaddset(&set, SIGRTMIN + 2);
	need(!pthread_sigmask(SIG_BLOCK, &set, NULL));
	need(signal(SIGALRM, SIG_IGN) != SIG_ERR); /* blocked, it is queued all the same */
	need(!pthread_create(&thread, NULL, count_in_thread, &set));
	while (!waiter)
		usleep(1000);
	int in_thread = create(CLOCK_BOOTTIME, SIGEV_THREAD_ID, SIGRTMIN + 2, 5, waiter);
	of_thread = in_thread;
	while (waited.si_signo != SIGRTMIN + 2)
		usleep(1000);

	overrun(often, CLOCK_MONOTONIC, 4, INTERVAL);
	need(sigwaitinfo(&set, &info) == signo && info.si_overrun == 4);
	overrun(twice, CLOCK_TAI, 2, LONG);
	need(sigwaitinfo(&set, &info) == signo && info.si_overrun == 2);
	overrun(ignored, CLOCK_MONOTONIC, 1, LONG);
	need(sigwaitinfo(&set, &info) == SIGALRM && info.si_overrun == 1);
	overrun(never, CLOCK_MONOTONIC, 0, LONG);
	need(sigwaitinfo(&set, &info) == signo && info.si_overrun == 0);
	need(!sigqueue(getpid(), signo, other));
	int64_t started = now_ns(CLOCK_MONOTONIC);

	checkpoint();

	check_is(overruns(often), 4);
	check_is(overruns(twice), 2);
	check_is(overruns(ignored), 1);
	check_is(overruns(never), 0);
	check_is(overruns(in_thread), 3);
	int64_t passed = (now_ns(CLOCK_MONOTONIC) - started) / 1000000, rest = left(twice, &interval);
	check_is(interval, LONG);
	if (passed < LONG / 2 - 500)
		check(rest <= LONG / 2 && rest >= LONG / 2 - passed - 500, "%ld", rest);

	/* What waited does, once, and the timer goes on. */
	int values = 0, codes = 0;
	sigset_t one;
	sigemptyset(&one);
	sigaddset(&one, signo);
	for (int i = 0; i < 2; i++, values += info.si_value.sival_int, codes += info.si_code)
		check_is(sigwaitinfo(&one, &info), signo);
	check_is(values, other.sival_int + 1);
	check_is(codes, SI_QUEUE + SI_TIMER);
	check_is(left(often, &interval) > 0, 1);
	check_is(interval, INTERVAL);
	of_thread = 0;
	pthread_join(thread, NULL);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	if (argc > 2) {
		counts();
		return verdict();
	}
	struct timespec second = {1, 0};
	siginfo_t info = {};
	pthread_t thread;
	sigset_t mine, threads;
	sigemptyset(&mine);
	sigaddset(&mine, SIGRTMIN + 1);
	sigaddset(&mine, SIGRTMIN + 3);
	sigemptyset(&threads);
	sigaddset(&threads, SIGRTMIN + 2);
	need(!pthread_sigmask(SIG_BLOCK, &mine, NULL) && !pthread_sigmask(SIG_BLOCK, &threads, NULL));
	need(!pthread_create(&thread, NULL, wait_for_signal, &threads));
	while (!waiter)
		usleep(1000);

	for (int i = 0; i < 3; i++) /* deleted below: a gap at the start */
		ids[i] = create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0);
	int none = create(CLOCK_REALTIME, SIGEV_NONE, 0, 5, 0);
	int gap = create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0);
	int fires = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 1, 4711, 0);
	int told = create(CLOCK_BOOTTIME, SIGEV_THREAD_ID, SIGRTMIN + 2, 4712, waiter);
	int cpu = create(CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, SIGRTMIN + 3, 3, 0);
	int disarmed = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 3, 1, 0);
	int64_t armed_at = now_ns(CLOCK_MONOTONIC), interval = 0;
	arm(none, TIMER_ABSTIME, now_ns(CLOCK_REALTIME) / 1000000 + 900000, 0);
	arm(fires, 0, 100, 100);
	arm(told, 0, 500000, 70000);
	arm(cpu, 0, 600000, 0);
	for (int i = 0; i < 3; i++)
		need(!syscall(SYS_timer_delete, ids[i]));
	need(!syscall(SYS_timer_delete, gap));
	char *before = slurp("/proc/self/timers");

	checkpoint();

	int64_t passed = (now_ns(CLOCK_MONOTONIC) - armed_at) / 1000000;
	check_text(slurp("/proc/self/timers"), before);
	check_armed(none, 900000, 0, passed);
	check_armed(told, 500000, 70000, passed);
	check_armed(cpu, 600000, 0, passed);
	check_is(left(disarmed, &interval), 0);
	check_is(left(gap, &interval), -EINVAL);
	check_is(left(ids[0], &interval), -EINVAL);

	check_is(sigtimedwait(&mine, &info, &second), SIGRTMIN + 1);
	check_is(sigtimedwait(&mine, &info, &second), SIGRTMIN + 1);
	check_is(info.si_code, SI_TIMER);
	check_is(info.si_value.sival_int, 4711);
	arm(told, 0, 1, 0);
	pthread_join(thread, NULL);
	check_is(waited.si_value.sival_int, 4712);
	check_is(create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0), disarmed + 1);
	return verdict();
}
