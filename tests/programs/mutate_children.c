// SPDX-License-Identifier: Apache-2.0
/*
 * Children of every make, while threads change the memory that they are born with: forked ones, that
 * have a copy of it; and such as share it, until they exit or execute a program. Now and then there
 * are none for a while, since a process that has a child cannot be dumped.
 */
#include "mutate.h"
#include <sys/wait.h>

enum { SWEPT = 1024, SEEN = 16, STACK = 64 << 10, BUSY_MS = 40, CALM_MS = 60 };

struct shared {
	uint64_t *page, round;
};

/* Page k gets round n only after page k-1 did, as in mutate_sweep. */
static void sweep(struct worker *self)
{
	uint64_t *area = own_area(SWEPT * PAGE, false);

	for (uint64_t n = 1; going(self); n++)
		for (uint64_t k = 0; k < SWEPT; k++) {
			must(holds(area + k * WORDS, n - 1, k));
			write_page(area + k * WORDS, n, k);
		}
}

static void reap(pid_t child)
{
	int status;

	must(child > 0);
	must_be(waitpid(child, &status, 0), child);
	must_be(status, 0);
}

/* It sees our pages as they were when it was born, and writes over its own. */
static void fork_one(uint64_t *area, uint64_t n)
{
	pid_t child;

	for (uint64_t k = 0; k < SEEN; k++)
		write_page(area + k * WORDS, n, k);
	child = fork();
	if (!child) {
		bool right = true;

		for (uint64_t k = 0; k < SEEN; k++) {
			right &= holds(area + k * WORDS, n, k);
			write_page(area + k * WORDS, n + 2, k);
			right &= holds(area + k * WORDS, n + 2, k);
		}
		_exit(!right);
	}
	for (uint64_t k = 0; k < SEEN; k++)
		write_page(area + k * WORDS, n + 1, k);
	reap(child);
	for (uint64_t k = 0; k < SEEN; k++)
		must(holds(area + k * WORDS, n + 1, k));
}

/* We stand still until it exits; what it wrote is ours. */
static void vfork_one(uint64_t *page, uint64_t n)
{
	pid_t child = vfork();

	if (!child) {
		write_page(page, n, n);
		_exit(0);
	}
	reap(child);
	must(holds(page, n, n));
}

static void execute_one(uint64_t *page, uint64_t n)
{
	pid_t child = vfork();

	if (!child) {
		write_page(page, n, n);
		execl("/bin/true", "true", NULL);
		_exit(1);
	}
	reap(child);
	must(holds(page, n, n));
}

static int write_shared(void *argument)
{
	struct shared *shared = argument;

	write_page(shared->page, shared->round, shared->round);
	return 0;
}

/* It shares our memory while both of us run. */
static void clone_one(char *stack, uint64_t *page, uint64_t n)
{
	struct shared shared = {page, n};
	pid_t child = clone(write_shared, stack + STACK, CLONE_VM | SIGCHLD, &shared);

	write_page(page + WORDS, n, n);
	reap(child);
	must(holds(page, n, n));
	must(holds(page + WORDS, n, n));
}

static void children(struct worker *self)
{
	uint64_t *area = own_area(SEEN * PAGE, false);
	char *stack = own_area(STACK, false);
	int64_t calm_from = now_ns(CLOCK_MONOTONIC) + BUSY_MS * 1000000L;

	for (uint64_t n = 1; going(self); n++) {
		switch (n % 8) {
		case 0:
			execute_one(area, n);
			break;
		case 1:
		case 2:
			vfork_one(area, n);
			break;
		case 3:
		case 4:
			clone_one(stack, area, n);
			break;
		default:
			fork_one(area, n);
		}
		if (now_ns(CLOCK_MONOTONIC) < calm_from)
			continue;
		usleep(CALM_MS * 1000);
		calm_from = now_ns(CLOCK_MONOTONIC) + BUSY_MS * 1000000L;
	}
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	employ(sweep);
	employ(children);
	return judge_workers();
}
