// SPDX-License-Identifier: Apache-2.0
/*
 * As lazy.c, for memory of other kinds: shared with children and between mappings, in huge pages, in
 * a memfd. The first word of the argument is the kind, the rest the way it is used.
 */
#include "lazy_area.h"
#include <pthread.h>

enum { HUGE = 2 << 20 };

static char *twin; /* a second mapping of the upper half, where there is one */
static int open_file = -1;

static void sequential(void)
{
	check_all();
}

static void random_order(void)
{
	check_is(all_right(), 0);
}

/* What one process writes the others see, wherever it was first touched. */
static void between_processes(void)
{
	for (size_t at = 0; at < SIZE; at += STEP) {
		pid_t child = fork();
		if (!child) {
			area[at + 5 * PAGE] ^= 0x55;
			_exit(!intact(SIZE - STEP - at, PAGE));
		}
		check(intact(SIZE - STEP - at, PAGE));
		reap(child);
		check((unsigned char)area[at + 5 * PAGE] == (pattern(at + 5 * PAGE, SEED) ^ 0x55));
		area[at + 5 * PAGE] ^= 0x55;
	}
	check_all();
}

static void children_alone(void)
{
	pid_t child[4];
	for (int i = 0; i < 4; i++)
		if (!(child[i] = fork()))
			_exit(all_right());
	check_is(munmap(area + SIZE / 2, SIZE / 2), 0);
	for (int i = 0; i < 4; i++)
		reap(child[i]);
	check(intact(0, SIZE / 2));
}

static void through_the_twin(void)
{
	check(is_from(twin + SIZE / 4, SIZE / 2 + SIZE / 4, STEP));
	twin[SIZE / 8]++;
	area[SIZE / 2 + SIZE / 8]--;
	check_is(munmap(area + SIZE / 2, SIZE / 2), 0);
	check(intact(0, SIZE / 2));
	check(is_from(twin, SIZE / 2, SIZE / 2));
}

/* A second mapping, made now; and one that is made larger again. */
static void maps_again(void)
{
	char *again = mremap(area + SIZE / 2, 0, SIZE / 2, MREMAP_MAYMOVE);
	check(again != MAP_FAILED);
	check(is_from(again + SIZE / 4, SIZE / 2 + SIZE / 4, STEP));
	char *less = mremap(area, SIZE / 4, STEP, 0);
	char *more = mremap(less, STEP, SIZE / 4, MREMAP_MAYMOVE);
	check(is_from(more, 0, SIZE / 4));
	check(is_from(again, SIZE / 2, SIZE / 2));
}

static void moves(void)
{
	char *place = mmap(NULL, SIZE / 4, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	place = (char *)(((uintptr_t)place + HUGE - 1) & -(uintptr_t)HUGE);
	char *moved = mremap(area + SIZE / 2, 8 * STEP, 8 * STEP, MREMAP_MAYMOVE | MREMAP_FIXED, place);
	check(moved == place);
	check(is_from(moved + 3 * STEP, SIZE / 2 + 3 * STEP, STEP));
	check(intact(SIZE / 2 + 8 * STEP, SIZE / 2 - 8 * STEP));
	check(is_from(moved, SIZE / 2, 8 * STEP));
	check(intact(0, SIZE / 2));
}

/* Every other 2 MiB of the upper half goes, for all. */
static void removes(void)
{
	for (size_t at = SIZE - HUGE; at >= SIZE / 2; at -= 2 * HUGE)
		check_is(madvise(area + at, HUGE, MADV_REMOVE), 0);
	for (size_t at = SIZE / 2; at < SIZE; at += 2 * HUGE) {
		check(intact(at, HUGE), "at %#zx", at);
		check(all_zero(area + at + HUGE, HUGE), "at %#zx", at + HUGE);
	}
	check(intact(0, SIZE / 2));
}

/* Only this mapping lets go of it: it is all there still. */
static void discards(void)
{
	for (size_t at = SIZE - HUGE; at >= SIZE / 2; at -= 2 * HUGE)
		check_is(madvise(area + at, HUGE, MADV_DONTNEED), 0);
	check_all();
}

static void *discard_again_and_again(void *arg)
{
	for (size_t at = SIZE / 2; at < SIZE; at += HUGE)
		check_is(madvise(area + at, HUGE, arg ? MADV_REMOVE : MADV_DONTNEED), 0);
	return NULL;
}

/* Two threads at a time, so that one kind is not taken for the other. */
static void removes_and_discards(void)
{
	pthread_t thread;
	check(!pthread_create(&thread, NULL, discard_again_and_again, area));
	for (size_t at = 0; at < SIZE / 2; at += HUGE)
		check_is(madvise(area + at, HUGE, MADV_DONTNEED), 0);
	pthread_join(thread, NULL);
	check(intact(0, SIZE / 2));
	check(all_zero(area + SIZE / 2, SIZE / 2));
}

static void out_of_buffers(void)
{
	int file = open(path("out"), O_RDWR | O_CREAT | O_TRUNC, 0600);
	char *copy = malloc(STEP);
	for (size_t at = SIZE - STEP; at; at -= STEP) {
		check_is(pwrite(file, area + at + 10, STEP - 20, 0), STEP - 20);
		check_is(pread(file, copy, STEP - 20, 0), STEP - 20);
		check(is_from(copy, at + 10, STEP - 20), "at %#zx", at);
	}
}

static void by_descriptor(void)
{
	char *copy = malloc(STEP), *again;
	check_is(pread(open_file, copy, STEP, SIZE - STEP), STEP);
	check(is_from(copy, SIZE - STEP, STEP));
	again = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, open_file, 0);
	check(is_from(again + SIZE / 2, SIZE / 2, STEP));
	check_all();
}

