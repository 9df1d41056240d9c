// SPDX-License-Identifier: Apache-2.0
/* What is done on each signal: handler, flags, mask and restorer, as the kernel keeps them. */
#include "program.h"

enum { SA_RESTORER = 0x04000000 };

struct kernel_sigaction {
	void (*handler)(int);
	unsigned long flags;
	void (*restorer)(void);
	uint64_t mask;
};

static volatile int got;

static void handler(int signo)
{
	got = signo;
}

static long action(int signo, struct kernel_sigaction *set, struct kernel_sigaction *get)
{
	return syscall(SYS_rt_sigaction, signo, set, get, sizeof(uint64_t));
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	static const unsigned long flags[] = {SA_RESTART, SA_SIGINFO, SA_NODEFER, SA_ONSTACK, 0,
					      SA_RESETHAND | SA_RESTART, SA_NOCLDSTOP};
	struct kernel_sigaction before[65] = {}, now;
	struct sigaction libc = {.sa_handler = handler}; /* glibc knows a restorer */
	need(!sigaction(SIGUSR1, &libc, NULL) && !action(SIGUSR1, NULL, &now));
	void (*restorer)(void) = now.restorer;

	for (int signo = 1; signo <= 64; signo++) {
		struct kernel_sigaction set = {handler, SA_RESTORER | flags[signo % lengthof(flags)],
					       restorer, 0x123456789abcULL << (signo % 7)};
		if (signo == SIGKILL || signo == SIGSTOP)
			continue;
		if (signo % 9 == 0)
			set.handler = SIG_IGN;
		if (signo % 9 != 1)
			need(!action(signo, &set, NULL));
		need(!action(signo, NULL, &before[signo]));
	}

	checkpoint();

	for (int signo = 1; signo <= 64; signo++) {
		if (signo == SIGKILL || signo == SIGSTOP)
			continue;
		check_is(action(signo, NULL, &now), 0);
		check(now.handler == before[signo].handler, "signal %d", signo);
		check(now.flags == before[signo].flags, "signal %d: %#lx", signo, now.flags);
		check(now.mask == before[signo].mask, "signal %d: %#lx", signo, now.mask);
		check(now.restorer == before[signo].restorer, "signal %d", signo);
	}
	need(signal(SIGUSR2, handler) != SIG_ERR);
	raise(SIGUSR2);
	check_is(got, SIGUSR2);
	return verdict();
}
