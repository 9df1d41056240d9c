// SPDX-License-Identifier: Apache-2.0
/*
 * The first thread has ended, others live on: it stays a zombie, with its exit code and its name;
 * what all share is still there; and what its end has done (set_tid_address(2)) is not done again.
 * Alone, and as children, with `tree`: of those one ends by exit_group(2), one by the end of its
 * last thread, as others do that were never dumped. With `memory` two share theirs (CLONE_VM), and
 * neither has its first thread; of the end of one, SIGUSR2 tells the other.
 */
#include "tree.h"
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>

enum { CODE = 7, LAST_CODE = 5, BYTES = 300000, COUNT = 23, MARK = 99 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t change = PTHREAD_COND_INITIALIZER;
static bool waiting, released, answered;
static volatile pid_t cleared = 1;
static unsigned char *memory;
static int counter;
static timer_t timer;
static volatile sig_atomic_t handled;

static void on_signal(int signo)
{
	handled = signo;
}

static void *sleeper(void *argument)
{
	(void)argument;
	prctl(PR_SET_NAME, "sleeper");
	pid_t mine = gettid();
	pthread_mutex_lock(&lock);
	waiting = true;
	pthread_cond_broadcast(&change);
	while (!released)
		pthread_cond_wait(&change, &lock);
	answered = mine == gettid();
	pthread_cond_broadcast(&change);
	pthread_mutex_unlock(&lock);
	return NULL;
}

/* What /proc/PID/stat says of the first thread behind its name. */
static const char *first_thread_of(pid_t pid, int field)
{
	char name[40];
	snprintf(name, sizeof(name), "/proc/%d/task/%d/stat", pid, pid);
	char *text = strrchr(slurp(name), ')'), *rest = NULL;
	for (char *word = strtok_r(text, " ", &rest); word; word = strtok_r(NULL, " ", &rest))
		if (field-- == 2)
			return word;
	return "";
}

static const char *first_thread(int field)
{
	return first_thread_of(getpid(), field);
}

static void check_first_thread(void)
{
	check_text(first_thread(3), "Z");
	check_is(atoi(first_thread(52)), CODE << 8);
	check_text(proc_line("status", "Name:"), "Name:\tfirst");
	check_is(cleared, MARK);
}

static void check_others(void)
{
	uint64_t count = 0;
	struct itimerspec left;
	char name[32] = "";
	pthread_mutex_lock(&lock);
	released = true;
	pthread_cond_broadcast(&change);
	while (!answered)
		pthread_cond_wait(&change, &lock);
	pthread_mutex_unlock(&lock);
	check_is(differs(memory, BYTES, 1), -1);
	check_is(read(counter, &count, sizeof(count)), sizeof(count));
	check_is(count, COUNT);
	check_is(kill(getpid(), SIGUSR1), 0);
	while (!handled) /* by any thread */
		usleep(1000);
	check_is(timer_gettime(timer, &left), 0);
	check(left.it_value.tv_sec > 0 || left.it_value.tv_nsec > 0);
	check_is(prctl(PR_GET_NAME, name), 0);
	check_text(name, "second");
}

static void set_up(void)
{
	pthread_t thread;
	struct sigevent none = {.sigev_notify = SIGEV_NONE};
	struct itimerspec in_a_while = {.it_value.tv_sec = 10000};
	memory = malloc(BYTES);
	fill(memory, BYTES, 1);
	counter = eventfd(COUNT, EFD_CLOEXEC);
	need(counter >= 0);
	signal(SIGUSR1, on_signal);
	need(!timer_create(CLOCK_MONOTONIC, &none, &timer));
	need(!timer_settime(timer, 0, &in_a_while, NULL));
	need(!pthread_create(&thread, NULL, sleeper, NULL));
	pthread_mutex_lock(&lock);
	while (!waiting)
		pthread_cond_wait(&change, &lock);
	pthread_mutex_unlock(&lock);
}

static void end_first_thread(void)
{
	prctl(PR_SET_NAME, "first");
	syscall(SYS_set_tid_address, &cleared);
	syscall(SYS_exit, CODE);
}

static void await_its_end(void)
{
	prctl(PR_SET_NAME, "second");
	while (cleared || *first_thread(3) != 'Z')
		usleep(1000);
	cleared = MARK;
}

static void *alone(void *argument)
{
	(void)argument;
	await_its_end();
	checkpoint();
	check_first_thread();
	check_others();
	exit(verdict());
}

static void *as_child(void *number)
{
	await_its_end();
	if (number)
		arrived();
	check_first_thread();
	check_others();
	if (failures[0] || (intptr_t)number == 1)
		end();
	syscall(SYS_exit, LAST_CODE);
	return NULL;
}

static void child_without_first_thread(int number)
{
	pthread_t thread;
	set_up();
	need(!pthread_create(&thread, NULL, as_child, (void *)(intptr_t)number));
	end_first_thread();
}

static int status_of(pid_t pid)
{
	int status = -1;
	check_is(waitpid(pid, &status, 0), pid);
	return status;
}

static int tree(void)
{
	pid_t ends_all = child(child_without_first_thread, 1);
	pid_t ends_last = child(child_without_first_thread, 2);
	all_arrived(2);
	checkpoint();
	collect(ends_all);
	int never_dumped = status_of(child(child_without_first_thread, 0));
	check(WIFEXITED(never_dumped));
	check_is(status_of(ends_last), never_dumped);
	return verdict();
}

/* Who shares the memory has the TLS, too, and calls no more of libc than plain system calls. */
static struct {
	volatile pid_t pid, tid;
	volatile int go, right;
} sharer;

static void pause_1ms(void)
{
	struct timespec ts = {0, 1000000};
	syscall(SYS_nanosleep, &ts, NULL);
}

static int sharers_second(void *argument)
{
	(void)argument;
	while (!sharer.go)
		pause_1ms();
	sharer.right = syscall(SYS_getpid) == sharer.pid && syscall(SYS_gettid) != sharer.pid &&
		       differs(memory, BYTES, 1) == -1 && sharer.tid == MARK;
	memory[0]++;
	syscall(SYS_exit_group, sharer.right ? 0 : 1);
	return 0;
}

static int sharers_first(void *argument)
{
	static char stack[1 << 14] __attribute__((aligned(16)));
	int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
	sharer.tid = sharer.pid = syscall(SYS_getpid);
	syscall(SYS_set_tid_address, &sharer.tid);
	clone(sharers_second, stack + sizeof(stack), flags, argument);
	syscall(SYS_exit, CODE);
	return 0;
}

static void *with_sharer(void *argument)
{
	static char stack[1 << 14] __attribute__((aligned(16)));
	int status = -1;
	(void)argument;
	await_its_end();
	signal(SIGUSR2, on_signal);
	pid_t pid = clone(sharers_first, stack + sizeof(stack), CLONE_VM | SIGUSR2, NULL);
	need(pid > 0);
	while (sharer.tid || *first_thread_of(pid, 3) != 'Z')
		usleep(1000);
	sharer.tid = MARK;
	checkpoint();
	check_first_thread();
	check_text(first_thread_of(pid, 3), "Z");
	int told_by = atoi(first_thread_of(pid, 38));
	check_is(told_by, SIGUSR2);
	check_is(atoi(first_thread_of(pid, 52)), CODE << 8);
	sharer.go = 1;
	check_is(waitpid(pid, &status, __WALL), pid);
	while (told_by == SIGUSR2 && handled != SIGUSR2) /* by any thread */
		usleep(1000);
	check_is(status, 0);
	check(sharer.right && differs(memory, BYTES, 1) == 0, "the memory");
	memory[0]--;
	handled = 0;
	check_others();
	exit(verdict());
}

int main(int argc, char **argv)
{
	pthread_t thread;
	begin(argc, argv);
	if (argc > 2 && !strcmp(argv[2], "tree"))
		return tree();
	set_up();
	need(!pthread_create(&thread, NULL, argc > 2 ? with_sharer : alone, NULL));
	end_first_thread();
}
