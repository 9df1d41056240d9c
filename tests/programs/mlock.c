// SPDX-License-Identifier: Apache-2.0
/* Locked memory: the flag, and that it is resident. */
#include "memory.h"

enum { SIZE = 8 * PAGE };

int main(int argc, char **argv)
{
	begin(argc, argv);
	char *locked = map_anonymous(SIZE, MAP_PRIVATE), *part = map_anonymous(SIZE, MAP_PRIVATE);
	need(!mlock(locked, SIZE));
	need(!mlock(part + 2 * PAGE, PAGE));
	fill(locked, PAGE, 1);
	fill(part, SIZE, 2);

	checkpoint();

	check(has_flag(locked, " lo"));
	check(!has_flag(locked, " lf"));
	check(!has_flag(part, " lo"));
	check(has_flag(part + 2 * PAGE, " lo"));
	check(!has_flag(part + 3 * PAGE, " lo"));
	for (int i = 0; i < SIZE; i += PAGE)
		check_is(resident(locked + i), 1);
	check_is(differs(locked, PAGE, 1), -1);
	check_is(differs(part, SIZE, 2), -1);
	return verdict();
}
