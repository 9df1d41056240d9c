// SPDX-License-Identifier: Apache-2.0
/* A root directory of its own. */
#include "program.h"

int main(int argc, char **argv)
{
	begin(argc, argv);
	char now[PATH_MAX] = "";
	need(!mkdir(path("below"), 0755));
	need(!chroot(dir) && !chdir("/below"));
	dir = ""; /* where ready and verdict are, seen from here */

	checkpoint();

	check_text(getcwd(now, sizeof(now)), "/below");
	check_is(access("/below", F_OK), 0);
	check_is(access("/proc", F_OK), -1);
	check_is(chdir("../../.."), 0);
	check_is(access("below", F_OK), 0);
	return verdict();
}
