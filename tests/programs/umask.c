// SPDX-License-Identifier: Apache-2.0
/* The file mode creation mask. */
#include "program.h"

int main(int argc, char **argv)
{
	begin(argc, argv);
	umask(0137);
	checkpoint();
	check_is(umask(0), 0137);
	return verdict();
}
