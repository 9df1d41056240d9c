// SPDX-License-Identifier: Apache-2.0
/* A process that leaves no core and hides from others. */
#include "program.h"
#include <sys/prctl.h>

int main(int argc, char **argv)
{
	begin(argc, argv);
	need(!prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));

	checkpoint();

	check_is(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0), 0);
	return verdict();
}
