// SPDX-License-Identifier: Apache-2.0
/* No transparent huge pages for this process; memory that is advised otherwise keeps its flags. */
#include "memory.h"
#include <sys/prctl.h>

int main(int argc, char **argv)
{
	begin(argc, argv);
	char *plain = map_anonymous(4 << 20, MAP_PRIVATE);
	need(!prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
	fill(plain, 2 << 20, 1);

	checkpoint();

	check_is(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 1);
	check(!has_flag(plain, " nh"));
	check_is(differs(plain, 2 << 20, 1), -1);
	return verdict();
}
