// SPDX-License-Identifier: Apache-2.0
/* Shared anonymous memory: content, holes, two mappings of one object, parts without permission. */
#include "memory.h"

enum { PAGES = 64 };

int main(int argc, char **argv)
{
	begin(argc, argv);
	char *area = map_anonymous(PAGES * PAGE, MAP_SHARED);
	char *again = mremap(area + 8 * PAGE, 0, 8 * PAGE, MREMAP_MAYMOVE); /* a second mapping */
	char *hidden = map_anonymous(4 * PAGE, MAP_SHARED);
	need(again != MAP_FAILED);
	for (int i = 0; i < PAGES; i += 2)
		fill(area + i * PAGE, PAGE, i);
	fill(hidden, 4 * PAGE, 99);
	need(!mprotect(hidden, 4 * PAGE, PROT_NONE));

	checkpoint();

	for (int i = 0; i < PAGES; i++)
		if (i % 2 == 0)
			check_is(differs(area + i * PAGE, PAGE, i), -1);
		else
			check(all_zero(area + i * PAGE, PAGE), "page %d", i);
	check_is(differs(again + 2 * PAGE, PAGE, 10), -1);
	fill(again, PAGE, 77);
	check_is(differs(area + 8 * PAGE, PAGE, 77), -1);
	catch_faults();
	check_is(faults(hidden, false), 1);
	check_is(mprotect(hidden, 4 * PAGE, PROT_READ), 0);
	check_is(differs(hidden, 4 * PAGE, 99), -1);
	return verdict();
}
