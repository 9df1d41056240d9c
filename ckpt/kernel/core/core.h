/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The whole C floor of ckpt on one page: a header for the compiler and, with its preprocessor
 * lines dropped, the cdef for cffi (build.py).
 *
 * Each function returns >= 0, or -errno. None prints, allocates, keeps state or knows a policy;
 * buffers belong to the caller.
 */
#ifndef CKPT_CORE_H
#define CKPT_CORE_H

#include <stddef.h>
#include <stdint.h>

/* Any system call. */
int64_t core_syscall(int64_t nr, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3,
		     uint64_t a4, uint64_t a5);

/* ptrace(2), raw; a PEEK writes its word through data. */
int64_t core_ptrace(int64_t request, int32_t tid, uint64_t addr, uint64_t data);

/* One register set (NT_PRSTATUS, NT_X86_XSTATE ...); get returns its length in bytes. */
int64_t core_getregset(int32_t tid, uint32_t type, void *buf, size_t len);
int64_t core_setregset(int32_t tid, uint32_t type, const void *buf, size_t len);

/* The kernel's struct user_regs_struct; ip to ss are also the frame that iretq takes. */
struct core_regs {
	uint64_t r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax;
	uint64_t ip, cs, flags, sp, ss;
	uint64_t fs_base, gs_base, ds, es, fs, gs;
};

/* ---- many stopped threads at once (threads.c) ---- */

/*
 * What a tracee has told, if told is 1: its wait status; if -errno, there is none any more. For a
 * stop by a signal code is the si_code. Where it is to be interrupted, that comes first.
 */
struct core_told {
	int32_t tid, told, status, code, interrupt;
};

/*
 * Wait until all n have told something, or are no more. Returns how many have: fewer than n where
 * there is something to be told of somebody else, or a signal has come. What has told is not asked
 * again.
 */
int64_t core_hear(struct core_told *told, size_t n);

/* A stopped thread. */
struct core_thread {
	int32_t tid, error;	/* error: -errno of the first request that failed, or 0 */
	struct core_regs regs;
	uint64_t sigmask;
	uint64_t rseq_pointer;	/* as of PTRACE_GET_RSEQ_CONFIGURATION */
	uint32_t rseq_size, rseq_signature, rseq_flags, rseq_pad;
	uint64_t rseq_cs;	/* the critical section that it is in */
	uint64_t robust_list, robust_size;
	uint64_t dispatch;	/* its mode of Syscall User Dispatch, 0 if it has none */
	uint8_t tls[48];	/* three struct user_desc of its GDT (x86) */
	uint8_t sched_attr[56];	/* struct sched_attr, SCHED_ATTR_SIZE_VER1 */
	int64_t ioprio;
	uint64_t xstate;	/* bytes of its XSAVE area */
};

/* Fill in threads by their tid; each has room bytes for its XSAVE area. Returns 0. */
int64_t core_take_threads(struct core_thread *threads, size_t n, uint8_t *xstate, size_t room);

struct core_aside;

/*
 * Stop n threads together: ask all, wait for all, have `aside`, if any, begin to look, and fill in
 * what each is. Returns 1; or 0 if one has something else to tell first: then what has been told is
 * told, as by core_hear(), and nothing is filled in.
 */
int64_t core_stop(struct core_told *told, struct core_thread *threads, size_t n, uint8_t *xstate,
		  size_t room, struct core_aside *aside);

enum core_order_flag {
	CORE_REGS = 1,		/* it gets these registers */
	CORE_MASK = 2,		/* and this signal mask: after the registers, */
	CORE_MASK_FIRST = 4,	/* or before them */
};

/* What a stopped thread is to do next: a ptrace request, or 0 to stay. */
struct core_order {
	int32_t tid, request;
	int32_t flags, error;	/* error: -errno of what failed, or 0 */
	uint64_t sigmask;
	struct core_regs regs;
};

/* Carry out all orders; returns how many have failed. */
int64_t core_order(struct core_order *orders, size_t n);

/* A system call that a stopped thread is to make, by PTRACE_SYSCALL, and not an instruction more. */
struct core_errand {
	struct core_order order;	/* the registers that lead to the call; then those after it */
	struct core_told told;
	int32_t stops;			/* at system calls, until now */
};

/*
 * Have it make the call: 1 when it has. 0 if something else has to be heard first, as core_hear()
 * may, or if we do not wait: the errand goes on when told is filled in, or without. -ECHILD if the
 * thread has ended.
 */
int64_t core_errand(struct core_errand *errand, int32_t wait);

/* A piece of an address space. */
struct core_range {
	uint64_t start;
	uint64_t len;
};

/*
 * process_vm_readv(2) of n ranges into one buffer, all of them or -errno: -EFAULT where a page
 * cannot be read. Any n; the kernel takes IOV_MAX at a time.
 */
int64_t core_vm_read(int32_t pid, const struct core_range *ranges, size_t n, void *buf);
int64_t core_vm_write(int32_t pid, const struct core_range *ranges, size_t n, const void *buf);

