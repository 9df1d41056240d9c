/* SPDX-License-Identifier: Apache-2.0 */
/* A thread of ours that looks while we go on, handed over to and back by a futex. */
#include "core.h"

#include <linux/futex.h>
#include <sys/syscall.h>

enum state { IDLE, LOOKING, BEGUN, DONE, DISMISSED };

static uint32_t now(struct core_aside *aside)
{
	return __atomic_load_n(&aside->state, __ATOMIC_ACQUIRE);
}

static void set(struct core_aside *aside, uint32_t state)
{
	__atomic_store_n(&aside->state, state, __ATOMIC_RELEASE);
	core_syscall(SYS_futex, (uintptr_t)&aside->state, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
}

/* Wait as long as it is in this state. */
static void wait_while(struct core_aside *aside, uint32_t state)
{
	while (now(aside) == state)
		core_syscall(SYS_futex, (uintptr_t)&aside->state, FUTEX_WAIT_PRIVATE, state, 0, 0, 0);
}

/* Look, in two steps. */
static void look(struct core_aside *aside)
{
	size_t first = aside->first;
	int64_t end = core_look(aside->looks, first, aside->rets, aside->buf, aside->size);

	aside->begun = end;
	set(aside, BEGUN);
	if (end >= 0) {
		aside->result = core_look(aside->looks + first, aside->n - first,
					  aside->rets + first, (char *)aside->buf + end,
					  aside->size - end);
		if (aside->result >= 0)
			aside->result += end;
	} else {
		aside->result = end;
	}
	set(aside, DONE);
}

int64_t core_aside_run(struct core_aside *aside)
{
	for (;;) {
		wait_while(aside, IDLE);
		if (now(aside) == DISMISSED)
			return 0;
		look(aside);
		wait_while(aside, DONE);
	}
}

int64_t core_aside_begin(struct core_aside *aside)
{
	set(aside, LOOKING);
	return 0;
}

int64_t core_aside_reach(struct core_aside *aside)
{
	wait_while(aside, LOOKING);
	return aside->begun;
}

int64_t core_aside_end(struct core_aside *aside)
{
	wait_while(aside, LOOKING);
	wait_while(aside, BEGUN);
	set(aside, IDLE);
	return aside->result;
}

int64_t core_aside_dismiss(struct core_aside *aside)
{
	set(aside, DISMISSED);
	return 0;
}
