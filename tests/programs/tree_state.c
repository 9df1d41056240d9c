// SPDX-License-Identifier: Apache-2.0
/*
 * What each process and each thread of a tree has of its own: seccomp filters, capabilities,
 * scheduling, pending signals, timers, and what prctl(2) sets; every one something else. With the
 * argument `simple`, without what real CRIU does not know: CPUs, I/O priority, timer slack.
 */
#include "tree.h"
#include "filters.h"
#include <linux/capability.h>
#include <linux/securebits.h>
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>

enum { CHILDREN = 3, IOPRIO_OF_TASK = 1, BEST_EFFORT = 2 << 13, TIMER_VALUE = 77 };

static pthread_barrier_t both;
static pid_t root;
static bool simple;

static void write_to(const char *file, int number)
{
	int fd = open(file, O_WRONLY | O_CLOEXEC);
	need(fd >= 0 && dprintf(fd, "%d", number) > 0 && !close(fd));
}

static void set_capabilities(int number)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2];
	need(!syscall(SYS_capget, &header, data));
	data[0].inheritable = 1U << (CAP_KILL + number) | 1U << CAP_CHOWN;
	data[0].effective &= ~(1U << (CAP_NET_BROADCAST + number));
	need(!syscall(SYS_capset, &header, data));
	need(!prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL + number, 0, 0));
}

/* What is a thread's own; number is its process's, or more than 10 in a second thread. */
static void set_thread(int number)
{
	cpu_set_t cpus;
	sigset_t all;
	sigfillset(&all);
	need(!pthread_sigmask(SIG_SETMASK, &all, NULL));
	CPU_ZERO(&cpus);
	CPU_SET(number % sysconf(_SC_NPROCESSORS_ONLN), &cpus);
	if (!simple) {
		need(!sched_setaffinity(0, sizeof(cpus), &cpus));
		need(!syscall(SYS_ioprio_set, IOPRIO_OF_TASK, 0, BEST_EFFORT | number % 8));
		need(!prctl(PR_SET_TIMERSLACK, 60000 + number, 0, 0, 0));
	}
	need(!setpriority(PRIO_PROCESS, gettid(), number));
	need(!prctl(PR_SET_PDEATHSIG, number % 2 ? SIGURG : 0, 0, 0, 0));
	set_capabilities(number % 10);
	need(!prctl(PR_SET_SECUREBITS, number % 2 ? SECBIT_NOROOT : SECBIT_KEEP_CAPS, 0, 0, 0));
	if (number % 10 == 1)
		need(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	if (number >= 2)
		need(!INSTALL(older, 0));
	if (number > 10)
		need(!INSTALL(newer, 0));
	union sigval value = {.sival_int = number};
	siginfo_t info = {.si_code = SI_QUEUE, .si_value = value};
	info.si_pid = root;
	need(!syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), SIGRTMIN + 1, &info));
}

static uint64_t mask_of(const char *key)
{
	char file[40];
	snprintf(file, sizeof(file), "task/%d/status", gettid());
	return strtoull(strchr(proc_line(file, key), ':') + 1, NULL, 16);
}

static void check_queued(int signo, int value)
{
	struct timespec none = {};
	siginfo_t info = {};
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, signo);
	check_is(sigtimedwait(&set, &info, &none), signo);
	check_is(info.si_value.sival_int, value);
	check_is(info.si_pid, root);
}

static void check_thread(int number)
{
	cpu_set_t cpus;
	int death = -1, bits = number % 2 ? SECBIT_NOROOT : SECBIT_KEEP_CAPS;
	if (!simple) {
		sched_getaffinity(0, sizeof(cpus), &cpus);
		check_is(CPU_COUNT(&cpus), 1);
		check(CPU_ISSET(number % sysconf(_SC_NPROCESSORS_ONLN), &cpus), "of %d", number);
		check_is(syscall(SYS_ioprio_get, IOPRIO_OF_TASK, 0), BEST_EFFORT | number % 8);
		check_is(prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0), 60000 + number);
	}
	check_is(getpriority(PRIO_PROCESS, gettid()), number);
	check_is(prctl(PR_GET_PDEATHSIG, &death, 0, 0, 0), 0);
	check_is(death, number % 2 ? SIGURG : 0);
	check_is(prctl(PR_GET_SECUREBITS, 0, 0, 0, 0), bits);
	check_is(mask_of("CapAmb"), 1ULL << (CAP_KILL + number % 10));
	check_is(mask_of("CapInh"), 1ULL << (CAP_KILL + number % 10) | 1ULL << CAP_CHOWN);
	check(!(mask_of("CapEff") >> (CAP_NET_BROADCAST + number % 10) & 1), "of %d", number);
	check_is(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), number % 10 == 1);
	check_filters(number > 10 ? 2 : number >= 2);
	check_queued(SIGRTMIN + 1, number);
}

