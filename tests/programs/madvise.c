// SPDX-License-Identifier: Apache-2.0
/* What was advised about memory and stays with the mapping, read back from smaps. */
#include "memory.h"

enum { SIZE = 4 << 20 };

static const struct {
	int advice;
	const char *flag;
} advised[] = {
	{MADV_DONTFORK, " dc"},   {MADV_DONTDUMP, " dd"}, {MADV_MERGEABLE, " mg"},
	{MADV_HUGEPAGE, " hg"},	  {MADV_NOHUGEPAGE, " nh"}, {MADV_WIPEONFORK, " wf"},
	{MADV_SEQUENTIAL, " sr"}, {MADV_RANDOM, " rr"},
};

int main(int argc, char **argv)
{
	begin(argc, argv);
	char *areas[lengthof(advised)];
	bool had[lengthof(advised)];

	for (unsigned i = 0; i < lengthof(advised); i++) {
		areas[i] = map_anonymous(SIZE, MAP_PRIVATE) + PAGE; /* begins a mapping of its own */
		need(!madvise(areas[i], SIZE - 2 * PAGE, advised[i].advice) || errno == EINVAL);
		had[i] = has_flag(areas[i], advised[i].flag);
		fill(areas[i], PAGE, i);
	}

	checkpoint();

	for (unsigned i = 0; i < lengthof(advised); i++) {
		check(has_flag(areas[i], advised[i].flag) == had[i], "%s", advised[i].flag);
		check_is(differs(areas[i], PAGE, i), -1);
	}
	return verdict();
}