static void slowly(void)
{
	for (size_t at = SIZE; at; at -= STEP) {
		usleep(2000);
		check(intact(at - STEP, STEP), "at %#zx", at - STEP);
		pid_t child = at / STEP % 8 ? 0 : fork();
		if (at / STEP % 8 == 0 && !child)
			_exit(all_right());
		if (child > 0)
			reap(child);
	}
	check_is(madvise(area, HUGE, MADV_REMOVE), 0);
	check(all_zero(area, HUGE));
	check(intact(HUGE, SIZE - HUGE));
}

/* How much of the area is in huge pages, in KiB. */
static long in_huge_pages(void)
{
	return atol(smaps_line(area, "AnonHugePages:") + strlen("AnonHugePages:"));
}

/* Huge pages that the kernel has made are so again, when all pages have come. */
static void stays_huge(void)
{
	check_all();
	for (int i = 0; i < 1000 && in_huge_pages() < SIZE / 1024 / 2; i++)
		usleep(10000);
	check(in_huge_pages() >= SIZE / 1024 / 2, "only %ld KiB", in_huge_pages());
	check_all();
}

static const struct {
	const char *name;
	void (*use)(void);
} ways[] = {
	{"sequential", sequential}, {"random", random_order},
	{"between-processes", between_processes}, {"children-alone", children_alone},
	{"twin", through_the_twin}, {"maps-again", maps_again}, {"moves", moves},
	{"removes", removes}, {"discards", discards},
	{"removes-and-discards", removes_and_discards}, {"out-of-buffers", out_of_buffers},
	{"by-descriptor", by_descriptor}, {"stays-huge", stays_huge}, {"slowly", slowly},
};

static char *memory_file(bool keep)
{
	int fd = memfd_create("lazy", MFD_CLOEXEC);
	need(fd >= 0 && !ftruncate(fd, SIZE));
	char *mapped = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (keep)
		open_file = fd;
	else
		close(fd);
	return mapped;
}

static char *transparent(void)
{
	char *wide = map_anonymous(SIZE + HUGE, MAP_PRIVATE);
	char *aligned = (char *)(((uintptr_t)wide + HUGE - 1) & -(uintptr_t)HUGE);
	if (aligned > wide)
		munmap(wide, aligned - wide);
	munmap(aligned + SIZE, wide + HUGE - aligned);
	need(!madvise(aligned, SIZE, MADV_HUGEPAGE));
	fill(aligned, SIZE, SEED);
	area = aligned;
	if (in_huge_pages() < SIZE / 1024 / 2)
		skip("the kernel makes no huge pages");
	return aligned;
}

static char *make(const char *kind)
{
	if (!strcmp(kind, "transparent"))
		return transparent();
	if (!strcmp(kind, "huge")) {
		char *huge = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
		if (huge == MAP_FAILED)
			skip("no huge pages: %s", strerror(errno));
		return huge;
	}
	if (!strcmp(kind, "memfd"))
		return memory_file(false);
	if (!strcmp(kind, "open"))
		return memory_file(true);
	return map_anonymous(SIZE, MAP_SHARED);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	need(argc == 4);
	area = make(argv[2]);
	fill(area, SIZE, SEED);
	if (!strcmp(argv[3], "twin"))
		twin = mremap(area + SIZE / 2, 0, SIZE / 2, MREMAP_MAYMOVE);
	checkpoint();
	for (size_t i = 0; i < lengthof(ways); i++)
		if (!strcmp(argv[3], ways[i].name))
			ways[i].use();
	return verdict();
}
