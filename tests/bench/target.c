// SPDX-License-Identifier: Apache-2.0
/*
 * The program that is measured:
 *	target FILE MIB
 * MIB of memory, every page written and none like another; four threads; 20 descriptors or so.
 * It talks through FILE, mapped here and in the bench: nothing is on the way that a dump or
 * restore could delay, and the bench reads what it says while it is stopped.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { WORDS_OF_PAGE = 512, IDLE_THREADS = 3 };
enum request { NOTHING, SUM_UP, FORK, VISIT };

struct talk {
	_Atomic uint64_t request;	/* raised by the bench; the target answers by the same number */
	_Atomic uint64_t answer;
	_Atomic uint64_t what;		/* of the request: an enum request */
	_Atomic uint64_t result;
	_Atomic uint64_t spin;		/* look at the clock as fast as it goes */
	_Atomic uint64_t longest;	/* ns between two looks */
	_Atomic uint64_t visits;	/* of pages, anywhere */
};

static struct talk *talk;
static uint64_t *memory, words;

static uint64_t now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);	/* by the vDSO: no system call that could be restarted */
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

static void fill(void)
{
	uint64_t state = 88172645463325252ULL;
	for (uint64_t i = 0; i < words; i++) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		memory[i] = state;
	}
}

static uint64_t sum(void)
{
	uint64_t total = 0;
	for (uint64_t i = 0; i < words; i++)
		total = total * 31 + memory[i];
	return total;
}

/* How long a fork() keeps its caller: what a snapshot by fork would cost it. */
static uint64_t fork_ns(void)
{
	uint64_t since = now(), took;
	pid_t child = fork();
	if (child == 0)
		_exit(0);
	took = now() - since;
	waitpid(child, NULL, 0);
	return took;
}

/* Read a word of a page, and of another, until we are asked for something else. */
static void visit(uint64_t request)
{
	uint64_t state = request, pages = words / WORDS_OF_PAGE;

	while (talk->request == request) {
		state = state * 6364136223846793005ULL + 1442695040888963407ULL;
		talk->result += memory[(state >> 20) % pages * WORDS_OF_PAGE];
		talk->visits++;
	}
}

static void answer(uint64_t request)
{
	if (talk->what == SUM_UP)
		talk->result = sum();
	if (talk->what == FORK)
		talk->result = fork_ns();
	talk->answer = request;
	if (talk->what == VISIT)
		visit(request);
}

static void *idle(void *arg)
{
	for (;;)
		pause();
	return arg;
}

int main(int argc, char **argv)
{
	struct timespec pause_between = {.tv_nsec = 200000};
	uint64_t last, next;
	pthread_t thread;
	int fds[2], fd = argc == 3 ? open(argv[1], O_RDWR) : -1;

	talk = mmap(NULL, sizeof(*talk), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	words = strtoul(argc == 3 ? argv[2] : "0", NULL, 10) << 17;
	memory = mmap(NULL, words * 8 + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (talk == MAP_FAILED || memory == MAP_FAILED)
		return 1;
	for (int i = 0; i < 4; i++)
		if (eventfd(i, 0) < 0 || pipe(fds) || open(argv[1], O_RDONLY) < 0)
			return 1;
	for (int i = 0; i < IDLE_THREADS; i++)
		if (pthread_create(&thread, NULL, idle, NULL))
			return 1;
	fill();
	for (last = now();; last = next) {
		if (talk->request != talk->answer)
			answer(talk->request);
		if (!talk->spin)
			nanosleep(&pause_between, NULL);
		next = now();
		if (talk->spin && next - last > talk->longest)
			talk->longest = next - last;
	}
}
