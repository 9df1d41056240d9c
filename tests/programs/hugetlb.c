// SPDX-License-Identifier: Apache-2.0
/* Huge pages: a private and a shared anonymous mapping, content and page size. */
#include "memory.h"

enum { HUGE = 2 << 20 };

static char *map_huge(int flags)
{
	char *area = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE,
			  flags | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (area == MAP_FAILED)
		skip("no huge pages: %s", strerror(errno));
	return area;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	char *private = map_huge(MAP_PRIVATE), *shared = map_huge(MAP_SHARED);
	fill(private, HUGE, 1);
	fill(shared + HUGE, HUGE, 2);

	checkpoint();

	check_is(differs(private, HUGE, 1), -1);
	check_is(differs(shared + HUGE, HUGE, 2), -1);
	check(all_zero(shared, HUGE));
	check(has_flag(private, " ht"));
	check(has_flag(shared, " ht"));
	check(has_flag(shared, " sh"));
	return verdict();
}
