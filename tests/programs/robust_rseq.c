// SPDX-License-Identifier: Apache-2.0
/*
 * What each thread registered with the kernel: robust futexes (a lock left held by a thread that
 * ends is found out), restartable sequences, and where its end is told.
 */
#include "threads.h"
#include <linux/futex.h>
#include <sys/prctl.h>
#include <sys/rseq.h>

enum { THREADS = 4 };

static pthread_mutex_t held[THREADS + 1];
static void *heads[THREADS + 1], *tid_addresses[THREADS + 1];
static bool had_rseq[THREADS + 1];

/* Registering the same area again is told apart from a first registration. */
static bool rseq_registered(void)
{
	void *area = (char *)__builtin_thread_pointer() + __rseq_offset;
	return syscall(SYS_rseq, area, 32, 0, RSEQ_SIG) == -1 && errno == EBUSY;
}

static void *robust_head(void)
{
	void *head = NULL;
	size_t size;
	return syscall(SYS_get_robust_list, 0, &head, &size) ? NULL : head;
}

static void set_up(int number)
{
	heads[number] = robust_head();
	had_rseq[number] = __rseq_size && rseq_registered();
	need(heads[number]);
	need(!prctl(PR_GET_TID_ADDRESS, &tid_addresses[number]) || errno == EINVAL);
	need(!pthread_mutex_lock(&held[number]));
}

static void check_up(int number)
{
	void *tid_address = NULL;
	check(robust_head() == heads[number], "thread %d", number);
	check(rseq_registered() == had_rseq[number], "thread %d", number);
	prctl(PR_GET_TID_ADDRESS, &tid_address);
	check(tid_address == tid_addresses[number], "thread %d", number);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	pthread_mutexattr_t robust;
	pthread_mutexattr_init(&robust);
	pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
	for (unsigned i = 0; i < lengthof(held); i++)
		need(!pthread_mutex_init(&held[i], &robust));
	checkpoint_threads(THREADS, set_up, check_up); /* the threads end with their lock held */
	for (int i = 1; i <= THREADS; i++)
		check_is(pthread_mutex_trylock(&held[i]), EOWNERDEAD);
	return verdict();
}
