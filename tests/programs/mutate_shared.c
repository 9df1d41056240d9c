// SPDX-License-Identifier: Apache-2.0
/*
 * Memory that has more than one door: shared anonymous memory with holes punched into it, a memfd
 * that is mapped twice and written to by calls, a System V segment that is attached and detached,
 * private pages over a file; and small pages that become huge ones and small ones again. With
 * `sizes` as an argument the memfd shrinks and grows; with `deleted` a file without a name is swept.
 */
#include "mutate.h"
#include <sys/ipc.h>
#include <sys/shm.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

enum { PAGES = 512, HUGE = 2 << 20, HUGES = 8, SEGMENT = 64, OVERLAID = 256 };

static char *punched, *one_door, *other_door, *attached, *overlaid, *nameless;
static int memfd, segment;
static bool sizes;

/* Map this over an area of our own. */
static char *over_area(size_t size, int flags, int fd)
{
	char *area = own_area(size, false);

	need(mmap(area, size, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0) == area);
	return area;
}

static uint64_t *page_of(char *area, uint64_t k)
{
	return (uint64_t *)(area + k * PAGE);
}

/* What is discarded is still there; only what is removed is gone, and zero. */
static void holes(struct worker *self)
{
	uint64_t known[PAGES] = {};
	char *area = punched;

	for (uint64_t n = 1; going(self); n++) {
		uint64_t from = chance(self, PAGES - 16), to = from + 1 + chance(self, 16);

		for (uint64_t k = from; k < to; k++)
			if (!holds(page_of(area, k), known[k], k))
				wrong("page %lu is not of round %lu: begins with %lx", k, known[k],
				      *page_of(area, k));
		for (uint64_t k = from; k < to; k++)
			write_page(page_of(area, k), known[k] = n, k);
		switch (chance(self, 4)) {
		case 0:
			must(!madvise(page_of(area, from), (to - from) * PAGE, MADV_REMOVE));
			memset(&known[from], 0, (to - from) * sizeof(known[0]));
			break;
		case 1:
			must(!madvise(page_of(area, from), (to - from) * PAGE, MADV_DONTNEED));
			break;
		}
	}
}

/* Written through one mapping or by a call, read through the other or by a call. */
static void doors(struct worker *self)
{
	uint64_t known[PAGES] = {}, room[WORDS], size = PAGES;

	for (uint64_t n = 1; going(self); n++) {
		uint64_t k = chance(self, size), before = size;

		must(holds(page_of(other_door, k), known[k], k));
		if (chance(self, 2)) {
			write_page(page_of(one_door, k), n, k);
			must_be(pread(memfd, room, PAGE, k * PAGE), PAGE);
			must(holds(room, n, k));
		} else {
			write_page(room, n, k);
			must_be(pwrite(memfd, room, PAGE, k * PAGE), PAGE);
		}
		must(holds(page_of(other_door, k), known[k] = n, k));
		if (!sizes || n % 64)
			continue;
		size = 1 + chance(self, PAGES);
		must(!ftruncate(memfd, size * PAGE));
		if (size < before)
			memset(&known[size], 0, (before - size) * sizeof(known[0]));
	}
}

/* Attached for good at one place, and for a moment at another, where what was written is read. */
static void attachments(struct worker *self)
{
	char *place = own_area(SEGMENT * PAGE, false);
	uint64_t known[SEGMENT] = {};

	must(!munmap(place, SEGMENT * PAGE));
	for (uint64_t n = 1; going(self); n++) {
		uint64_t k = chance(self, SEGMENT);

		must(shmat(segment, place, 0) == place);
		must(holds(page_of(place, k), known[k], k));
		write_page(page_of(place, k), known[k] = n, k);
		must(!shmdt(place));
		must(holds(page_of(attached, k), n, k));
	}
}