static void *second(void *number)
{
	set_thread(10 + *(int *)number);
	pthread_barrier_wait(&both);
	pthread_barrier_wait(&both); /* the first one has checked itself */
	check_thread(10 + *(int *)number);
	return NULL;
}

static void set_process(int number)
{
	struct rlimit core = {1000 + number, 2000 + number};
	write_to("/proc/self/oom_score_adj", 100 + 10 * number);
	need(!setrlimit(RLIMIT_CORE, &core));
	need(!prctl(PR_SET_DUMPABLE, number % 2, 0, 0, 0));
	need(!prctl(PR_SET_CHILD_SUBREAPER, number == 2, 0, 0, 0));
	umask(number);
	signal(SIGUSR1, number % 2 ? SIG_IGN : SIG_DFL);
}

static void check_process(int number)
{
	int reaper = -1;
	struct rlimit core;
	check_is(atoi(slurp("/proc/self/oom_score_adj")), 100 + 10 * number);
	check_is(getrlimit(RLIMIT_CORE, &core), 0);
	check_is(core.rlim_cur, 1000 + number);
	check_is(core.rlim_max, 2000 + number);
	check_is(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0), number % 2);
	check_is(prctl(PR_GET_CHILD_SUBREAPER, &reaper, 0, 0, 0), 0);
	check_is(reaper, number == 2);
	check_is(umask(0), number);
	check(signal(SIGUSR1, SIG_DFL) == (number % 2 ? SIG_IGN : SIG_DFL), "of %d", number);
}

/* A periodic timer that nobody has taken note of: its signal is pending, once, and it goes on. */
static timer_t set_timer(void)
{
	timer_t timer;
	struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMAX};
	event.sigev_value.sival_int = TIMER_VALUE;
	struct itimerspec often = {{0, 5000000}, {0, 1000000}};
	sigset_t pending;
	need(!timer_create(CLOCK_MONOTONIC, &event, &timer));
	need(!timer_settime(timer, 0, &often, NULL));
	do
		need(!sigpending(&pending));
	while (!sigismember(&pending, SIGRTMAX));
	return timer;
}

static void check_timer(timer_t timer)
{
	struct timespec second = {1, 0};
	int overrun = 0;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMAX);
	for (int i = 0; i < 3; i++) {
		siginfo_t info = {};
		check_is(sigtimedwait(&set, &info, &second), SIGRTMAX);
		check_is(info.si_code, SI_TIMER);
		check_is(info.si_value.sival_int, TIMER_VALUE);
		overrun += info.si_overrun;
		if (i == 1)
			usleep(50000);
	}
	check(overrun >= 8, "%d", overrun);
	check(timer_getoverrun(timer) >= 8, "%d", timer_getoverrun(timer));
}

static void one_of_them(int number)
{
	pthread_t thread;
	set_process(number);
	pthread_barrier_init(&both, NULL, 2);
	need(!pthread_create(&thread, NULL, second, &number));
	pthread_barrier_wait(&both);
	set_thread(number);
	timer_t timer = set_timer();
	arrived();
	check_queued(SIGRTMIN + 2, 1000 + number); /* which its parent has sent */
	check_process(number);
	check_thread(number);
	check_timer(timer);
	pthread_barrier_wait(&both);
	pthread_join(thread, NULL);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	pid_t pids[CHILDREN];
	simple = argc > 2;
	root = getpid();
	for (int i = 0; i < CHILDREN; i++)
		pids[i] = child(one_of_them, i + 1);
	all_arrived(CHILDREN);
	for (int i = 0; i < CHILDREN; i++)
		need(!sigqueue(pids[i], SIGRTMIN + 2, (union sigval){1001 + i}));
	set_process(0);
	set_thread(0);

	checkpoint();

	check_process(0);
	check_thread(0);
	for (int i = 0; i < CHILDREN; i++)
		collect(pids[i]);
	return verdict();
}
