// SPDX-License-Identifier: Apache-2.0
/* No new privileges from here on. */
#include "program.h"
#include <sys/prctl.h>

int main(int argc, char **argv)
{
	begin(argc, argv);
	need(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));

	checkpoint();

	check_is(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
	return verdict();
}
