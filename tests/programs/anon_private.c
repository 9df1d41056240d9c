// SPDX-License-Identifier: Apache-2.0
/*
 * Private anonymous memory: written pages, holes, pages without permission that hold data, read-only
 * parts, a mapping split by mprotect, a page of zeros that was written, and guard regions.
 */
#include "memory.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

enum { PAGES = 256 };

static char *map(int protection)
{
	char *area = mmap(NULL, PAGES * PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(area != MAP_FAILED);
	return area;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	char *sparse = map(PROT_READ | PROT_WRITE), *hidden = map(PROT_READ | PROT_WRITE);
	char *readonly = map(PROT_READ | PROT_WRITE), *split = map(PROT_READ | PROT_WRITE);
	char *guarded = map(PROT_READ | PROT_WRITE), *untouched = map(PROT_READ | PROT_WRITE);
	char *executable = map(PROT_READ | PROT_WRITE);

	need(!madvise(sparse, PAGES * PAGE, MADV_NOHUGEPAGE)); /* holes must be holes */
	need(!madvise(untouched, PAGES * PAGE, MADV_NOHUGEPAGE));
	for (int i = 0; i < PAGES; i += 3)
		fill(sparse + i * PAGE, PAGE, i);
	memset(sparse + PAGE, 0, PAGE);
	fill(hidden, PAGES * PAGE, 1);
	need(!mprotect(hidden, PAGES * PAGE, PROT_NONE));
	fill(readonly, PAGES * PAGE, 2);
	need(!mprotect(readonly, PAGES * PAGE, PROT_READ));
	fill(split, PAGES * PAGE, 3);
	need(!mprotect(split + 16 * PAGE, 16 * PAGE, PROT_READ));
	need(!mprotect(split + 64 * PAGE, 16 * PAGE, PROT_NONE));
	fill(guarded, PAGES * PAGE, 4);
	bool guards = !madvise(guarded + 8 * PAGE, 4 * PAGE, MADV_GUARD_INSTALL);
	memcpy(executable, "\xb8\x2a\x00\x00\x00\xc3", 6); /* mov $42, %eax; ret */
	need(!mprotect(executable, PAGES * PAGE, PROT_READ | PROT_EXEC));

	checkpoint();

	catch_faults();
	for (int i = 0; i < PAGES; i++)
		if (i % 3 == 0)
			check_is(differs(sparse + i * PAGE, PAGE, i), -1);
	check_is(resident(sparse + 2 * PAGE), 0);
	for (int i = 0; i < PAGES; i++)
		if (i % 3)
			check(all_zero(sparse + i * PAGE, PAGE), "page %d", i);
	for (int i = 0; i < PAGES; i++)
		check_is(resident(untouched + i * PAGE), 0);
	check(all_zero(untouched, PAGES * PAGE));

	check_is(faults(hidden, false), 1);
	check_is(faults(hidden + (PAGES - 1) * PAGE, false), 1);
	check_is(mprotect(hidden, PAGES * PAGE, PROT_READ), 0);
	check_is(differs(hidden, PAGES * PAGE, 1), -1);

	check_is(faults(readonly, true), 1);
	check_is(differs(readonly, PAGES * PAGE, 2), -1);

	check_is(faults(split, true), 0);
	check_is(faults(split + 16 * PAGE, true), 1);
	check_is(faults(split + 16 * PAGE, false), 0);
	check_is(faults(split + 32 * PAGE, true), 0);
	check_is(faults(split + 64 * PAGE, false), 1);
	check_is(faults(split + 80 * PAGE, true), 0);
	check_is(mprotect(split, PAGES * PAGE, PROT_READ | PROT_WRITE), 0);
	check_is(differs(split, PAGES * PAGE, 3), -1);

	check_is(faults(guarded + 7 * PAGE, true), 0);
	if (guards)
		for (int i = 8; i < 12; i++)
			check_is(faults(guarded + i * PAGE, false), 1);
	check_is(faults(guarded + 12 * PAGE, true), 0);
	check_is(differs(guarded, 8 * PAGE, 4), -1);
	check_is(pattern(12 * PAGE, 4), (unsigned char)guarded[12 * PAGE]);

	check_is(faults(executable, true), 1);
	check_is(((int (*)(void))executable)(), 42);
	return verdict();
}
