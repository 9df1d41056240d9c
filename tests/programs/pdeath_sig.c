// SPDX-License-Identifier: Apache-2.0
/* The signal at the death of the parent. One that does nothing by default: our parent is the tool. */
#include "threads.h"
#include <sys/prctl.h>

static const int wanted[] = {SIGURG, SIGWINCH, 0};

static void set_up(int number)
{
	need(!prctl(PR_SET_PDEATHSIG, wanted[number], 0, 0, 0));
}

static void check_up(int number)
{
	int now = -1;
	check_is(prctl(PR_GET_PDEATHSIG, &now, 0, 0, 0), 0);
	check_is(now, wanted[number]);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	checkpoint_threads(2, set_up, check_up);
	return verdict();
}
