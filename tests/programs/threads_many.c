// SPDX-License-Identifier: Apache-2.0
/* Two hundred threads that sleep on one condition: all are there, and all wake. */
#include "program.h"
#include <pthread.h>

enum { THREADS = 200 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t change = PTHREAD_COND_INITIALIZER;
static int waiting;
static bool released;
static pid_t tids[THREADS];

static void *thread(void *argument)
{
	intptr_t mine = (intptr_t)argument;
	tids[mine] = gettid();
	pthread_mutex_lock(&lock);
	waiting++;
	while (!released)
		pthread_cond_wait(&change, &lock);
	waiting--;
	pthread_mutex_unlock(&lock);
	return (void *)(intptr_t)(tids[mine] == gettid() ? mine + 1 : -1);
}

static int in_lock(void)
{
	pthread_mutex_lock(&lock);
	int count = waiting;
	pthread_mutex_unlock(&lock);
	return count;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	pthread_t threads[THREADS];
	pthread_attr_t small;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 64 * 1024);
	for (intptr_t i = 0; i < THREADS; i++)
		need(!pthread_create(&threads[i], &small, thread, (void *)i));
	while (in_lock() < THREADS)
		usleep(1000);

	checkpoint();

	pthread_mutex_lock(&lock);
	released = true;
	pthread_cond_broadcast(&change);
	pthread_mutex_unlock(&lock);
	for (int i = 0; i < THREADS; i++) {
		void *result = NULL;
		check_is(pthread_join(threads[i], &result), 0);
		check_is((intptr_t)result, i + 1);
	}
	check_is(waiting, 0);
	return verdict();
}
