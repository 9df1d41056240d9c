// SPDX-License-Identifier: Apache-2.0
/* How likely the process is killed when memory runs out. */
#include "program.h"

int main(int argc, char **argv)
{
	begin(argc, argv);
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	need(fd >= 0 && write(fd, "321", 3) == 3 && !close(fd));

	checkpoint();

	check_text(slurp("/proc/self/oom_score_adj"), "321\n");
	return verdict();
}