/*
 * The same of an open /proc/PID/mem. It takes longer, reads whatever the protection, and leaves
 * pages that processes share since fork(2) shared: process_vm_readv pins them, which copies them
 * (gup_must_unshare in mm/internal.h).
 */
int64_t core_mem_read(int32_t fd, const struct core_range *ranges, size_t n, void *buf);

/* What PAGEMAP_SCAN fills in (struct page_region of linux/fs.h, since Linux 6.7). */
struct core_region {
	uint64_t start;
	uint64_t end;
	uint64_t categories;
};

/*
 * PAGEMAP_SCAN of n ranges. Returns the number of regions; *done is how many ranges are through:
 * fewer than n if the regions have no room for more, and then the last one says how far the next is.
 */
int64_t core_pagemap_scan(int32_t fd, const struct core_range *ranges, size_t n, uint64_t all_of,
			  uint64_t any_of, uint64_t inverted, uint64_t return_mask,
			  struct core_region *regions, size_t room, size_t *done);

/* ---- userfaultfd ---- */

/* A struct uffd_msg: kind is UFFD_EVENT_*; flags the fault's, or where a remap went. */
struct core_event {
	uint64_t kind;
	uint64_t start;
	uint64_t end;
	uint64_t flags;
};

/*
 * What a userfaultfd has told: write faults by their addresses, and other events, in two vectors
 * of the caller's. One thread writes it down while others take it; the lock is theirs alone.
 */
struct core_log {
	uint64_t lock[8];	/* a pthread_mutex_t */
	uint64_t *faults;
	struct core_event *events;
	uint64_t room;		/* of each vector */
	uint64_t n_faults, n_events;
	uint64_t delay_ns;	/* that each answer is to take longer, up to 5 ms in all */
};

/* To be called once, before all others. */
int64_t core_log_init(struct core_log *log);

/*
 * Read the messages that are there, or as many as the log may have room for. Write faults are
 * answered by taking the protection of the page away. Returns how many messages there were.
 */
int64_t core_log_answer(struct core_log *log, int32_t fd);

/*
 * Answer what comes, until `stop` can be read: 1; or until the log may have no room, perhaps
 * sooner: 0. It needs nobody meanwhile: a task whose fault waits may hold a lock that all other
 * threads of ours wait for.
 */
int64_t core_log_keep(struct core_log *log, int32_t fd, int32_t stop);

/* Move what is in the log to vectors as large as its own; counts says how many are in each. */
int64_t core_log_take(struct core_log *log, uint64_t *faults, struct core_event *events,
		      uint64_t counts[2]);

/*
 * Put pages where none are, from src, or of zeros. A page that is there already, or whose mapping
 * is not, is passed over, and whoever waits for it woken. Returns the bytes done: fewer than len
 * when an event has to be read first.
 */
int64_t core_uffd_copy(int32_t fd, uint64_t start, const void *src, uint64_t len);
int64_t core_uffd_zero(int32_t fd, uint64_t start, uint64_t len);

/*
 * Register whole mappings; done says of each whether it could be (not: EINVAL, EBUSY, ENOMEM,
 * EPERM). Returns how many.
 */
int64_t core_uffd_register(int32_t fd, const struct core_range *ranges, size_t n, uint64_t mode,
			   uint8_t *done);

/*
 * Write-protect ranges, or take that away. Returns how many were done: fewer than n when an event
 * has to be read first, or when something in the next range is not registered any more; where
 * protection is taken away, that is passed over.
 */
int64_t core_uffd_protect(int32_t fd, const struct core_range *ranges, size_t n, int32_t protect);

/*
 * A child of ours, forked by clone3(2) with the pids of set_tid (innermost namespace first), that
 * only waits to be seized. flags are clone3's. It waits on lifeline[0], of a pipe whose other end
 * only we have: if we die before we have seized it, it ends. Returns its pid.
 */
int64_t core_clone_paused(uint64_t flags, const int32_t *set_tid, size_t n,
			  const int32_t lifeline[2]);

/* ---- what is done to many things at once ---- */

enum { CORE_WHOLE = -1 };

/* A system call; or CORE_WHOLE: the file arg[0], from its begin. */
struct core_look {
	int64_t nr;
	uint64_t arg[6];
};

/*
 * Make the calls, and read the files one behind the other into buf. rets are the results, and the
 * lengths, or -errno. Returns how much of buf was filled, or -E2BIG.
 */
int64_t core_look(const struct core_look *looks, size_t n, int64_t *rets, void *buf, size_t size);

/*
 * Say of n files, as core_look() has read them twice, whether they have said the same: by their
 * lengths and what they said, one behind the other. Returns how many have not.
 */
int64_t core_same_said(const int64_t *lengths, const char *said, const int64_t *its_lengths,
		       const char *its, size_t n, uint8_t *same);

