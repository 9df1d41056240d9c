// SPDX-License-Identifier: Apache-2.0
/* A working directory that was removed: it has no name, and is the one of before. */
#include "program.h"

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct stat st;
	char now[PATH_MAX] = "";
	need(!mkdir(path("gone"), 0755) && !chdir(path("gone")) && !rmdir(path("gone")));

	checkpoint();

	check(!getcwd(now, sizeof(now)), "%s", now);
	check_is(stat(".", &st), 0);
	check_is(st.st_nlink, 0);
	check_is(access(path("gone"), F_OK), -1);
	return verdict();
}
