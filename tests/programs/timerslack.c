// SPDX-License-Identifier: Apache-2.0
/* How late timers may be, per thread. */
#include "threads.h"
#include <sys/prctl.h>

static void set_up(int number)
{
	need(!prctl(PR_SET_TIMERSLACK, 70000 + number, 0, 0, 0));
}

static void check_up(int number)
{
	check_is(prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0), 70000 + number);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	checkpoint_threads(2, set_up, check_up);
	return verdict();
}
