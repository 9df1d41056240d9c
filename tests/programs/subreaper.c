// SPDX-License-Identifier: Apache-2.0
/* A process that orphans go to. */
#include "program.h"
#include <sys/prctl.h>

int main(int argc, char **argv)
{
	begin(argc, argv);
	int now = 0;
	need(!prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));

	checkpoint();

	check_is(prctl(PR_GET_CHILD_SUBREAPER, &now, 0, 0, 0), 0);
	check_is(now, 1);
	return verdict();
}
