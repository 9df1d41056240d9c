// SPDX-License-Identifier: Apache-2.0
/* System calls that a signal handler answers, where a byte in memory says so (it does not now). */
#include "threads.h"
#include <sys/prctl.h>

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#endif

static volatile char selector, answered;

static void answer(int signo)
{
	selector = 0;
	answered = signo == SIGSYS;
}

static void set_up(int number)
{
	if (number && prctl(PR_SET_SYSCALL_USER_DISPATCH, 1, 0, 0, &selector))
		skip("no Syscall User Dispatch");
}

static void check_up(int number)
{
	if (!number)
		return;
	selector = 1;
	syscall(SYS_getppid);
	check(answered, "it was not answered");
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	need(signal(SIGSYS, answer) != SIG_ERR);
	checkpoint_threads(1, set_up, check_up);
	return verdict();
}
