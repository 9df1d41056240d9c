// SPDX-License-Identifier: Apache-2.0
/* A patterned area, and whether it still is what it was. */
#ifndef LAZY_AREA_H
#define LAZY_AREA_H
#include "memory.h"
#include <sys/wait.h>

enum { SIZE = 64 << 20, PAGES = SIZE / PAGE, SEED = 5, STEP = 1 << 20 };

static char *area;

/* Is the memory at `at` what the area had from byte `from` on? */
static unused bool is_from(const char *at, size_t from, size_t length)
{
	for (size_t i = 0; i < length; i++)
		if ((unsigned char)at[i] != pattern(from + i, SEED))
			return false;
	return true;
}

static unused bool intact(size_t from, size_t length)
{
	return is_from(area + from, from, length);
}

static unused void check_all(void)
{
	for (size_t at = 0; at < SIZE; at += STEP)
		check(intact(at, STEP), "at %#zx", at);
}

/* Every page once, in an order that jumps. */
static unused size_t shuffled(size_t i)
{
	return i * 7919 % PAGES * PAGE;
}

/* Wait for a child that reports by its exit code. */
static unused void reap(pid_t child)
{
	int status = -1;
	check(child > 0);
	waitpid(child, &status, 0);
	check_is(status, 0);
}

static unused int all_right(void)
{
	for (size_t i = 0; i < PAGES; i++)
		if (!intact(shuffled(i), PAGE))
			return 1;
	return 0;
}

#endif
