// SPDX-License-Identifier: Apache-2.0
/*
 * A prefork server: workers with their parent's memory, of which they have changed some, given back
 * some, grown and cut some.
 */
#include "tree.h"
#include <sys/mman.h>

#define PAGE 4096
#define PAGES 2048
#define WORKERS 8

static unsigned char *memory, *cut, *hole, *guarded, *elsewhere;

static void *map(size_t size)
{
	void *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(area != MAP_FAILED);
	return area;
}

static bool is_mapped(void *at)
{
	return !msync(at, PAGE, MS_ASYNC);
}

static void worker(int number)
{
	fill(memory + (16 + number) * PAGE, PAGE, 50 + number);
	memory[300 * PAGE + 17] = number;
	need(!madvise(memory + 100 * PAGE, 10 * PAGE, MADV_DONTNEED));
	need(!munmap(cut + 8 * PAGE, 8 * PAGE));
	need(!mprotect(guarded + 4 * PAGE, 4 * PAGE, PROT_READ));
	need(mmap(hole, 4 * PAGE, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == hole);
	unsigned char *heap = sbrk(64 * PAGE);
	fill(heap, 64 * PAGE, number);
	unsigned char *own = map(32 * PAGE);
	fill(own, 32 * PAGE, 7);
	need(mremap(elsewhere, 8 * PAGE, 24 * PAGE, MREMAP_MAYMOVE) != MAP_FAILED);

	arrived();

	check_is(differs(memory + (16 + number) * PAGE, PAGE, 50 + number), -1);
	check_is(memory[300 * PAGE + 17], number);
	memory[300 * PAGE + 17] = pattern(300 * PAGE + 17, 1);
	check_is(differs(memory, 16 * PAGE, 1), -1);
	check(all_zero(memory + 100 * PAGE, 10 * PAGE));
	for (size_t i = 200 * PAGE; i < (size_t)PAGES * PAGE; i++)
		if (memory[i] != pattern(i, 1)) {
			check_is(i, -1);
			break;
		}
	check_is(differs(cut, 8 * PAGE, 2), -1);
	check(!is_mapped(cut + 8 * PAGE) && is_mapped(cut + 7 * PAGE));
	check_is(differs(guarded, 8 * PAGE, 3), -1);
	check(all_zero(hole, 4 * PAGE));
	check_is(differs(hole + 4 * PAGE, 0, 4), -1);
	check_is(differs(heap, 64 * PAGE, number), -1);
	check_is(differs(own, 32 * PAGE, 7), -1);
	unsigned char *more = sbrk(8 * PAGE);
	check(more >= heap + 64 * PAGE && all_zero(more, 8 * PAGE));
	memory[0] = number;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	pid_t pids[WORKERS];
	memory = map(PAGES * PAGE);
	cut = map(16 * PAGE);
	hole = map(12 * PAGE);
	guarded = map(8 * PAGE);
	elsewhere = map(8 * PAGE);
	fill(memory, PAGES * PAGE, 1);
	fill(cut, 16 * PAGE, 2);
	fill(guarded, 8 * PAGE, 3);
	fill(hole, 12 * PAGE, 4);
	fill(elsewhere, 8 * PAGE, 5);
	for (int i = 0; i < WORKERS; i++)
		pids[i] = child(worker, i);
	all_arrived(WORKERS);

	checkpoint();

	check_is(differs(memory, PAGES * PAGE, 1), -1);
	check_is(differs(cut, 16 * PAGE, 2), -1);
	check_is(differs(guarded, 8 * PAGE, 3), -1);
	check_is(differs(hole, 12 * PAGE, 4), -1);
	check_is(differs(elsewhere, 8 * PAGE, 5), -1);
	for (int i = 0; i < WORKERS; i++)
		collect(pids[i]);
	check_is(differs(memory, PAGES * PAGE, 1), -1);
	return verdict();
}
