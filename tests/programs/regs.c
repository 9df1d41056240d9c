// SPDX-License-Identifier: Apache-2.0
/*
 * Registers of threads that spin in user mode: integer, x87, SSE, AVX, AVX-512 and mask registers,
 * their control words, the bases of fs and gs. A thread loads them, spins until told, stores them.
 */
#include "program.h"
#include <asm/prctl.h>
#include <pthread.h>
#include <stddef.h>

struct registers {
	uint64_t integer[14]; /* rax rbx rcx rdx rsi rdi rbp r8-r14 */
	uint64_t mask[8];
	uint32_t mxcsr;
	uint16_t control, status;
	unsigned char x87[8][16];
	unsigned char vector[32][64];
	uint64_t fs_base, gs_base;
};

/* The offsets that the assembly uses. */
_Static_assert(offsetof(struct registers, mask) == 112, "");
_Static_assert(offsetof(struct registers, mxcsr) == 176, "");
_Static_assert(offsetof(struct registers, x87) == 184, "");
_Static_assert(offsetof(struct registers, vector) == 312, "");

volatile int stop;

#define EACH(numbers, line) ".irp i," numbers "\n" line "\n.endr\n"
#define TO8 "0,1,2,3,4,5,6,7"
#define TO16 TO8 ",8,9,10,11,12,13,14,15"
#define TO32 TO16 ",16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31"

/* void name(const struct registers *from, struct registers *to) */
#define SPIN(name, load_vectors, store_vectors) \
	void name(const struct registers *from, struct registers *to); \
	asm(".globl " #name "\n" #name ":\n" \
	    "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; push %rsi\n" \
	    "mov %rdi, %r15\n" \
	    "fninit\n" \
	    EACH("7,6,5,4,3,2,1,0", "fldt \\i*16+184(%r15)") \
	    "fldcw 180(%r15)\n" \
	    "ldmxcsr 176(%r15)\n" \
	    load_vectors \
	    "mov (%r15), %rax; mov 8(%r15), %rbx; mov 16(%r15), %rcx; mov 24(%r15), %rdx\n" \
	    "mov 32(%r15), %rsi; mov 40(%r15), %rdi; mov 48(%r15), %rbp\n" \
	    EACH("8,9,10,11,12,13,14", "mov (\\i-1)*8(%r15), %r\\i") \
	    "1: cmpl $0, stop(%rip)\n" \
	    "je 1b\n" \
	    "mov (%rsp), %r15\n" \
	    "mov %rax, (%r15); mov %rbx, 8(%r15); mov %rcx, 16(%r15); mov %rdx, 24(%r15)\n" \
	    "mov %rsi, 32(%r15); mov %rdi, 40(%r15); mov %rbp, 48(%r15)\n" \
	    EACH("8,9,10,11,12,13,14", "mov %r\\i, (\\i-1)*8(%r15)") \
	    store_vectors \
	    "stmxcsr 176(%r15)\n" \
	    "fnstcw 180(%r15)\n" \
	    "fnstsw 182(%r15)\n" \
	    EACH(TO8, "fstpt \\i*16+184(%r15)") \
	    "fninit\n" \
	    "movl $0x1f80, -4(%rsp); ldmxcsr -4(%rsp)\n" \
	    "pop %rsi; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n" \
	    "ret\n")

SPIN(spin_sse, EACH(TO16, "movups \\i*64+312(%r15), %xmm\\i"),
     EACH(TO16, "movups %xmm\\i, \\i*64+312(%r15)"));
SPIN(spin_avx, EACH(TO16, "vmovups \\i*64+312(%r15), %ymm\\i"),
     EACH(TO16, "vmovups %ymm\\i, \\i*64+312(%r15)"));
SPIN(spin_avx512,
     EACH(TO32, "vmovups \\i*64+312(%r15), %zmm\\i") EACH(TO8, "kmovq \\i*8+112(%r15), %k\\i"),
     EACH(TO32, "vmovups %zmm\\i, \\i*64+312(%r15)") EACH(TO8, "kmovq %k\\i, \\i*8+112(%r15)"));

struct thread {
	void (*spin)(const struct registers *, struct registers *);
	struct registers before, after;
	pthread_t thread;
	volatile bool started;
};

static void read_bases(struct registers *r)
{
	syscall(SYS_arch_prctl, ARCH_GET_FS, &r->fs_base);
	syscall(SYS_arch_prctl, ARCH_GET_GS, &r->gs_base);
}

static void *run(void *argument)
{
	struct thread *self = argument;
	syscall(SYS_arch_prctl, ARCH_SET_GS, &self->before);
	read_bases(&self->before);
	self->started = true;
	self->spin(&self->before, &self->after);
	read_bases(&self->after);
	return NULL;
}

static void start(struct thread *self, int vectors, int vector_size, bool masks)
{
	struct registers *r = &self->before;
	int seed = vector_size;
	fill(r->integer, sizeof(r->integer), seed);
	if (masks)
		fill(r->mask, sizeof(r->mask), seed + 1);
	r->mxcsr = 0x1f80 | 0x6000 | 0x8000; /* round to zero, flush to zero */
	r->control = 0x0c7f; /* round to zero, 24 bits */
	for (int i = 0; i < 8; i++) {
		long double value = 1.25L * (i + 1) + seed;
		memcpy(r->x87[i], &value, 10);
	}
	for (int i = 0; i < vectors; i++)
		fill(r->vector[i], vector_size, seed + i);
	self->after = *r;
	need(!pthread_create(&self->thread, NULL, run, self));
	while (!self->started)
		usleep(1000);
}

static void compare(struct thread *self, const char *name)
{
	struct registers *was = &self->before, *is = &self->after;
	for (unsigned i = 0; i < lengthof(was->integer); i++)
		check(was->integer[i] == is->integer[i], "%s, integer register %u", name, i);
	for (unsigned i = 0; i < lengthof(was->mask); i++)
		check(was->mask[i] == is->mask[i], "%s, k%u", name, i);
	for (unsigned i = 0; i < lengthof(was->vector); i++)
		check(!memcmp(was->vector[i], is->vector[i], 64), "%s, vector %u", name, i);
	for (unsigned i = 0; i < lengthof(was->x87); i++)
		check(!memcmp(was->x87[i], is->x87[i], 10), "%s, x87 %u", name, i);
	check(was->mxcsr == is->mxcsr, "%s: %#x %#x", name, was->mxcsr, is->mxcsr);
	check(was->control == is->control, "%s: %#x %#x", name, was->control, is->control);
	check(was->fs_base == is->fs_base, "%s", name);
	check(was->gs_base == is->gs_base, "%s", name);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	static struct thread sse = {.spin = spin_sse}, avx = {.spin = spin_avx};
	static struct thread avx512 = {.spin = spin_avx512};
	bool has_avx = __builtin_cpu_supports("avx"), has_avx512 = __builtin_cpu_supports("avx512bw");

	start(&sse, 16, 16, false);
	if (has_avx)
		start(&avx, 16, 32, false);
	if (has_avx512)
		start(&avx512, 32, 64, true);

	checkpoint();

	stop = 1;
	pthread_join(sse.thread, NULL);
	compare(&sse, "sse");
	if (has_avx) {
		pthread_join(avx.thread, NULL);
		compare(&avx, "avx");
	}
	if (has_avx512) {
		pthread_join(avx512.thread, NULL);
		compare(&avx512, "avx512");
	}
	return verdict();
}
