// SPDX-License-Identifier: Apache-2.0
/*
 * Memory that is used the very moment it is restored, in the way that the argument names: while a
 * lazy restore still fills it in. `go` is there before the restore, so nothing is waited for.
 */
#include "lazy_area.h"
#include <malloc.h>
#include <pthread.h>
#include <sys/uio.h>

enum { THREADS = 8, ADVICE_POPULATE_WRITE = 23 };
enum { HEAP = 16 << 20 };

static char *heap;

static void sequential(void)
{
	check_all();
}

static void random_order(void)
{
	for (size_t i = 0; i < PAGES; i++)
		check(intact(shuffled(i), PAGE), "at %#zx", shuffled(i));
}

static void writes(void)
{
	for (size_t i = 0; i < PAGES; i++)
		area[shuffled(i) + 100]++;
	for (size_t i = 0; i < PAGES; i++)
		area[i * PAGE + 100]--;
	check_all();
}

static void into_buffers(void)
{
	int zeros = open("/dev/zero", O_RDONLY);
	for (size_t at = SIZE - STEP; at; at -= STEP) {
		check_is(read(zeros, area + at - 100, 2 * PAGE + 200), 2 * PAGE + 200);
		check(all_zero(area + at - 100, 2 * PAGE + 200));
		check(intact(at - STEP + 2 * PAGE + 100, STEP - 2 * PAGE - 200), "before %#zx", at);
		check(intact(at + 2 * PAGE + 100, PAGE), "after %#zx", at);
	}
}

static void out_of_buffers(void)
{
	char *copy = malloc(STEP);
	int file = open(path("out"), O_RDWR | O_CREAT | O_TRUNC, 0600);
	for (size_t at = SIZE - STEP; at; at -= STEP) {
		check_is(pwrite(file, area + at + 10, STEP - 20, 0), STEP - 20);
		check_is(pread(file, copy, STEP - 20, 0), STEP - 20);
		check(is_from(copy, at + 10, STEP - 20), "at %#zx", at);
	}
}

static void direct_io(void)
{
	int file = open(path("out"), O_RDWR | O_CREAT | O_TRUNC | O_DIRECT, 0600);
	if (file < 0)
		return;
	check_is(pwrite(file, area + SIZE / 2, STEP, 0), STEP);
	check_is(pread(file, area + SIZE / 2 + 2 * STEP, STEP, 0), STEP);
	check(is_from(area + SIZE / 2 + 2 * STEP, SIZE / 2, STEP));
	check(intact(SIZE / 2 + STEP, STEP));
}

static void forks(void)
{
	pid_t child[3];
	for (int i = 0; i < 3; i++) {
		child[i] = fork();
		if (!child[i] && i == 1 && fork() == 0)
			_exit(all_right()); /* a grandchild whose parent goes on */
		if (!child[i])
			_exit(all_right());
		area[i * STEP] ^= 1; /* not seen by those before */
		area[i * STEP] ^= 1;
	}
	for (size_t i = 0; i < PAGES; i++)
		area[i * PAGE] ^= 0x55;
	for (int i = 0; i < 3; i++)
		reap(child[i]);
	for (size_t i = 0; i < PAGES; i++)
		area[i * PAGE] ^= 0x55;
	check_all();
}

static void many_forks(void)
{
	for (int i = 0; i < 40; i++) {
		size_t at = SIZE - (i + 1) * STEP;
		pid_t child = fork();
		if (!child)
			_exit(!intact(at, 4 * PAGE) || !intact(SIZE / 2, PAGE));
		reap(child);
	}
	check_all();
}

static void moves_in_child(void)
{
	pid_t child = fork();
	if (!child) {
		char *moved = mremap(area + SIZE / 2, STEP, STEP, MREMAP_MAYMOVE | MREMAP_FIXED,
				     area + SIZE - STEP);
		madvise(area, STEP, MADV_DONTNEED);
		_exit(!is_from(moved, SIZE / 2, STEP) || !all_zero(area, STEP) ||
		      !intact(STEP, STEP));
	}
	reap(child);
	check_all();
}

static pthread_barrier_t together;
static int wrong;

static void *one_page_together(void *arg)
{
	for (size_t i = PAGES; i; i -= 64) {
		pthread_barrier_wait(&together);
		if (!intact((i - 1) * PAGE, PAGE))
			__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
	}
	return arg;
}

