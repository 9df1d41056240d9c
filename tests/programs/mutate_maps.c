// SPDX-License-Identifier: Apache-2.0
/*
 * Threads that map, unmap, move, protect, discard and grow their memory all the time. Each keeps a
 * book of what it has where, and checks a page against it before doing anything to it.
 */
#include "mutate.h"
#include <alloca.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

enum { PATCHES = 512, MOVED = 256, BIG = 96 << 20, HEAP = 64, DEEP = 64 };
enum state { NOTHING, MAPPED, READ_ONLY, HIDDEN, MAYBE_FREED, GUARDED };

/* What is known of a page: how it is mapped, and the round it was written in; 0 for zeros. */
struct book {
	enum state state;
	uint32_t value;
};

static void check_page(uint64_t *page, struct book *book, uint64_t number)
{
	if (book->state == HIDDEN || book->state == NOTHING || book->state == GUARDED)
		return;
	if (!holds(page, book->value, number) &&
	    !(book->state == MAYBE_FREED && all_zero(page, PAGE)))
		wrong("page %lu at %p, state %d, is not of round %u: begins with %lx, not %lx", number,
		      page, book->state, book->value, page[0], stamp(book->value, number * WORDS));
}

static void note(struct book *books, int from, int to, enum state state, bool keep)
{
	for (int i = from; i < to; i++)
		books[i] = (struct book){state, keep ? books[i].value : 0};
}

