// SPDX-License-Identifier: Apache-2.0
/*
 * POSIX timers: their ids with gaps, clocks, who is told and how, remaining time and interval; one
 * that fires on, one for a thread, one disarmed.
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

int main(int argc, char **argv)
{
	begin(argc, argv);
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
