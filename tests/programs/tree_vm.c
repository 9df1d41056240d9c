// SPDX-License-Identifier: Apache-2.0
/*
 * Processes that share their memory (CLONE_VM), and of the rest now this, now that: children of the
 * root, one with a thread, and a family of its own memory: F, its child, and siblings of it whom F
 * or who has ended has made. One writes all the time, to memory of all. With the argument `nephew`
 * one more has the root's, whose parent has executed another program.
 *
 * They share the TLS, and so errno and malloc's caches, too: but for the root and F, nobody calls
 * more of libc than system calls that do not fail.
 */
#include "tree.h"
#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#define PAGE 4096
#define STACK (64 << 10)
#define SWEPT (2 << 20)
#define PR_GET_TID_ADDRESS 40

enum { PLAIN, FILES, FS, ALL, CHILDREN, HEIR = CHILDREN, OTHER_HEIR, SIBLING, CHILD, SHARERS };

static const int shared[SHARERS] = {
	[PLAIN] = 0,
	[FILES] = CLONE_FILES,
	[FS] = CLONE_FS | CLONE_SIGHAND,
	[ALL] = CLONE_FILES | CLONE_FS | CLONE_SIGHAND,
	[HEIR] = CLONE_PARENT,
	[OTHER_HEIR] = CLONE_PARENT | CLONE_SIGHAND,
	[SIBLING] = CLONE_PARENT,
	[CHILD] = CLONE_SIGHAND,
};

/* Which signal tells of the end: none, one that counts, or the usual one. */
static const int ends_with[SHARERS] = {
	[PLAIN] = 0, [FILES] = SIGUSR2, [FS] = SIGCHLD, [ALL] = SIGCHLD, [HEIR] = SIGCHLD,
	[OTHER_HEIR] = SIGCHLD, [SIBLING] = SIGCHLD, [CHILD] = SIGCHLD,
};

/* What the memory of the root and its sharers has; those of F and of the heirs have copies. */
static volatile struct sharer {
	pid_t pid, tid;
	int ready, go, done, line, handled, own, file, threads;
	void *robust[3];
	unsigned char page[PAGE];
} sharers[SHARERS];
static volatile int all_handled, told;
static volatile uint64_t *swept;
static const char *go;

#define must(cond) ((cond) ? (void)0 : (void)(me->line = me->line ? me->line : __LINE__))

static void pause_ms(int ms)
{
	struct timespec ts = {0, ms * 1000000};
	syscall(SYS_nanosleep, &ts, NULL);
}

static void handler(int signo)
{
	pid_t pid = syscall(SYS_getpid);
	for (int i = 0; i < SHARERS; i++)
		if (sharers[i].pid == pid && signo == SIGUSR1)
			sharers[i].handled++;
	all_handled++;
}

static void count_end(int signo)
{
	told += signo == SIGUSR2;
}

static void own_handler(int signo)
{
	pid_t pid = syscall(SYS_getpid);
	for (int i = 0; i < SHARERS; i++)
		if (sharers[i].pid == pid && signo == SIGUSR1)
			sharers[i].own++;
}

static uint64_t blocked(void)
{
	uint64_t set = 0;
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, NULL, &set, 8);
	return set;
}

static int descriptor(int number)
{
	return 50 + number;
}

static uint64_t only(int signo)
{
	return 1ULL << (signo - 1);
}

static int pending_for(int number)
{
	return SIGRTMIN + 1 + number;
}

static int second_thread(void *number)
{
	volatile struct sharer *me = sharers + (intptr_t)number;
	uint64_t set = only(SIGRTMAX) | only(pending_for(me - sharers));
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &set, NULL, 8);
	me->threads = 1;
	while (!me->go)
		pause_ms(1);
	must(blocked() == set);
	must(syscall(SYS_gettid) != syscall(SYS_getpid));
	me->threads = 2;
	return 0;
}

