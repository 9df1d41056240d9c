// SPDX-License-Identifier: Apache-2.0
/* Interrupted waits for locks: a futex by time span and point in time, semaphore, condition. */
#include "restart.h"
#include <linux/futex.h>
#include <semaphore.h>

static int word;
static sem_t nobody_posts, posted;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER, held = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t other_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t nobody_signals = PTHREAD_COND_INITIALIZER, signaled = PTHREAD_COND_INITIALIZER;

static long relative(void)
{
	struct timespec span = to_timespec(TIMEOUT);
	return OR_ERRNO(syscall(SYS_futex, &word, FUTEX_WAIT, 0, &span, NULL, 0));
}

static long absolute(void)
{
	struct timespec when = to_timespec(now_ns(CLOCK_MONOTONIC) + TIMEOUT);
	return OR_ERRNO(syscall(SYS_futex, &word, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, 0, &when,
				NULL, FUTEX_BITSET_MATCH_ANY));
}

static long semaphore(void)
{
	struct timespec when = to_timespec(now_ns(CLOCK_REALTIME) + TIMEOUT);
	return OR_ERRNO(sem_timedwait(&nobody_posts, &when));
}

static long endless_semaphore(void)
{
	return OR_ERRNO(sem_wait(&posted));
}

static void post(void)
{
	sem_post(&posted);
}

static long condition(void)
{
	struct timespec when = to_timespec(now_ns(CLOCK_REALTIME) + TIMEOUT);
	pthread_mutex_lock(&lock);
	int result = pthread_cond_timedwait(&nobody_signals, &lock, &when);
	pthread_mutex_unlock(&lock);
	return -result;
}

static long endless_condition(void)
{
	pthread_mutex_lock(&other_lock);
	int result = pthread_cond_wait(&signaled, &other_lock);
	pthread_mutex_unlock(&other_lock);
	return -result;
}

static void signal_condition(void)
{
	pthread_mutex_lock(&other_lock);
	pthread_cond_signal(&signaled);
	pthread_mutex_unlock(&other_lock);
}

static long mutex(void)
{
	return -pthread_mutex_lock(&held);
}

static void unlock(void)
{
	pthread_mutex_unlock(&held);
}

static struct call calls[] = {
	{"futex", SYS_futex, GOES_ON, relative, -ETIMEDOUT, NULL},
	{"futex absolute", SYS_futex, GOES_ON, absolute, -ETIMEDOUT, NULL},
	{"sem_timedwait", SYS_futex, GOES_ON, semaphore, -ETIMEDOUT, NULL},
	{"pthread_cond_timedwait", SYS_futex, BEGINS_AGAIN, condition, -ETIMEDOUT, NULL},
	{"sem_wait", SYS_futex, BEGINS_AGAIN, endless_semaphore, 0, post},
	{"pthread_cond_wait", SYS_futex, BEGINS_AGAIN, endless_condition, 0, signal_condition},
	{"pthread_mutex_lock", SYS_futex, BEGINS_AGAIN, mutex, 0, unlock},
};

int main(int argc, char **argv)
{
	begin(argc, argv);
	need(!sem_init(&nobody_posts, 0, 0) && !sem_init(&posted, 0, 0));
	need(!pthread_mutex_lock(&held));
	checkpoint_calls(argv, calls, lengthof(calls));
	return verdict();
}
