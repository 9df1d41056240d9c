// SPDX-License-Identifier: Apache-2.0
/* Memory that grows down when touched: deep pages of the stack, and a mapping that is one. */
#include "memory.h"

enum { DEEP = 1 << 20 };

static int descend(int depth)
{
	volatile char frame[64 * 1024];
	frame[0] = depth;
	return depth ? descend(depth - 1) + (frame[0] == depth) : 0;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	char deep[DEEP];
	char *room = map_anonymous(4 << 20, MAP_PRIVATE | MAP_NORESERVE);
	char *top = room + (3 << 20);
	need(!munmap(room, 4 << 20)); /* so that there is room below */
	char *area = mmap(top, 4 * PAGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0);
	need(area == top);
	fill(deep, DEEP, 1);
	fill(area - 2 * PAGE, 6 * PAGE, 2);

	checkpoint();

	check_is(differs(deep, DEEP, 1), -1);
	check_is(descend(64), 64);
	check_is(differs(area - 2 * PAGE, 6 * PAGE, 2), -1);
	check(has_flag(area - 2 * PAGE, " gd"));
	catch_faults();
	check_is(faults(area - 3 * PAGE, true), 0);
	check(has_flag(area - 3 * PAGE, " gd"));
	return verdict();
}
