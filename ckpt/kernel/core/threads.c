/* SPDX-License-Identifier: Apache-2.0 */
/* Many stopped threads at once: while we go from one to the next, the whole process stands still. */
#include "core.h"

#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	GETSIGMASK = 0x420a,
	SETSIGMASK = 0x420b,
	GET_RSEQ = 0x420f,
	GET_DISPATCH = 0x4211,
	SIGMASK_SIZE = 8,
	RSEQ_CS = 8,		/* offset of rseq_cs in struct rseq */
	WHO_PROCESS = 1,
};

/* Take what one tracee has to tell, if anything. */
static void take(struct core_told *one)
{
	pid_t got = waitpid(one->tid, &one->status, __WALL | WNOHANG);
	siginfo_t info = { 0 };

	if (!got)
		return;
	one->told = got < 0 ? -errno : 1;
	if (got > 0 && one->status >> 16 == PTRACE_EVENT_EXIT)	/* who executes waits for it */
		core_ptrace(PTRACE_CONT, one->tid, 0, 0);
	if (got > 0 && WIFSTOPPED(one->status) && !(one->status >> 16))
		core_ptrace(PTRACE_GETSIGINFO, one->tid, 0, (uintptr_t)&info);
	one->code = info.si_code;
}

static size_t take_all(struct core_told *told, size_t n)
{
	size_t count = 0;

	for (size_t i = 0; i < n; i++) {
		if (!told[i].told)
			take(&told[i]);
		count += told[i].told != 0;
	}
	return count;
}

static struct core_told *awaited(struct core_told *told, size_t n, pid_t pid)
{
	for (size_t i = 0; i < n; i++)
		if (told[i].tid == pid && !told[i].told)
			return &told[i];
	return NULL;
}

int64_t core_hear(struct core_told *told, size_t n)
{
	size_t count;

	for (size_t i = 0; i < n; i++) {
		if (told[i].interrupt)	/* who is gone says so when it is waited for */
			core_ptrace(PTRACE_INTERRUPT, told[i].tid, 0, 0);
		told[i].interrupt = 0;
	}
	count = take_all(told, n);
	while (count < n) {
		struct core_told *one;
		siginfo_t info = { 0 };

		/* Of all: the end of a first thread is told when those of the others were taken. */
		if (waitid(P_ALL, 0, &info, WEXITED | WSTOPPED | WNOWAIT | __WALL) < 0)
			break;
		one = awaited(told, n, info.si_pid);
		if (!one)
			break;
		take(one);
		count += one->told != 0;
		if (one->told == 1 && one->status >> 16 == PTRACE_EVENT_EXEC)
			count = take_all(told, n); /* the others of its process are no more */
	}
	return count;
}

static int64_t get_rseq(struct core_thread *one)
{
	struct core_range word;
	int64_t ret;
	struct {
		uint64_t pointer;
		uint32_t size, signature, flags, pad;
	} conf = { 0 };

	ret = core_ptrace(GET_RSEQ, one->tid, sizeof(conf), (uintptr_t)&conf);
	if (ret < 0)
		return ret;
	one->rseq_pointer = conf.pointer;
	one->rseq_size = conf.size;
	one->rseq_signature = conf.signature;
	one->rseq_flags = conf.flags;
	if (!conf.pointer)
		return 0;
	word = (struct core_range){ conf.pointer + RSEQ_CS, sizeof(one->rseq_cs) };
	return core_vm_read(one->tid, &word, 1, &one->rseq_cs);
}

/* Linux 6.4; struct ptrace_sud_config. */
static uint64_t get_dispatch(int32_t tid)
{
	struct {
		uint64_t mode, selector, offset, len;
	} conf = { 0 };

	return core_ptrace(GET_DISPATCH, tid, sizeof(conf), (uintptr_t)&conf) < 0 ? 0 : conf.mode;
}

static int64_t take_thread(struct core_thread *one, uint8_t *xstate, size_t room)
{
	int64_t ret = core_getregset(one->tid, NT_PRSTATUS, &one->regs, sizeof(one->regs));

	if (ret >= 0)
		ret = core_ptrace(GETSIGMASK, one->tid, SIGMASK_SIZE, (uintptr_t)&one->sigmask);
	if (ret >= 0)
		ret = get_rseq(one);
	if (ret >= 0)
		ret = core_syscall(SYS_get_robust_list, one->tid, (uintptr_t)&one->robust_list,
				   (uintptr_t)&one->robust_size, 0, 0, 0);
	if (ret >= 0)
		ret = core_get_tls(one->tid, one->tls);
	if (ret >= 0)
		ret = core_syscall(SYS_sched_getattr, one->tid, (uintptr_t)one->sched_attr,
				   sizeof(one->sched_attr), 0, 0, 0);
	one->dispatch = get_dispatch(one->tid);
	one->ioprio = core_syscall(SYS_ioprio_get, WHO_PROCESS, one->tid, 0, 0, 0, 0);
	if (ret >= 0)
		ret = core_getregset(one->tid, NT_X86_XSTATE, xstate, room);
	if (ret >= 0)
		one->xstate = ret;
	return ret;
}

