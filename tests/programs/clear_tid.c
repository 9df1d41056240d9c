// SPDX-License-Identifier: Apache-2.0
/* The word that the kernel clears, and wakes, when a thread ends. */
#include "program.h"
#include <linux/futex.h>
#include <sched.h>

static volatile int release, tid;
static char stack[64 * 1024] __attribute__((aligned(16)));

static int thread(void *argument unused)
{
	while (!release)
		syscall(SYS_futex, &release, FUTEX_WAIT, 0, NULL, NULL, 0);
	return 0;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
		    CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
	int created = clone(thread, stack + sizeof(stack), flags, NULL, &tid, NULL, &tid);
	need(created > 0);

	checkpoint();

	struct timespec limit = {5, 0};
	int before = tid;
	check_is(before, created);
	release = 1;
	syscall(SYS_futex, &release, FUTEX_WAKE, 1, NULL, NULL, 0);
	while (tid == before && !syscall(SYS_futex, &tid, FUTEX_WAIT, before, &limit, NULL, 0))
		;
	check_is(tid, 0);
	return verdict();
}
