// SPDX-License-Identifier: Apache-2.0
/*
 * A tree, deep and wide: who is whose child, in which group and session; pipes between them with
 * something unread inside; memory that each has from its parent and has changed.
 */
#include "tree.h"

#define DEPTH 3
#define WIDTH 3
#define PAGE 4096
#define SIZE (64 * PAGE)

static unsigned char *memory;	/* half of it the root's, then a page of each level, then nothing */
static unsigned levels[DEPTH + 1];
static int depth, up[2];

static void branch(int number);

static int grow(pid_t *children, int *pipes)
{
	int count = depth < DEPTH ? WIDTH : 0;
	for (int i = 0; i < count; i++) {
		need(!pipe(up) && write(up[1], &i, sizeof(i)) == sizeof(i));
		pipes[i] = up[0];
		children[i] = child(branch, i);
		close(up[1]);
	}
	return count;
}

static void check_children(int count, pid_t *children, int *pipes)
{
	for (int i = 0; i < count; i++) {
		pid_t got[2] = {-1, -1};
		check_is(read(pipes[i], &got[0], sizeof(got[0])), sizeof(got[0]));
		check_is(read(pipes[i], &got[1], sizeof(got[1])), sizeof(got[1]));
		check_is(got[0], i);
		check_is(got[1], children[i]);
		collect(children[i]);
	}
	check_is(waitpid(-1, NULL, WNOHANG), -1);
	check_is(errno, ECHILD);
}

static void check_memory(void)
{
	unsigned char *own = memory + SIZE / 2, *rest = own + depth * PAGE;
	check_is(differs(memory, SIZE / 2, 1), -1);
	for (int i = 1; i <= depth; i++)
		check_is(differs(own + (i - 1) * PAGE, PAGE, levels[i]), -1);
	check(all_zero(rest, memory + SIZE - rest));
}

static void branch(int unused number)
{
	pid_t me = getpid(), parent = getppid(), group = getpgrp(), session = getsid(0);
	pid_t children[WIDTH];
	int pipes[WIDTH], mine = up[1];
	depth++;
	levels[depth] = me;
	fill(memory + SIZE / 2 + (depth - 1) * PAGE, PAGE, me);
	int count = grow(children, pipes);

	arrived();

	check_is(getpid(), me);
	check_is(getppid(), parent);
	check_is(getpgrp(), group);
	check_is(getsid(0), session);
	check_memory();
	check_is(write(mine, &me, sizeof(me)), sizeof(me));
	check_children(count, children, pipes);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	pid_t me = getpid(), children[WIDTH];
	int pipes[WIDTH];
	memory = aligned_alloc(PAGE, SIZE);
	need(memory);
	memset(memory, 0, SIZE);
	fill(memory, SIZE / 2, 1);
	int count = grow(children, pipes);
	all_arrived(WIDTH + WIDTH * WIDTH + WIDTH * WIDTH * WIDTH);

	checkpoint();

	check_is(getpid(), me);
	check_memory();
	check_children(count, children, pipes);
	return verdict();
}
