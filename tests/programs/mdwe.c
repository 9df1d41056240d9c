// SPDX-License-Identifier: Apache-2.0
/* A process that may have no memory which is both written and executed. */
#include "program.h"
#include <sys/prctl.h>

enum { SET_MDWE = 65, GET_MDWE = 66, REFUSE_EXEC_GAIN = 1 };

int main(int argc, char **argv)
{
	begin(argc, argv);
	if (prctl(SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0))
		skip("no PR_SET_MDWE");

	checkpoint();

	check_is(prctl(GET_MDWE, 0, 0, 0, 0), REFUSE_EXEC_GAIN);
	return verdict();
}
