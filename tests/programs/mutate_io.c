// SPDX-License-Identifier: Apache-2.0
/*
 * Memory that others than the program's own instructions write: a disk, by direct I/O, sector by
 * sector into pages that it shares with other readers and with stores; sockets; and copies that the
 * kernel makes from page to page. A call may be cut short, but never fails.
 */
#include "mutate.h"
#include <sys/socket.h>
#include <sys/uio.h>

enum { SECTOR = 512, SECTORS = 2048, SLICES = PAGE / SECTOR, READERS = 4, SHARED = 256 };
enum { RING = 256, MESSAGE = 2 * PAGE + 1000, COPIES = 512 };

static char *sliced;
static int direct, buffered, socket_pair[2];

/* Sector k of the file, or a slice that was stored to in round k: it says where it belongs. */
static void fill_sector(volatile uint64_t *at, uint64_t k)
{
	for (uint64_t i = 0; i < SECTOR / 8; i++)
		at[i] = stamp(k + 1, i);
}

static bool is_sector(volatile uint64_t *at, uint64_t k)
{
	for (uint64_t i = 0; i < SECTOR / 8; i++)
		if (at[i] != stamp(k + 1, i))
			return false;
	return true;
}

static uint64_t *slice(uint64_t page, int which)
{
	return (uint64_t *)(sliced + page * PAGE + which * SECTOR);
}

static void make_file(void)
{
	static uint64_t content[SECTORS * SECTOR / 8];
	char *name = path("sectors");

	for (uint64_t k = 0; k < SECTORS; k++)
		fill_sector(content + k * SECTOR / 8, k);
	buffered = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	need(buffered >= 0);
	need(pwrite(buffered, content, sizeof(content), 0) == sizeof(content));
	need(!fsync(buffered));
	direct = open(name, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (direct < 0 || pread(direct, sliced, SECTOR, SECTOR) != SECTOR)
		skip("no direct I/O by sectors on this file system: %s", strerror(errno));
	memset(sliced, 0, SECTOR);
	free(name);
}

/* Two sectors at a time, into two pages; of each page this reader has one slice, never another's. */
static void read_direct(struct worker *self)
{
	uint64_t known[SHARED];
	int mine = self->number;

	memset(known, -1, sizeof(known));
	while (going(self)) {
		uint64_t k = chance(self, SECTORS - 1), pages[2];
		struct iovec into[2];

		pages[0] = chance(self, SHARED);
		pages[1] = (pages[0] + 1 + chance(self, SHARED - 1)) % SHARED;
		for (int i = 0; i < 2; i++) {
			if (known[pages[i]] != -1ul && !is_sector(slice(pages[i], mine), known[pages[i]]))
				wrong("slice %d of page %lu is not sector %lu", mine, pages[i],
				      known[pages[i]]);
			into[i] = (struct iovec){slice(pages[i], mine), SECTOR};
		}
		must_be(preadv(direct, into, 2, k * SECTOR), 2 * SECTOR);
		for (int i = 0; i < 2; i++) {
			known[pages[i]] = k + i;
			if (!is_sector(slice(pages[i], mine), k + i))
				wrong("slice %d of page %lu was not filled with sector %lu", mine,
				      pages[i], k + i);
		}
	}
}

/* The rest of those pages is stored to, all the time. */
static void store_beside(struct worker *self)
{
	uint64_t known[SHARED][SLICES] = {};

	for (uint64_t n = 1; going(self); n++)
		for (int i = 0; i < 64; i++) {
			uint64_t page = chance(self, SHARED);
			int which = READERS + chance(self, SLICES - READERS);
			uint64_t *at = slice(page, which), *before = &known[page][which];

			if (*before && !is_sector(at, *before))
				wrong("slice %d of page %lu is not of round %lu", which, page, *before);
			fill_sector(at, *before = n);
		}
}

/* Through the page cache, to anywhere in a page. */
static void read_buffered(struct worker *self)
{
	char *area = own_area(RING * PAGE, false);
	uint64_t known[RING - 1] = {};

	for (uint64_t n = 0; going(self); n++) {
		uint64_t at = n % (RING - 1), k = chance(self, SECTORS);
		uint64_t *place = (uint64_t *)(area + at * PAGE + PAGE - SECTOR / 2);

		if (known[at] && !is_sector(place, known[at] - 1))
			wrong("what was read over the end of page %lu is not sector %lu", at,
			      known[at] - 1);
		must_be(pread(buffered, place, SECTOR, k * SECTOR), SECTOR);
		must(is_sector(place, k));
		known[at] = k + 1;
	}
}

static void send_all(struct worker *self)
{
	uint64_t *out = own_area(MESSAGE + PAGE, false), value = 0;
	ssize_t did;

	while (going(self)) {
		for (size_t i = 0; i < MESSAGE / 8; i++)
			out[i] = ++value;
		for (ssize_t done = 0; done < MESSAGE; done += did)
			must((did = send(socket_pair[1], (char *)out + done, MESSAGE - done, 0)) > 0);
	}
	must(!shutdown(socket_pair[1], SHUT_WR));
}

/* Messages into buffers that begin and end within pages, in two pieces each. */
static void receive_all(struct worker *self)
{
	char *area = own_area(RING * 4 * PAGE, false);
	uint64_t value = 0;

	for (uint64_t n = 0;; n++) {
		char *in = area + n % RING * 4 * PAGE + 24;
		ssize_t have = 0, got = 0;

		self->rounds++; /* the end of the stream ends it */
		while (have < MESSAGE) {
			size_t half = (MESSAGE - have + 1) / 2;
			struct iovec into[] = {{in + have, half}, {in + have + half, MESSAGE - have - half}};
			struct msghdr message = {.msg_iov = into, .msg_iovlen = 2};

			got = recvmsg(socket_pair[0], &message, 0);
			must(got >= 0);
			if (!got)
				break;
			have += got;
		}
		if (!have && !got)
			return;
		must_be(have, MESSAGE);
		for (size_t i = 0; i < MESSAGE / 8; i++)
			must_be(((uint64_t *)in)[i], ++value);
	}
}

/* The kernel writes a page as a debugger would: not by this thread's own faults. */
static void copy_pages(struct worker *self)
{
	uint64_t *from = own_area(PAGE, false), *area = own_area(COPIES * PAGE, false);
	uint64_t known[COPIES] = {};

	for (uint64_t n = 1; going(self); n++) {
		uint64_t k = chance(self, COPIES);
		uint64_t *to = area + k * WORDS;
		struct iovec source = {from, PAGE}, target = {to, PAGE};

		must(holds(to, known[k], k));
		write_page(from, n, k);
		must_be(process_vm_writev(getpid(), &source, 1, &target, 1, 0), PAGE);
		known[k] = n;
		must(holds(to, n, k));
	}
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	sliced = own_area(SHARED * PAGE, false);
	make_file();
	need(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, socket_pair));
	for (int i = 0; i < READERS; i++)
		employ(read_direct);
	employ(store_beside);
	employ(read_buffered);
	employ(send_all);
	employ(receive_all);
	employ(copy_pages);
	return judge_workers();
}