static void prepare(int number, volatile struct sharer *me)
{
	int flags = shared[number], signo = pending_for(number);
	uint64_t set = only(signo);
	struct rlimit limit = {number, 1000};
	me->pid = syscall(SYS_getpid);
	fill((void *)me->page, PAGE, number);
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &set, NULL, 8);
	syscall(SYS_kill, me->pid, signo);
	if (!(flags & CLONE_SIGHAND))
		signal(SIGUSR1, own_handler);
	if (!(flags & CLONE_FS))
		syscall(SYS_umask, number);
	me->file = dup2(0, descriptor(number));
	syscall(SYS_set_tid_address, &me->tid);
	me->tid = me->pid;
	me->robust[0] = (void *)&me->robust[0];
	syscall(SYS_set_robust_list, me->robust, sizeof(me->robust));
	setrlimit(RLIMIT_CORE, &limit);
	prctl(PR_SET_NAME, (char[]){'v', 'm', '0' + number, 0});
}

static void see(int number, volatile struct sharer *me)
{
	int flags = shared[number], signo = pending_for(number);
	uint64_t pending = 0;
	struct rlimit limit;
	void *address = NULL, *head = NULL;
	size_t size = 0;
	char name[16] = "";
	must(syscall(SYS_getpid) == me->pid);
	must(differs((void *)me->page, PAGE, number) == -1);
	must(blocked() == only(signo));
	syscall(SYS_rt_sigpending, &pending, 8);
	must(pending == only(signo));
	must(!syscall(SYS_kill, me->pid, SIGUSR1));
	must(me->own == !(flags & CLONE_SIGHAND) && me->handled == !!(flags & CLONE_SIGHAND));
	mode_t mask = syscall(SYS_umask, 0777);
	syscall(SYS_umask, mask);
	must(flags & CLONE_FS || mask == (mode_t)number);
	must(me->file == descriptor(number) && fcntl(me->file, F_GETFD) == 0);
	prctl(PR_GET_TID_ADDRESS, &address);
	must(address == &me->tid && me->tid == me->pid);
	must(!syscall(SYS_get_robust_list, 0, &head, &size) && head == me->robust);
	must(!getrlimit(RLIMIT_CORE, &limit) && limit.rlim_cur == (rlim_t)number);
	prctl(PR_GET_NAME, name);
	must(name[0] == 'v' && name[2] == '0' + number);
	while (number == ALL && me->threads != 2)
		pause_ms(1);
}

/* What one pass has not written yet another one has, all the time. */
static void sweep(volatile struct sharer *me)
{
	uint64_t passes = 0;
	while (!me->go) {
		for (size_t i = 0; i < SWEPT / 8; i += PAGE / 8) {
			must(swept[i] == passes);
			swept[i] = passes + 1;
		}
		passes++;
		pause_ms(1);
	}
}

static void begin_thread(int number, volatile struct sharer *me)
{
	int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
	static char stack[STACK] __attribute__((aligned(16)));
	must(clone(second_thread, stack + STACK, flags, (void *)(intptr_t)number) > 0);
	while (!me->threads)
		pause_ms(1);
}

/* As the root does with the others. */
static int end_heirs(volatile struct sharer *me)
{
	volatile struct sharer *it = sharers + OTHER_HEIR;
	it->go = 1;
	while (!it->done)
		pause_ms(1);
	fill((void *)it->page, PAGE, 100 + OTHER_HEIR);
	it->go = 2;
	while (it->tid)
		pause_ms(1);
	return (me->line ? me->line : it->line) & 0xff;
}

static int sharer(void *argument)
{
	int number = (intptr_t)argument, mine = number * 3;
	volatile struct sharer *me = sharers + number;
	prepare(number, me);
	if (number == ALL)
		begin_thread(number, me);
	me->ready = 1;
	if (number == PLAIN)
		sweep(me);
	while (!me->go && (number != HEIR || syscall(SYS_access, go, F_OK)))
		pause_ms(1);
	must(mine == number * 3);
	see(number, me);
	if (number == HEIR)
		return end_heirs(me);
	me->done = 1;
	while (me->go != 2)	/* who shares it has seen and answered that */
		pause_ms(1);
	must(differs((void *)me->page, PAGE, 100 + number) == -1);
	return 0;
}

static pid_t begin_sharer(int number)
{
	char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(stack != MAP_FAILED);
	int flags = CLONE_VM | shared[number] | ends_with[number];
	pid_t pid = clone(sharer, stack + STACK, flags, (void *)(intptr_t)number);
	need(pid > 0);
	while (!sharers[number].ready)
		pause_ms(1);
	return pid;
}

/* It executes another program; its child keeps the memory. */
static int leave_it(void *argument)
{
	begin_sharer((intptr_t)argument);
	execl("/bin/sleep", "sleep", "60", NULL);
	return 1;
}

