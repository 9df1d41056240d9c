// SPDX-License-Identifier: Apache-2.0
/* The execution domain. */
#include "program.h"
#include <sys/personality.h>

int main(int argc, char **argv)
{
	begin(argc, argv);
	int wanted = ADDR_NO_RANDOMIZE | STICKY_TIMEOUTS | UNAME26;
	need(personality(wanted) >= 0);

	checkpoint();

	check_is(personality(0xffffffff), wanted);
	return verdict();
}
