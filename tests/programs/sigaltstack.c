// SPDX-License-Identifier: Apache-2.0
/* Alternate signal stacks, one per thread, and that handlers run on them. */
#include "threads.h"

enum { THREADS = 3, SIZE = 64 * 1024 };
#define SS_AUTODISARM (1U << 31)

static char stacks[THREADS + 1][SIZE];
static __thread char *ran_at;

static void handler(int signo unused)
{
	ran_at = __builtin_frame_address(0);
}

static stack_t wanted(int number)
{
	return (stack_t){.ss_sp = stacks[number],
			 .ss_size = SIZE - number * 4096,
			 .ss_flags = number == 2 ? (int)SS_AUTODISARM : 0};
}

static void set_up(int number)
{
	stack_t stack = wanted(number);
	if (number != 3)
		need(!sigaltstack(&stack, NULL));
}

static void check_up(int number)
{
	stack_t is, was = wanted(number);
	check_is(sigaltstack(NULL, &is), 0);
	if (number == 3) {
		check_is(is.ss_flags, SS_DISABLE);
		return;
	}
	check_is(is.ss_sp - was.ss_sp, 0);
	check_is(is.ss_size, was.ss_size);
	check_is(is.ss_flags, was.ss_flags);
	raise(SIGUSR1);
	check(ran_at >= stacks[number] && ran_at < stacks[number] + SIZE, "thread %d", number);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
	need(!sigaction(SIGUSR1, &action, NULL));
	checkpoint_threads(THREADS, set_up, check_up);
	return verdict();
}