static void threads(void)
{
	pthread_t thread[THREADS];
	pthread_barrier_init(&together, NULL, THREADS);
	for (int i = 0; i < THREADS; i++)
		check(!pthread_create(&thread[i], NULL, one_page_together, NULL));
	for (int i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	check_is(wrong, 0);
	check_all();
}

static void mremaps(void)
{
	char *free_place = mmap(NULL, 4 * STEP, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	/* To elsewhere; over other memory of the kind; smaller and to elsewhere; larger. */
	char *there = mremap(area + SIZE - STEP, STEP, STEP, MREMAP_MAYMOVE | MREMAP_FIXED, free_place);
	char *over = mremap(area + SIZE / 2, STEP, STEP, MREMAP_MAYMOVE | MREMAP_FIXED,
			    area + SIZE / 2 + 4 * STEP);
	char *less = mremap(area + SIZE / 2 + STEP, STEP, STEP / 2, MREMAP_MAYMOVE | MREMAP_FIXED,
			    area + SIZE / 2 + 8 * STEP);
	char *more = mremap(area + SIZE / 4, STEP, 2 * STEP, MREMAP_MAYMOVE);
	check(is_from(there, SIZE - STEP, STEP));
	check(is_from(over, SIZE / 2, STEP));
	check(is_from(less, SIZE / 2 + STEP, STEP / 2));
	check(intact(SIZE / 2 + 8 * STEP + STEP / 2, STEP / 2)); /* behind what came there */
	check(is_from(more, SIZE / 4, STEP));
	check(all_zero(more + STEP, STEP));
	check(intact(0, SIZE / 4) && intact(SIZE / 4 + STEP, SIZE / 4 - STEP));
	check(intact(SIZE / 2 + 2 * STEP, 2 * STEP) && intact(SIZE / 2 + 5 * STEP, 3 * STEP));
	check(intact(SIZE / 2 + 9 * STEP, SIZE / 2 - 10 * STEP));
}

static void moves_and_stays(void)
{
	char *moved = mremap(area + SIZE / 2, STEP, STEP, MREMAP_MAYMOVE | 4 /* DONTUNMAP */);
	if (moved == MAP_FAILED)
		return;
	check(all_zero(area + SIZE / 2, STEP));
	check(is_from(moved, SIZE / 2, STEP));
	check(intact(0, SIZE / 2) && intact(SIZE / 2 + STEP, SIZE / 2 - STEP));
}

/* Every other MiB of the upper half goes; what comes in its place is zeros. */
static void holes(int (*make)(char *at))
{
	for (size_t at = SIZE - STEP; at >= SIZE / 2; at -= 2 * STEP)
		check_is(make(area + at), 0);
	for (size_t at = SIZE / 2; at < SIZE; at += 2 * STEP) {
		check(intact(at, STEP), "at %#zx", at);
		check(all_zero(area + at + STEP, STEP), "at %#zx", at + STEP);
	}
	check(intact(0, SIZE / 2));
}

static int map_over(char *at)
{
	return mmap(at, STEP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
	       != at;
}

static int unmap(char *at)
{
	return munmap(at, STEP) || map_over(at);
}

static int discard(char *at)
{
	return madvise(at, STEP, MADV_DONTNEED);
}

static void unmaps(void)
{
	holes(unmap);
}

static void maps_over(void)
{
	holes(map_over);
}

static void discards(void)
{
	holes(discard);
}

static void frees(void)
{
	madvise(area, SIZE, MADV_FREE); /* what was not there yet stays what it was */
	for (size_t i = 0; i < PAGES; i++)
		check(intact(i * PAGE, PAGE) || all_zero(area + i * PAGE, PAGE), "at %#zx", i * PAGE);
}

static void protects(void)
{
	int kinds[] = {PROT_READ, PROT_NONE, PROT_READ | PROT_WRITE, PROT_READ};
	for (size_t i = 0; i < PAGES; i += 5)
		check(!mprotect(area + i * PAGE, PAGE * 2, kinds[i / 5 % 4]));
	check(!mprotect(area, SIZE, PROT_READ));
	check_all();
}

static void programs_break(void)
{
	check_is(sbrk(-HEAP / 2) != (void *)-1, 1);
	check_is(sbrk(HEAP / 2) != (void *)-1, 1);
	check(all_zero(heap + HEAP / 2, HEAP / 2));
	check(is_from(heap, 0, HEAP / 2));
	check_all();
}

static void locks(void)
{
	if (mlock(area + SIZE / 2, 16 * STEP) && errno == ENOMEM)
		return;
	check_is(resident(area + SIZE / 2 + STEP), 1);
	check_all();
}

static void advises(void)
{
	madvise(area + SIZE / 2, 8 * STEP, ADVICE_POPULATE_WRITE);
	madvise(area + SIZE / 4, 8 * STEP, MADV_WILLNEED);
	madvise(area, SIZE, MADV_HUGEPAGE);
	madvise(area + SIZE / 2 + 8 * STEP, 8 * STEP, 25 /* MADV_COLLAPSE */);
	check_all();
}

static void from_outside(void)
{
	char *copy = malloc(STEP);
	pid_t parent = getpid(), child = fork();
	if (!child) {
		struct iovec to = {copy, STEP}, from = {area + SIZE / 2, STEP};
		if (process_vm_readv(parent, &to, 1, &from, 1, 0) != STEP)
			_exit(2);
		_exit(!is_from(copy, SIZE / 2, STEP));
	}
	reap(child);
	check_all();
}

static __attribute__((noinline)) int deeper(int depth)
{
	volatile char frame[4000];
	fill((void *)frame, sizeof(frame), depth);
	int below = depth ? deeper(depth - 1) : 0;
	return below + (differs((void *)frame, sizeof(frame), depth) != -1);
}

static void stack(void)
{
	check_is(deeper(1500), 0);
	check_all();
}

static void replaces_itself(void)
{
	execl("/proc/self/exe", "lazy", dir, "replaced", NULL);
}

/* A few pages here and there, at once. */
static void here_and_there(void)
{
	for (size_t i = 1; i <= 100; i++)
		check(intact(shuffled(i * 41), PAGE), "at %#zx", shuffled(i * 41));
}

static void leaves_at_once(void)
{
	check(intact(SIZE - PAGE, PAGE));
}

/* As all_right, but for pages that slowly() discards. */
static int most_right(void)
{
	for (size_t i = 0; i < PAGES; i++)
		if (shuffled(i) % STEP && !intact(shuffled(i), PAGE))
			return 1;
	return 0;
}

/* Time enough to kill pagers: whatever comes of them, each byte has to be right. */
static void slowly(void)
{
	for (size_t at = SIZE; at; at -= STEP) {
		usleep(2000);
		check(intact(at - STEP, STEP), "at %#zx", at - STEP);
		pid_t child = at / STEP % 8 ? 0 : fork();
		if (at / STEP % 8 == 0 && !child) {
			usleep(2000);
			_exit(most_right());
		}
		if (child > 0 && at / STEP % 16 == 0)
			reap(child);
		else if (child > 0)
			check(madvise(area + at - STEP, PAGE, MADV_DONTNEED) == 0);
	}
	while (wait(NULL) > 0)
		;
	for (size_t at = 0; at < SIZE; at += STEP)
		check((at / STEP + 1) % 16 == 8 ? all_zero(area + at, PAGE) : intact(at, PAGE), "%#zx", at);
	for (size_t at = 0; at < SIZE; at += STEP)
		check(intact(at + PAGE, STEP - PAGE), "at %#zx", at);
}

/* All of it, to the kernel: it must not copy what is not there, whoever dies meanwhile. */
static void copies_out(void)
{
	int file = open(path("out"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
	for (size_t at = 0; at < SIZE; at += STEP)
		check_is(write(file, area + at, STEP), STEP);
}

/* Touch everything, and die of it where a page cannot be had. */
static void until_it_hurts(void)
{
	catch_faults();
	int hurt = 0;
	for (size_t i = 0; i < PAGES; i++) {
		if (faults(area + shuffled(i), false))
			hurt++;
		else
			check(intact(shuffled(i), PAGE), "at %#zx", shuffled(i));
	}
	char text[64];
	snprintf(text, sizeof(text), "%d", hurt);
	tell("hurt", text);
}

static const struct {
	const char *name;
	void (*use)(void);
} ways[] = {
	{"sequential", sequential}, {"random", random_order}, {"writes", writes},
	{"into-buffers", into_buffers}, {"out-of-buffers", out_of_buffers}, {"direct-io", direct_io},
	{"forks", forks}, {"many-forks", many_forks}, {"moves-in-child", moves_in_child},
	{"threads", threads}, {"mremaps", mremaps}, {"moves-and-stays", moves_and_stays},
	{"unmaps", unmaps}, {"maps-over", maps_over}, {"discards", discards}, {"frees", frees},
	{"protects", protects}, {"break", programs_break}, {"locks", locks}, {"advises", advises},
	{"from-outside", from_outside}, {"stack", stack}, {"execs", replaces_itself},
	{"leaves", leaves_at_once}, {"here-and-there", here_and_there}, {"slowly", slowly},
	{"until-it-hurts", until_it_hurts}, {"copies-out", copies_out},
};

int main(int argc, char **argv)
{
	begin(argc, argv);
	need(argc == 3);
	if (!strcmp(argv[2], "replaced"))
		return verdict();
	mallopt(M_MMAP_THRESHOLD, 0); /* the heap is ours */
	heap = sbrk(HEAP);
	fill(heap, HEAP, SEED);
	area = map_anonymous(SIZE, MAP_PRIVATE);
	fill(area, SIZE, SEED);
	if (!strcmp(argv[2], "copies-out")) {
		int file = open(path("expected"), O_WRONLY | O_CREAT, 0600);
		need(write(file, area, SIZE) == SIZE && !close(file));
	}
	checkpoint();
	for (size_t i = 0; i < lengthof(ways); i++)
		if (!strcmp(argv[2], ways[i].name))
			ways[i].use();
	return verdict();
}