/* Make a range plainly mapped and readable again, whatever it was; what is in it stays. */
static void settle(char *area, struct book *books, int from, int to)
{
	for (int i = from; i < to; i++) {
		char *page = area + i * PAGE;

		if (books[i].state == NOTHING)
			must(mmap(page, PAGE, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == page);
		if (books[i].state == GUARDED)
			must(!madvise(page, PAGE, MADV_GUARD_REMOVE));
		if (books[i].state == READ_ONLY || books[i].state == HIDDEN)
			must(!mprotect(page, PAGE, PROT_READ | PROT_WRITE));
		if (books[i].state != MAYBE_FREED)
			books[i].state = MAPPED;
		check_page((uint64_t *)page, &books[i], i);
	}
}

static void change(char *area, struct book *books, int from, int to, int what)
{
	char *start = area + from * PAGE;
	size_t size = (to - from) * PAGE;

	switch (what) {
	case 0:
		must(!munmap(start, size));
		return note(books, from, to, NOTHING, false);
	case 1:
		must(mmap(start, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
			  -1, 0) == start);
		return note(books, from, to, MAPPED, false);
	case 2:
		must(!mprotect(start, size, PROT_READ));
		return note(books, from, to, READ_ONLY, true);
	case 3:
		must(!mprotect(start, size, PROT_NONE));
		return note(books, from, to, HIDDEN, true);
	case 4:
		must(!madvise(start, size, MADV_DONTNEED));
		return note(books, from, to, MAPPED, false);
	case 5:
		must(!madvise(start, size, MADV_FREE));
		return note(books, from, to, MAYBE_FREED, true);
	case 6:
		must(!madvise(start, size, MADV_COLD));
		return;
	case 7:
		must(!madvise(start, size, MADV_PAGEOUT));
		return;
	case 8:
		if (!madvise(start, size, MADV_GUARD_INSTALL))
			note(books, from, to, GUARDED, false);
		return;
	}
}

static void write_pages(char *area, struct book *books, int from, int to, uint32_t value)
{
	for (int i = from; i < to; i++) {
		write_page((uint64_t *)(area + i * PAGE), value, i);
		books[i] = (struct book){MAPPED, value};
	}
}

/* An area in patches: mapped, written, protected, discarded, unmapped, without end. */
static void patch(struct worker *self, int kinds)
{
	struct book *books = calloc(PATCHES, sizeof(*books));
	char *area = own_area(PATCHES * PAGE, false);

	note(books, 0, PATCHES, MAPPED, false);
	for (uint32_t n = 1; going(self); n++)
		for (int i = 0; i < PATCHES; i++) {
			int from = chance(self, PATCHES - 16), to = from + 1 + chance(self, 16);

			settle(area, books, from, to);
			write_pages(area, books, from, to, n);
			if (chance(self, 2))
				change(area, books, from, to, chance(self, kinds));
		}
}

static void patches(struct worker *self)
{
	patch(self, 8);
}

static void patches_with_guards(struct worker *self)
{
	patch(self, 9);
}

/* A mapping that moves to and fro, and grows and shrinks. */
static void moves(struct worker *self)
{
	char *room = own_area(4 * MOVED * PAGE, false), *to = room + 2 * MOVED * PAGE, *at = room;
	struct book books[MOVED] = {};
	uint32_t pages = MOVED / 2;

	must(!munmap(room, 4 * MOVED * PAGE));
	must(mmap(at, pages * PAGE, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == at);
	for (uint32_t n = 1; going(self); n++) {
		uint32_t size = MOVED / 2 + chance(self, MOVED / 2);
		int from = chance(self, pages), flags = MREMAP_MAYMOVE | MREMAP_FIXED;
		char *old = at;

		for (uint32_t i = 0; i < pages; i++)
			check_page((uint64_t *)(at + i * PAGE), &books[i], i);
		write_pages(at, books, from, pages, n);
		note(books, size, MOVED, MAPPED, false);
		at = mremap(old, pages * PAGE, size * PAGE, flags, old == room ? to : room);
		must(at != MAP_FAILED);
		pages = size;
	}
}

/* One that is larger than what is let go of at a time; a call of the whole must not see that. */
static void moves_big(struct worker *self)
{
	char *room = own_area(2UL * BIG, false), *at = room;

	must(!munmap(room + BIG, BIG));
	for (uint64_t n = 1; going(self); n++) {
		uint64_t *page = (uint64_t *)(at + n * 17 * PAGE % BIG);
		char *to = at == room ? room + BIG : room;

		write_page(page, n, n);
		page += (to - at) / 8;
		at = mremap(at, BIG, BIG, MREMAP_MAYMOVE | MREMAP_FIXED, to);
		must(at == to);
		must(holds(page, n, n));
		usleep(1000);
	}
}

/* The heap, up and down; it comes back as zeros. malloc must not be called meanwhile. */
static void heap(struct worker *self)
{
	for (uint64_t n = 1; going(self); n++) {
		int pages = 1 + chance(self, HEAP);
		char *end = sbrk(0), *begin_ = (char *)(((uintptr_t)end + PAGE - 1) & -PAGE);

		must(sbrk(begin_ - end + pages * PAGE) == end);
		for (int i = 0; i < pages; i++)
			must(all_zero(begin_ + i * PAGE, PAGE));
		for (int i = 0; i < pages; i++)
			write_page((uint64_t *)(begin_ + i * PAGE), n, i);
		for (int i = 0; i < pages; i++)
			must(holds((uint64_t *)(begin_ + i * PAGE), n, i));
		must(!brk(end));
	}
}

static __thread uint64_t own;

/* So deep into the stack, and back; every frame is as it was left. */
static void descend(uint64_t depth)
{
	uint64_t frame[WORDS];

	write_page(frame, depth, own);
	if (depth > 1)
		descend(depth - 1);
	if (!holds(frame, depth, own))
		wrong("stack frame %lu of thread %lu", depth, own);
}

static void *visit(void *number)
{
	own = (uintptr_t)number;
	descend(1 + own % DEEP);
	return (void *)own;
}

/* Threads that come and go, each with a stack of its own. */
static void threads(struct worker *self)
{
	for (uintptr_t n = 1; going(self); n++) {
		pthread_t thread;
		void *result;

		must(!pthread_create(&thread, NULL, visit, (void *)n));
		descend(1 + n % DEEP);
		must(!pthread_join(thread, &result));
		must_be((uintptr_t)result, n);
	}
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	employ(patches);
	employ(patches);
	employ(argc > 2 && !strcmp(argv[2], "guards") ? patches_with_guards : patches);
	employ(moves);
	employ(moves_big);
	employ(heap);
	employ(threads);
	return judge_workers();
}
