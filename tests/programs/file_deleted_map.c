// SPDX-License-Identifier: Apache-2.0
/* Mappings of files that have no name any more: one private, two of one shared file. */
#include "memory.h"

enum { PAGES = 16 };

int main(int argc, char **argv)
{
	begin(argc, argv);
	int one = patterned_file("one", PAGES * PAGE, 1), two = patterned_file("two", PAGES * PAGE, 2);
	char *private = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, one, 0);
	char *shared = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, two, 0);
	char *again = mmap(NULL, 2 * PAGE, PROT_READ, MAP_SHARED, two, 4 * PAGE);
	need(private != MAP_FAILED && shared != MAP_FAILED && again != MAP_FAILED);
	fill(private, PAGE, 3);
	fill(shared + 4 * PAGE, PAGE, 4);
	need(!unlink(path("one")) && !unlink(path("two")) && !close(one) && !close(two));

	checkpoint();

	check_is(differs(private, PAGE, 3), -1);
	for (size_t i = PAGE; i < PAGES * PAGE; i++)
		if ((unsigned char)private[i] != pattern(i, 1)) {
			check(false, "private, byte %zu", i);
			break;
		}
	check_is(differs(shared, 4 * PAGE, 2), -1);
	check_is(differs(shared + 4 * PAGE, PAGE, 4), -1);
	check_is(differs(again, PAGE, 4), -1);
	fill(shared + 5 * PAGE, PAGE, 5);
	check_is(differs(again + PAGE, PAGE, 5), -1);
	check_is(access(path("one"), F_OK), -1);
	check_is(access(path("two"), F_OK), -1);
	return verdict();
}
