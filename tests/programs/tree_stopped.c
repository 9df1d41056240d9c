// SPDX-License-Identifier: Apache-2.0
/*
 * Children that were stopped, one of them with a second thread, stay so until they are told to go
 * on. Their own children run, and nobody hears of a stop that was long ago.
 */
#include "tree.h"
#include <pthread.h>

static volatile int told;

static void count(int unused signo)
{
	told++;
}

static void runs(int unused number)
{
	arrived();
}

static void *second(void unused *argument)
{
	await_go();
	return NULL;
}

static void stops(int threads)
{
	pthread_t thread;
	pid_t below = child(runs, 0);
	need(!threads || !pthread_create(&thread, NULL, second, NULL));
	here();
	kill(getpid(), SIGSTOP);
	collect(below);
	check(!threads || !pthread_join(thread, NULL));
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct sigaction action = {.sa_handler = count};
	pid_t pids[2];
	for (int i = 0; i < 2; i++)
		pids[i] = child(stops, i);
	all_arrived(4);
	for (int i = 0; i < 2; i++)	/* all threads: the first one's state is not enough */
		need(waitpid(pids[i], NULL, WUNTRACED) == pids[i]);
	sigaction(SIGCHLD, &action, NULL);

	checkpoint();

	check_is(told, 0);
	signal(SIGCHLD, SIG_DFL);
	for (int i = 0; i < 2; i++) {
		check_is(state_of(pids[i]), 'T');
		kill(pids[i], SIGCONT);
		collect(pids[i]);
	}
	return verdict();
}