int64_t core_take_threads(struct core_thread *threads, size_t n, uint8_t *xstate, size_t room)
{
	for (size_t i = 0; i < n; i++) {
		int64_t ret = take_thread(&threads[i], xstate + i * room, room);

		threads[i].error = ret < 0 ? ret : 0;
	}
	return 0;
}

enum { STOPPED = PTRACE_EVENT_STOP << 16 | SIGTRAP << 8 | 0x7f };

int64_t core_stop(struct core_told *told, struct core_thread *threads, size_t n, uint8_t *xstate,
		  size_t room, struct core_aside *aside)
{
	if (core_hear(told, n) < (int64_t)n)
		return 0;
	for (size_t i = 0; i < n; i++)
		if (told[i].told != 1 || told[i].status != STOPPED)
			return 0;
	if (aside)
		core_aside_begin(aside);
	core_take_threads(threads, n, xstate, room);
	return 1;
}

static int64_t set_mask(const struct core_order *one)
{
	return core_ptrace(SETSIGMASK, one->tid, SIGMASK_SIZE, (uintptr_t)&one->sigmask);
}

static int64_t carry_out(struct core_order *one)
{
	int64_t ret = 0;

	if (one->flags & CORE_MASK_FIRST)
		ret = set_mask(one);
	if (ret >= 0 && one->flags & CORE_REGS)
		ret = core_setregset(one->tid, NT_PRSTATUS, &one->regs, sizeof(one->regs));
	if (ret >= 0 && one->flags & CORE_MASK)
		ret = set_mask(one);
	if (ret >= 0 && one->request)
		ret = core_ptrace(one->request, one->tid, 0, 0);
	return ret;
}

int64_t core_order(struct core_order *orders, size_t n)
{
	int64_t failed = 0;

	for (size_t i = 0; i < n; i++) {
		int64_t ret = carry_out(&orders[i]);

		orders[i].error = ret < 0 ? ret : 0;
		failed += ret < 0;
	}
	return failed;
}

int64_t core_fill_slot(struct core_lent *one)
{
	struct core_slot *slot = one->slot;

	slot->home = one->regs;
	core_home(&slot->home);
	slot->sigmask = one->sigmask;
	slot->tgid = one->tgid;
	slot->tid = one->tid;
	slot->signo = one->signo;
	slot->count = one->count;
	slot->done = 0;
	return 0;
}

static int64_t set_out(struct core_lent *one)
{
	struct core_order order = {
		.tid = one->tid,
		.request = one->signo ? PTRACE_CONT : PTRACE_SYSCALL,
		.flags = CORE_REGS | CORE_MASK,
		.sigmask = one->blocked,
		.regs = one->regs,
	};

	core_fill_slot(one);
	core_lead(&order.regs, one->entry, one->there);
	return carry_out(&order);
}

int64_t core_set_out(struct core_lent *lent, size_t n)
{
	int64_t failed = 0;

	for (size_t i = 0; i < n; i++) {
		int64_t ret = set_out(&lent[i]);

		lent[i].back = ret < 0 ? ret : 0;
		failed += ret < 0;
	}
	return failed;
}

static int is_at_end(const struct core_lent *one, const struct core_told *told)
{
	return told->told == 1 && one->signo && told->status == (one->signo << 8 | 0x7f) &&
	       told->code == SI_TKILL && one->slot->done == one->count;
}

static int64_t go_home(struct core_lent *one)
{
	struct core_order order = {
		.tid = one->tid,
		.flags = CORE_REGS | CORE_MASK_FIRST,
		.sigmask = one->sigmask,
		.regs = one->slot->home,
	};

	one->slot->count = -1;
	return carry_out(&order);
}

int64_t core_come_back(struct core_lent *lent, struct core_told *told, size_t n)
{
	int64_t back = 0;

	core_hear(told, n);
	for (size_t i = 0; i < n; i++) {
		struct core_lent *one = &lent[i];
		int64_t ret;

		if (!is_at_end(one, &told[i]))
			continue;
		ret = one->homeward ? go_home(one) : 0;
		one->back = ret < 0 ? ret : 1;
		back += ret >= 0;
	}
	return back;
}

enum { SYSCALL_STOP = SIGTRAP | 0x80 };

static int64_t go_on(struct core_errand *errand)
{
	memset(&errand->told, 0, sizeof(errand->told));
	errand->told.tid = errand->order.tid;
	return core_ptrace(PTRACE_SYSCALL, errand->order.tid, 0, 0);
}

int64_t core_errand(struct core_errand *errand, int32_t wait)
{
	struct core_regs *regs = &errand->order.regs;
	int64_t ret = 0;

	if (!errand->told.tid) {
		errand->told.tid = errand->order.tid;
		ret = carry_out(&errand->order);
	}
	while (ret >= 0 && errand->stops < 2) {
		if (wait ? core_hear(&errand->told, 1) < 1 : !take_all(&errand->told, 1))
			return 0;
		if (errand->told.told < 0 || !WIFSTOPPED(errand->told.status))
			return -ECHILD;
		errand->stops += errand->told.status >> 8 == SYSCALL_STOP;
		if (errand->stops < 2)
			ret = go_on(errand);
	}
	if (ret >= 0)
		ret = core_getregset(errand->order.tid, NT_PRSTATUS, regs, sizeof(*regs));
	return ret < 0 ? ret : 1;
}