/* Private pages over a file: what is discarded is again what the file has. */
static void overlays(struct worker *self)
{
	uint64_t known[OVERLAID];
	char *area = overlaid;

	for (uint64_t k = 0; k < OVERLAID; k++)
		known[k] = 1;
	for (uint64_t n = 2; going(self); n++) {
		uint64_t k = chance(self, OVERLAID);

		must(holds(page_of(area, k), known[k], k));
		write_page(page_of(area, k), known[k] = n, k);
		if (chance(self, 3))
			continue;
		k = chance(self, OVERLAID);
		must(!madvise(page_of(area, k), PAGE, MADV_DONTNEED));
		known[k] = 1;
	}
}

/* As in mutate_sweep, in a file that has no name any more: its content goes with the image. */
static void sweep_deleted(struct worker *self)
{
	for (uint64_t n = 1; going(self); n++)
		for (uint64_t k = 0; k < SEGMENT; k++) {
			must(holds(page_of(nameless, k), n - 1, k));
			write_page(page_of(nameless, k), n, k);
		}
}

/* Huge pages made of small ones, and broken again: no refusal of the kernel's is wrong. */
static void collapses(struct worker *self)
{
	static uint64_t known[HUGES * HUGE / PAGE];
	char *area = own_area(HUGES * HUGE, true);
	uint64_t pages = lengthof(known);

	for (uint64_t n = 1; going(self); n++) {
		uint64_t from = chance(self, pages - 64), k = chance(self, HUGES);

		for (uint64_t i = from; i < from + 64; i++) {
			if (!holds(page_of(area, i), known[i], i))
				wrong("page %lu is not of round %lu: begins with %lx", i, known[i],
				      *page_of(area, i));
			write_page(page_of(area, i), known[i] = n, i);
		}
		switch (chance(self, 8)) {
		case 0:
			madvise(area + k * HUGE, HUGE, MADV_COLLAPSE);
			break;
		case 1:
			must(!madvise(page_of(area, from), 8 * PAGE, MADV_DONTNEED));
			memset(&known[from], 0, 8 * sizeof(known[0]));
			break;
		case 2:
			must(!mprotect(page_of(area, from), PAGE, PROT_READ));
			must(!mprotect(page_of(area, from), PAGE, PROT_READ | PROT_WRITE));
			break;
		}
	}
}

/* All of it before anybody is employed: what is mapped and open is the same from `ready` on. */
static void make_all(void)
{
	int flags = O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC;
	int fd = open(path("overlaid"), flags, 0644), gone = open(path("gone"), flags, 0644);
	uint64_t room[WORDS];

	punched = over_area(PAGES * PAGE, MAP_SHARED | MAP_ANONYMOUS, -1);
	memfd = memfd_create("doors", MFD_CLOEXEC);
	need(memfd >= 0 && !ftruncate(memfd, PAGES * PAGE));
	one_door = over_area(PAGES * PAGE, MAP_SHARED, memfd);
	other_door = over_area(PAGES * PAGE, MAP_SHARED, memfd);
	segment = shmget(IPC_PRIVATE, SEGMENT * PAGE, IPC_CREAT | 0600);
	attached = own_area(SEGMENT * PAGE, false);
	need(segment >= 0 && shmat(segment, attached, SHM_REMAP) == attached);
	need(!shmctl(segment, IPC_RMID, NULL) && fd >= 0);
	for (uint64_t k = 0; k < OVERLAID; k++) {
		write_page(room, 1, k);
		need(write(fd, room, PAGE) == PAGE);
	}
	overlaid = over_area(OVERLAID * PAGE, MAP_PRIVATE, fd);
	need(gone >= 0 && !ftruncate(gone, SEGMENT * PAGE) && !unlink(path("gone")));
	nameless = over_area(SEGMENT * PAGE, MAP_SHARED, gone);
	need(!close(fd) && !close(gone));
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	sizes = argc > 2 && !strcmp(argv[2], "sizes");
	make_all();
	employ(holes);
	employ(doors);
	employ(attachments);
	employ(overlays);
	employ(collapses);
	if (argc > 2 && !strcmp(argv[2], "deleted"))
		employ(sweep_deleted);
	return judge_workers();
}
