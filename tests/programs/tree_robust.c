// SPDX-License-Identifier: Apache-2.0
/*
 * Robust locks between processes: whoever waits hears of the death of a holder, be it a process or
 * one of its threads, and a lock that is held stays so meanwhile. And each has its rseq area.
 */
#include "tree.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/rseq.h>

enum { OF_ROOT, OF_CHILD, OF_THREAD, OF_DEAD, LOCKS };

static pthread_mutex_t *locks;
static pthread_barrier_t both;

static void check_rseq(void)
{
	void *area = (char *)__builtin_thread_pointer() + __rseq_offset;
	if (__rseq_size)
		check(syscall(SYS_rseq, area, 32, 0, RSEQ_SIG) == -1 && errno == EBUSY, "no rseq");
}

static void *holder(void *unused_)
{
	need(!pthread_mutex_lock(&locks[OF_THREAD]));
	pthread_barrier_wait(&both);
	pthread_barrier_wait(&both);
	check_rseq();
	return unused_;
}

static void hold(int number)
{
	pthread_t thread;
	need(!pthread_barrier_init(&both, NULL, 2));
	need(!pthread_create(&thread, NULL, holder, NULL));
	need(!pthread_mutex_lock(&locks[OF_CHILD]));
	pthread_barrier_wait(&both);
	arrived();
	check_is(pthread_mutex_trylock(&locks[OF_ROOT]), EBUSY);
	check_is(pthread_mutex_trylock(&locks[OF_DEAD]), EOWNERDEAD);
	check_is(pthread_mutex_consistent(&locks[OF_DEAD]), 0);
	check_rseq();
	await_file("release");
	pthread_barrier_wait(&both);
	pthread_join(thread, NULL);
	check_is(pthread_mutex_trylock(&locks[OF_THREAD]), EOWNERDEAD);
	check_is(number, 1);
}

static void die(int number)
{
	need(!pthread_mutex_lock(&locks[number]));
	here();
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	pthread_mutexattr_t robust;
	locks = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	need(locks != MAP_FAILED);
	pthread_mutexattr_init(&robust);
	need(!pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST));
	need(!pthread_mutexattr_setpshared(&robust, PTHREAD_PROCESS_SHARED));
	for (int i = 0; i < LOCKS; i++)
		need(!pthread_mutex_init(&locks[i], &robust));
	need(!pthread_mutex_lock(&locks[OF_ROOT]));
	pid_t dead = child(die, OF_DEAD), pid = child(hold, 1);
	all_arrived(2);
	need(waitpid(dead, NULL, 0) == dead);

	checkpoint();

	check_rseq();
	check_is(pthread_mutex_trylock(&locks[OF_CHILD]), EBUSY);
	check_is(pthread_mutex_trylock(&locks[OF_THREAD]), EBUSY);
	tell("release", "");
	collect(pid); /* which ends with locks held */
	for (int i = OF_CHILD; i < LOCKS; i++)
		check_is(pthread_mutex_trylock(&locks[i]), EOWNERDEAD);
	check_is(pthread_mutex_unlock(&locks[OF_ROOT]), 0);
	unlink(path("release"));
	return verdict();
}