/*
 * A thread that looks while others go on. It stays in C: it has no lock to wait for. The first
 * looks, all files, are done before the rest, and can be had when they are.
 */
struct core_aside {
	const struct core_look *looks;
	size_t n, first;
	int64_t *rets;
	void *buf;
	size_t size;
	int64_t begun, result;	/* of core_look(): the first, and all */
	uint32_t state, pad;
};

/* What the thread does, until it is told to end; returns 0. */
int64_t core_aside_run(struct core_aside *aside);
/* Have it look at what has been filled in; to be ended before it is begun again. */
int64_t core_aside_begin(struct core_aside *aside);
/* Wait until it has done the first. Returns the result. */
int64_t core_aside_reach(struct core_aside *aside);
/* Wait until it has looked. Returns the result. */
int64_t core_aside_end(struct core_aside *aside);
/* Tell it to return, when it does nothing. */
int64_t core_aside_dismiss(struct core_aside *aside);

/*
 * Say for each pair whether the task's descriptor and ours are one open file (kcmp(2)). Returns
 * how many are not.
 */
int64_t core_same_files(int32_t pid, const int32_t *theirs, const int32_t *ours, size_t n,
			uint8_t *same);

/* Sort numbers and leave each but once. Returns how many are left. */
int64_t core_sort(uint64_t *numbers, size_t n);

/* Write ranges of a file, which lie one behind the other in buf; all of them, or -errno. */
int64_t core_pwrite_all(int32_t fd, const struct core_range *ranges, size_t n, const void *buf);

/*
 * Read n socket options, given as level and number; of each its length or -errno and 16 bytes go
 * to buf.
 */
int64_t core_getsockopts(int32_t fd, const int32_t *options, size_t n, int32_t *buf);

/* The slots of a stopped thread's GDT that set_thread_area(2) sets, as 48 bytes (cpu_x86_64.c). */
int64_t core_get_tls(int32_t tid, uint8_t tls[48]);

/* The cpuid instruction: eax, ebx, ecx, edx (cpu_x86_64.c). */
int64_t core_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t regs[4]);

/* ---- the stub: what runs inside a stopped task (remote_*.c) ---- */

enum core_call_flag {
	CORE_MUST = 0x40,	/* a negative result ends the batch here */
	CORE_FORK = 0x80,	/* it makes a process, which ends here unless its tracer has it */
};

/* One system call of a batch. Bit i of flags: argument i is not a value but where to load it. */
struct core_call {
	uint64_t nr;
	uint64_t arg[6];
	int64_t ret;
	uint64_t flags;
};

/*
 * What one thread needs to run a batch. It lies in memory that tracer and tracee share.
 * The stub makes the calls, then sends itself signo, at which the tracer has it stopped. If the
 * tracer is gone the signal is nothing (signo is one the task ignores) and the stub takes the
 * thread home by itself: signal mask, then every register.
 */
struct core_slot {
	struct core_regs home;
	uint64_t sigmask;
	uint64_t tgid, tid, signo;
	uint64_t count;		/* calls to make; -1 when the thread has left for home by itself */
	uint64_t done;		/* calls made */
	uint64_t pivot[16];	/* the stack on which the stub is entered by a `ret` */
	struct core_call call[];
};

/* A stopped thread that is lent to us, to make the batch in its slot. */
struct core_lent {
	struct core_regs regs;	/* its own */
	uint64_t sigmask;	/* its own, */
	uint64_t blocked;	/* and while it is away */
	struct core_slot *slot;	/* as we see it, */
	uint64_t there, entry;	/* as it does, and where it enters the stub */
	uint64_t tgid, count;	/* calls to make */
	int32_t tid, signo;	/* as in the slot */
	int32_t homeward;	/* whether it goes home when it is back */
	int32_t back;		/* 1: it has made its batch, and is home; -errno of what failed */
};

/* Write down in its slot what a thread needs. Returns 0. */
int64_t core_fill_slot(struct core_lent *lent);

/* Fill in the slots and set all n off; returns how many that has failed for. */
int64_t core_set_out(struct core_lent *lent, size_t n);

/*
 * Wait for all n, and give those their own registers that have made their batch to its end.
 * Returns how many that is. The others have told something else, or are not heard of yet.
 */
int64_t core_come_back(struct core_lent *lent, struct core_told *told, size_t n);

/*
 * Have registers be those with which a stopped thread goes on by itself: a call that the stop has
 * interrupted is made again as the kernel would have (arch_do_signal_or_restart). Returns 0.
 */
int64_t core_home(struct core_regs *regs);

/* Have registers lead into the stub: to entry, with the slot that it sees there. Returns 0. */
int64_t core_lead(struct core_regs *regs, uint64_t entry, uint64_t there);

/* The stub's code, position independent. Returns its length. */
int64_t core_stub(const uint8_t **code);

/* Where in it a thread begins that has its slot in r15 and its own stack. */
int64_t core_stub_entry(void);
#endif
