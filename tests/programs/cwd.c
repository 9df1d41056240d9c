// SPDX-License-Identifier: Apache-2.0
/* The working directory. */
#include "program.h"

int main(int argc, char **argv)
{
	begin(argc, argv);
	char now[PATH_MAX] = "";
	need(!mkdir(path("a dir"), 0755) && !chdir(path("a dir")));

	checkpoint();

	check_text(getcwd(now, sizeof(now)), path("a dir"));
	return verdict();
}
