// SPDX-License-Identifier: Apache-2.0
/*
 * Many small processes, 100 unless the argument says otherwise, each with threads and descriptors of
 * its own: what a restore takes for each process, thread and file, however little is in them.
 */
#include "tree.h"
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

enum { THREADS = 4, FILES = 6, PIPES = 2, PAIRS = 2, EVENTS = 3, STANDARD = 3 };

static pthread_barrier_t barrier;
static int file[FILES], pipes[PIPES][2], pair[PAIRS][2], event[EVENTS];

static void *thread(void *number)
{
	char mine[16], now[16];
	sigset_t blocked;
	snprintf(mine, sizeof(mine), "thread-%ld", (long)number);
	need(!pthread_setname_np(pthread_self(), mine));
	need(!sigemptyset(&blocked) && !sigaddset(&blocked, SIGRTMIN + (long)number));
	need(!pthread_sigmask(SIG_SETMASK, &blocked, NULL));
	pthread_barrier_wait(&barrier);
	await_go();
	check(!pthread_getname_np(pthread_self(), now, sizeof(now)) && !strcmp(now, mine));
	check(!pthread_sigmask(SIG_SETMASK, NULL, &blocked));
	for (long i = 1; i < THREADS; i++)
		check_is(sigismember(&blocked, SIGRTMIN + i), i == (long)number);
	return NULL;
}

static void open_all(int number)
{
	char name[32];
	for (int i = 0; i < FILES; i++) {
		snprintf(name, sizeof(name), "file.%d.%d", number, i);
		file[i] = open(path(name), O_RDWR | O_CREAT | O_TRUNC, 0600);
		need(file[i] >= 0 && write(file[i], name, i) == i);
	}
	for (int i = 0; i < PIPES; i++)
		need(!pipe(pipes[i]) && write(pipes[i][1], &number, sizeof(number)) > 0);
	for (int i = 0; i < PAIRS; i++)
		need(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair[i]) &&
		     write(pair[i][0], &number, sizeof(number)) > 0);
	for (int i = 0; i < EVENTS; i++)
		need((event[i] = eventfd(number + i + 1, EFD_NONBLOCK)) >= 0);
}

static void check_all(int number)
{
	uint64_t count;
	int found;
	for (int i = 0; i < FILES; i++)
		check_is(lseek(file[i], 0, SEEK_CUR), i);
	for (int i = 0; i < PIPES; i++)
		check(read(pipes[i][0], &found, sizeof(found)) > 0 && found == number);
	for (int i = 0; i < PAIRS; i++)
		check(read(pair[i][1], &found, sizeof(found)) > 0 && found == number);
	for (int i = 0; i < EVENTS; i++)
		check(read(event[i], &count, 8) == 8 && count == (uint64_t)(number + i + 1));
}

static void worker(int number)
{
	pthread_t threads[THREADS - 1];
	need(!pthread_barrier_init(&barrier, NULL, THREADS));
	for (long i = 0; i < THREADS - 1; i++)
		need(!pthread_create(&threads[i], NULL, thread, (void *)(i + 1)));
	pthread_barrier_wait(&barrier);
	open_all(number);
	arrived();
	for (int i = 0; i < THREADS - 1; i++)
		check(!pthread_join(threads[i], NULL));
	check_all(number);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	int count = (argc > 2 ? atoi(argv[2]) : 100) - 1;
	pid_t pids[count];
	for (int i = 0; i < count; i++)
		pids[i] = child(worker, i);
	all_arrived(count);
	checkpoint();
	for (int i = 0; i < count; i++)
		collect(pids[i]);
	return verdict();
}
