/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stub for x86-64. It uses no memory but its slot and touches neither FPU nor TLS, so that a
 * thread can be taken home by plain instructions: rt_sigreturn would do it in one go, but forgets
 * the thread's restart_block, and a sleeping nanosleep would end with EINTR.
 *
 * Entered behind its first instruction with the slot in r15 and the thread's own stack, which it does
 * not use: should nobody trace the thread any more, its signals come, and push their frames there. Or
 * at its begin with rsp just above slot.pivot, by a `ret` from a gadget of the task's own code.
 */
#include "core.h"

#define SLOT_SP		152
#define SLOT_SIGMASK	216
#define SLOT_TGID	224
#define SLOT_TID	232
#define SLOT_SIGNO	240
#define SLOT_COUNT	248
#define SLOT_DONE	256
#define SLOT_PIVOT	264
#define SLOT_CALL	392
#define STR(x)		STR_(x)
#define STR_(x)		#x

_Static_assert(offsetof(struct core_slot, home.sp) == SLOT_SP, "");
_Static_assert(offsetof(struct core_slot, sigmask) == SLOT_SIGMASK, "");
_Static_assert(offsetof(struct core_slot, tgid) == SLOT_TGID, "");
_Static_assert(offsetof(struct core_slot, tid) == SLOT_TID, "");
_Static_assert(offsetof(struct core_slot, signo) == SLOT_SIGNO, "");
_Static_assert(offsetof(struct core_slot, count) == SLOT_COUNT, "");
_Static_assert(offsetof(struct core_slot, done) == SLOT_DONE, "");
_Static_assert(offsetof(struct core_slot, pivot) == SLOT_PIVOT, "");
_Static_assert(offsetof(struct core_slot, call) == SLOT_CALL, "");
_Static_assert(sizeof(struct core_call) == 72, "");

extern const uint8_t core_stub_begin[], core_stub_with_slot[], core_stub_end[];

/* Load argument n of the call at r13 into reg, through a pointer if bit n of ebp says so. */
#define ARGUMENT(n, reg)						\
	"	mov	8+8*" #n "(%r13), " reg "\n"			\
	"	bt	$" #n ", %ebp\n"				\
	"	jnc	7" #n "f\n"					\
	"	mov	(" reg "), " reg "\n"				\
	"7" #n ":\n"

__asm__(
	"	.pushsection .rodata\n"
	"	.globl	core_stub_begin, core_stub_with_slot, core_stub_end\n"
	"	.hidden	core_stub_begin, core_stub_with_slot, core_stub_end\n"
	"core_stub_begin:\n"
	"	lea	-" STR(SLOT_CALL) "(%rsp), %r15\n"
	"core_stub_with_slot:\n"				/* r15: the slot */
	"	mov	" STR(SLOT_COUNT) "(%r15), %r14\n"	/* r14: calls left */
	"	lea	" STR(SLOT_CALL) "(%r15), %r13\n"	/* r13: the call */
	"	movq	$0, " STR(SLOT_DONE) "(%r15)\n"
	"1:	test	%r14, %r14\n"
	"	jz	2f\n"
	"	mov	64(%r13), %ebp\n"			/* ebp: its flags */
	ARGUMENT(0, "%rdi")
	ARGUMENT(1, "%rsi")
	ARGUMENT(2, "%rdx")
	ARGUMENT(3, "%r10")
	ARGUMENT(4, "%r8")
	ARGUMENT(5, "%r9")
	"	mov	(%r13), %rax\n"
	"	syscall\n"
	"	test	%rax, %rax\n"
	"	jnz	3f\n"
	"	test	$0x80, %ebp\n"				/* CORE_FORK, and this is the child */
	"	jnz	4f\n"
	"3:	mov	%rax, 56(%r13)\n"
	"	incq	" STR(SLOT_DONE) "(%r15)\n"
	"	add	$72, %r13\n"
	"	dec	%r14\n"
	"	test	%rax, %rax\n"
	"	jns	1b\n"
	"	test	$0x40, %ebp\n"				/* CORE_MUST */
	"	jz	1b\n"
	"2:	mov	" STR(SLOT_SP) "(%r15), %rsp\n"
	"	mov	" STR(SLOT_TGID) "(%r15), %rdi\n"	/* tgkill: the tracer stops us here */
	"	mov	" STR(SLOT_TID) "(%r15), %rsi\n"
	"	mov	" STR(SLOT_SIGNO) "(%r15), %rdx\n"
	"	mov	$234, %eax\n"
	"	syscall\n"
	"	mov	$14, %eax\n"				/* rt_sigprocmask(SIG_SETMASK) */
	"	mov	$2, %edi\n"
	"	lea	" STR(SLOT_SIGMASK) "(%r15), %rsi\n"
	"	xor	%edx, %edx\n"
	"	mov	$8, %r10d\n"
	"	syscall\n"
	"	movq	$-1, " STR(SLOT_COUNT) "(%r15)\n"	/* CORE_LEFT */
	"	mov	1*8(%r15), %r14\n"
	"	mov	2*8(%r15), %r13\n"
	"	mov	3*8(%r15), %r12\n"
	"	mov	4*8(%r15), %rbp\n"
	"	mov	5*8(%r15), %rbx\n"
	"	mov	6*8(%r15), %r11\n"
	"	mov	7*8(%r15), %r10\n"
	"	mov	8*8(%r15), %r9\n"
	"	mov	9*8(%r15), %r8\n"
	"	mov	10*8(%r15), %rax\n"
	"	mov	11*8(%r15), %rcx\n"
	"	mov	12*8(%r15), %rdx\n"
	"	mov	13*8(%r15), %rsi\n"
	"	mov	14*8(%r15), %rdi\n"
	"	lea	16*8(%r15), %rsp\n"			/* ip, cs, flags, sp, ss for iretq */
	"	mov	(%r15), %r15\n"
	"	iretq\n"
	"4:	xor	%edi, %edi\n"
	"	mov	$231, %eax\n"				/* exit_group */
	"	syscall\n"
	"core_stub_end:\n"
	"	.popsection\n");

enum {
	RESTART_SYSCALL = 219,
	ERESTARTSYS = 512,
	ERESTARTNOINTR = 513,
	ERESTARTNOHAND = 514,
	ERESTART_RESTARTBLOCK = 516,
	SYSCALL_SIZE = 2,
};

static void call_again(struct core_regs *regs, uint64_t nr)
{
	regs->ip -= SYSCALL_SIZE;
	regs->ax = nr;
}

int64_t core_home(struct core_regs *regs)
{
	if ((int64_t)regs->orig_ax < 0)
		return 0;
	switch (-(int64_t)regs->ax) {
	case ERESTARTSYS:
	case ERESTARTNOINTR:
	case ERESTARTNOHAND:
		call_again(regs, regs->orig_ax);
		break;
	case ERESTART_RESTARTBLOCK:
		call_again(regs, RESTART_SYSCALL);
		break;
	}
	regs->orig_ax = -1;
	return 0;
}

int64_t core_lead(struct core_regs *regs, uint64_t entry, uint64_t there)
{
	regs->ip = entry;
	regs->r15 = there;
	regs->orig_ax = -1;
	return 0;
}

int64_t core_stub(const uint8_t **code)
{
	*code = core_stub_begin;
	return core_stub_end - core_stub_begin;
}

int64_t core_stub_entry(void)
{
	return core_stub_with_slot - core_stub_begin;
}
