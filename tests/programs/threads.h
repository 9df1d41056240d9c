// SPDX-License-Identifier: Apache-2.0
/*
 * Threads that set up a state of their own, stand still while the program is dumped, and then
 * check that state, one after the other.
 */
#ifndef THREADS_H
#define THREADS_H
#include "program.h"
#include <pthread.h>

struct thread {
	void (*set_up)(int number);
	void (*check_up)(int number);
	int number;
	pthread_t thread;
};

static pthread_barrier_t set_up_done;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER; /* held by main until restored */

static void *run_thread(void *argument)
{
	struct thread *self = argument;
	self->set_up(self->number);
	pthread_barrier_wait(&set_up_done);
	pthread_mutex_lock(&turn);
	self->check_up(self->number);
	pthread_mutex_unlock(&turn);
	return NULL;
}

/* checkpoint(), with so many threads besides; they are numbered from 1, the caller is number 0. */
static unused void checkpoint_threads(int count, void (*set_up)(int), void (*check_up)(int))
{
	struct thread *threads = calloc(count, sizeof(*threads));
	pthread_barrier_init(&set_up_done, NULL, count + 1);
	pthread_mutex_lock(&turn);
	for (int i = 0; i < count; i++) {
		threads[i] = (struct thread){.set_up = set_up, .check_up = check_up, .number = i + 1};
		need(!pthread_create(&threads[i].thread, NULL, run_thread, &threads[i]));
	}
	set_up(0);
	pthread_barrier_wait(&set_up_done);
	checkpoint();
	check_up(0);
	pthread_mutex_unlock(&turn);
	for (int i = 0; i < count; i++)
		pthread_join(threads[i].thread, NULL);
}

#endif
