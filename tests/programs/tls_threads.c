// SPDX-License-Identifier: Apache-2.0
/* Sixteen threads, each with its own thread-local values, errno, stack and pthread identity. */
#include "program.h"
#include <pthread.h>

enum { THREADS = 16 };

static __thread int number;
static __thread char local[10000];
static pthread_barrier_t before, after;
static const char *wrong[THREADS];

static void *thread(void *argument)
{
	int mine = (intptr_t)argument;
	char on_stack[3000];
	pthread_t self = pthread_self();
	pid_t tid = gettid();

	number = mine;
	fill(local, sizeof(local), mine);
	fill(on_stack, sizeof(on_stack), mine + 100);
	errno = 1000 + mine;
	int *where = &errno;
	pthread_barrier_wait(&before);
	pthread_barrier_wait(&after);
	if (*where != 1000 + mine || where != &errno)
		wrong[mine] = "errno";
	else if (number != mine || differs(local, sizeof(local), mine) >= 0)
		wrong[mine] = "thread-local values";
	else if (differs(on_stack, sizeof(on_stack), mine + 100) >= 0)
		wrong[mine] = "stack";
	else if (self != pthread_self() || tid != gettid())
		wrong[mine] = "identity";
	return (void *)(intptr_t)(mine + 1);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	pthread_t threads[THREADS];

	number = -1;
	fill(local, sizeof(local), 99);
	pthread_barrier_init(&before, NULL, THREADS + 1);
	pthread_barrier_init(&after, NULL, THREADS + 1);
	for (intptr_t i = 0; i < THREADS; i++)
		need(!pthread_create(&threads[i], NULL, thread, (void *)i));
	pthread_barrier_wait(&before);

	checkpoint();

	pthread_barrier_wait(&after);
	for (int i = 0; i < THREADS; i++) {
		void *result = NULL;
		check_is(pthread_join(threads[i], &result), 0);
		check_is((intptr_t)result, i + 1);
		check(!wrong[i], "thread %d: %s", i, wrong[i]);
	}
	check_is(number, -1);
	check_is(differs(local, sizeof(local), 99), -1);
	return verdict();
}