static bool executes(pid_t pid, const char *program)
{
	char name[32];
	snprintf(name, sizeof(name), "/proc/%d/comm", pid);
	return !strcmp(slurp(name), program);
}

/* In who has the same memory: see what a sharer has found out, and have it end. */
static void end_sharer(int number)
{
	volatile struct sharer *it = sharers + number;
	it->go = 1;
	while (!it->done)
		pause_ms(1);
	fill((void *)it->page, PAGE, 100 + number);
	it->go = 2;
	for (pid_t tid; (tid = it->tid);)	/* which the kernel clears, and wakes us */
		syscall(SYS_futex, &it->tid, FUTEX_WAIT, tid, NULL, NULL, 0);
	if (it->line)
		fail(it->line, "a sharer", "%d", number);
}

/* The one whose memory is his heirs'; it ends, and nobody waits for it before the end. */
static void deceased(int number)
{
	begin_sharer(HEIR);
	begin_sharer(OTHER_HEIR);
	here();
	check_is(number, 0);
	_exit(77);
}

/* The one that has siblings and a child in its memory. */
static void family(int number)
{
	begin_sharer(SIBLING);
	pid_t pid = begin_sharer(CHILD);
	arrived();
	check(!sharers[PLAIN].pid, "it sees the root's memory");
	end_sharer(SIBLING);
	end_sharer(CHILD);
	check_is(waitpid(pid, NULL, 0), pid);
	check_is(number, 0);
}

/* Who ends without SIGCHLD is waited for only by who asks for it. */
static void wait_for(int number, pid_t pid)
{
	bool usual = ends_with[number] == SIGCHLD;
	siginfo_t info;
	int options = WEXITED | WNOWAIT | (usual ? 0 : WNOHANG);
	check_is(waitid(P_PID, pid, &info, options) == 0, usual);
	check_is(waitpid(pid, NULL, __WALL), pid);
}

static void check_not_shared(int handled)
{
	struct sigaction action;
	check(!sharers[SIBLING].pid && !sharers[HEIR].pid, "it sees the others' memory");
	raise(SIGUSR1);
	check_is(all_handled, handled);
	check_is(umask(022), 07);
	check_is(fcntl(descriptor(FILES), F_GETFD), 0);
	check_is(fcntl(descriptor(ALL), F_GETFD), 0);
	check(fcntl(descriptor(PLAIN), F_GETFD) == -1, "a descriptor that is not shared");
	check(fcntl(descriptor(FS), F_GETFD) == -1, "a descriptor that is not shared");
	sigaction(SIGUSR1, NULL, &action);
	check(action.sa_handler == handler, "the handler");
}

int main(int argc, char **argv)
{
	pid_t pids[CHILDREN], pid, left = 0;
	static char stack[STACK] __attribute__((aligned(16)));
	int count = 0;
	begin(argc, argv);
	signal(SIGUSR1, handler);
	signal(SIGUSR2, count_end);
	umask(07);
	swept = mmap(NULL, SWEPT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(swept != MAP_FAILED);
	go = path("go");
	pid_t dead = child(deceased, 0), kin = child(family, 0);
	all_arrived(2);
	await_state(dead, 'Z');
	for (int i = 0; i < CHILDREN; i++)
		pids[i] = begin_sharer(i);

	if (argc > 2)	/* `nephew` */
		left = clone(leave_it, stack + STACK, CLONE_VM | SIGCHLD, (void *)CHILD);
	while (left && !executes(left, "sleep\n"))
		pause_ms(1);

	checkpoint();

	for (int i = 0; i < CHILDREN; i++) {
		end_sharer(i);
		wait_for(i, pids[i]);
	}
	check_is(told, 1);
	if (left) {
		end_sharer(CHILD);
		kill(left, SIGKILL);
		check_is(waitpid(left, NULL, 0), left);
	}
	check_not_shared(left ? 4 : 3);	/* FS, ALL and CHILD have the handler as well */
	collect(kin);
	for (int status = 0; (pid = waitpid(-1, &status, 0)) > 0; count++)
		check_is(status, pid == dead ? 77 << 8 : 0);
	check_is(count, 4);	/* the deceased, his heirs, and SIBLING */
	return verdict();
}
