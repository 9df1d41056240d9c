// SPDX-License-Identifier: Apache-2.0
/* Memory that is locked only once it is touched: what was not touched stays absent. */
#include "memory.h"

enum { SIZE = 8 * PAGE };

int main(int argc, char **argv)
{
	begin(argc, argv);
	char *area = map_anonymous(SIZE, MAP_PRIVATE);
	need(!madvise(area, SIZE, MADV_NOHUGEPAGE));
	need(!mlock2(area, SIZE, MLOCK_ONFAULT));
	fill(area, PAGE, 1);

	checkpoint();

	check(has_flag(area, " lo"));
	check(has_flag(area, " lf"));
	check_is(resident(area + 4 * PAGE), 0);
	check_is(differs(area, PAGE, 1), -1);
	return verdict();
}
