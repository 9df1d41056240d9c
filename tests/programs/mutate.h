// SPDX-License-Identifier: Apache-2.0
/*
 * Threads that change memory at full speed and never stop checking it, while they are dumped and
 * when restored. What a page must hold follows from the thread's own registers, so an image that is
 * not of one instant shows: each thread looks at all that is there before it writes over it.
 */
#ifndef MUTATE_H
#define MUTATE_H
#include "memory.h"
#include <pthread.h>
#include <sched.h>

enum { WORDS = PAGE / 8, ROUNDS_MORE = 3, WORKERS = 16 };

struct worker {
	void (*work)(struct worker *);
	int number;
	pthread_t thread;
	_Atomic uint64_t rounds, last;
	uint64_t random;
};

static struct worker workers[WORKERS];
static int working;

/* A wrong state ends the program at once: there is one verdict, and other threads may be waiting. */
#define wrong(format, ...) leave("%s, line %d: " format, __func__, __LINE__, ##__VA_ARGS__)
#define must(cond) ((cond) ? (void)0 : wrong("%s: %s", #cond, strerror(errno)))
#define must_be(actual, expected) \
	do { \
		long long is_ = (long long)(actual), expected_ = (long long)(expected); \
		if (is_ != expected_) \
			wrong("%s is %#llx, expected %#llx", #actual, is_, expected_); \
	} while (0)

/* Call it where nothing is half done: is there another round to come? */
static bool going(struct worker *self)
{
	return ++self->rounds < self->last;
}

static unused uint64_t chance(struct worker *self, uint64_t below)
{
	self->random = self->random * 6364136223846793005u + 1442695040888963407u;
	return (self->random >> 33) % below;
}

static inline uint64_t stamp(uint64_t value, uint64_t word)
{
	return value ? (value << 24 ^ word) * 0x9e3779b97f4a7c15u | 1 : 0;
}

/* Fill a page, word by word in this order, with what says which page and which round it is. */
static unused void write_page(volatile uint64_t *page, uint64_t value, uint64_t number)
{
	for (uint64_t i = 0; i < WORDS; i++)
		page[i] = stamp(value, number * WORDS + i);
}

static unused bool holds(volatile uint64_t *page, uint64_t value, uint64_t number)
{
	for (uint64_t i = 0; i < WORDS; i++)
		if (page[i] != stamp(value, number * WORDS + i))
			return false;
	return true;
}

/*
 * An aligned area of its own, with or without huge pages. Far below where the kernel puts mappings by
 * itself: what we unmap for a while must still be free when we come back.
 */
static unused void *own_area(size_t size, bool huge)
{
	static _Atomic uint64_t areas;
	char *area = (char *)(1UL << 40) + (areas++ << 32);

	need(mmap(area, size, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == area);
	need(!madvise(area, size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE));
	return area;
}

static void *run_worker(void *argument)
{
	struct worker *self = argument;
	self->work(self);
	return NULL;
}

static void employ(void (*work)(struct worker *))
{
	struct worker *self = &workers[working];
	*self = (struct worker){.work = work, .number = working, .last = UINT64_MAX};
	self->random = ++working;
	need(!pthread_create(&self->thread, NULL, run_worker, self));
}

/* Let them work until the harness has seen enough, and then some rounds more. */
static int judge_workers(void)
{
	checkpoint();
	for (int i = 0; i < working; i++)
		workers[i].last = workers[i].rounds + ROUNDS_MORE;
	for (int i = 0; i < working; i++)
		pthread_join(workers[i].thread, NULL);
	return verdict();
}

#endif
