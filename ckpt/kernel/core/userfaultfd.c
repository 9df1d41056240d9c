/* SPDX-License-Identifier: Apache-2.0 */
/* userfaultfd: events in bulk, write-protection of many ranges. */
#include "core.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int64_t writeprotect(int32_t fd, uint64_t start, uint64_t len, uint64_t mode)
{
	struct uffdio_writeprotect wp = { .range = { start, len }, .mode = mode };

	return ioctl(fd, UFFDIO_WRITEPROTECT, &wp) < 0 ? -errno : 0;
}

int64_t core_uffd_protect(int32_t fd, const struct core_range *ranges, size_t n, int32_t protect)
{
	uint64_t mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0;

	for (size_t i = 0; i < n; i++) {
		int64_t ret = writeprotect(fd, ranges[i].start, ranges[i].len, mode);

		/*
		 * EAGAIN: an event has to be read first. ENOENT: something in the range is not
		 * registered any more, and the kernel has left undone what comes behind it.
		 */
		if (ret == -EAGAIN || (ret == -ENOENT && protect))
			return i;
		if (ret < 0 && ret != -ENOENT)
			return ret;
	}
	return n;
}

static struct core_event decoded(const struct uffd_msg *msg)
{
	struct core_event event = { .kind = msg->event };

	switch (msg->event) {
	case UFFD_EVENT_PAGEFAULT:
		event.start = msg->arg.pagefault.address & ~4095UL;
		event.end = event.start + 4096;
		event.flags = msg->arg.pagefault.flags;
		break;
	case UFFD_EVENT_REMOVE:
	case UFFD_EVENT_UNMAP:
		event.start = msg->arg.remove.start;
		event.end = msg->arg.remove.end;
		break;
	case UFFD_EVENT_REMAP:
		event.start = msg->arg.remap.from;
		event.end = event.start + msg->arg.remap.len;
		event.flags = msg->arg.remap.to;
		break;
	case UFFD_EVENT_FORK:
		event.flags = msg->arg.fork.ufd;
		break;
	}
	return event;
}

enum { MESSAGES = 64 };

/* Answer the write faults among messages; put their addresses, and all other events, aside. */
static void serve(int32_t fd, const struct uffd_msg *msgs, size_t n, uint64_t *faults,
		  struct core_event *events, uint64_t counts[2])
{
	for (size_t i = 0; i < n; i++) {
		struct core_event event = decoded(&msgs[i]);

		if (event.kind == UFFD_EVENT_PAGEFAULT) {
			faults[counts[0]++] = event.start;
			/*
			 * EAGAIN: another event is pending, which a later read takes. The fault
			 * has been told and will not be told again: the caller has to see to it.
			 */
			if (writeprotect(fd, event.start, 4096, 0) != -EAGAIN)
				continue;
		}
		events[counts[1]++] = event;
	}
}

int64_t core_uffd_serve(int32_t fd, uint64_t *faults, struct core_event *events, size_t n,
			uint64_t counts[2])
{
	struct uffd_msg msgs[MESSAGES];

	counts[0] = counts[1] = 0;
	while (n - counts[0] >= MESSAGES && n - counts[1] >= MESSAGES) {
		ssize_t got = read(fd, msgs, sizeof(msgs));

		if (got < 0)
			return errno == EAGAIN ? 0 : -errno;
		serve(fd, msgs, got / sizeof(msgs[0]), faults, events, counts);
	}
	return 0;
}

static void wake(int32_t fd, uint64_t start)
{
	struct uffdio_range range = { start, 4096 };

	ioctl(fd, UFFDIO_WAKE, &range);
}

/* Fill from src, or with zeros if that is 0; see core.h for both. */
static int64_t fill(int32_t fd, uint64_t start, uint64_t src, uint64_t len)
{
	uint64_t done = 0, piece = len;

	while (done < len) {
		uint64_t size = piece < len - done ? piece : len - done;
		struct uffdio_copy copy = { start + done, src + done, size, 0, 0 };
		struct uffdio_zeropage zero = { { start + done, size }, 0, 0 };
		int ret = src ? ioctl(fd, UFFDIO_COPY, &copy) : ioctl(fd, UFFDIO_ZEROPAGE, &zero);
		int64_t some = src ? copy.copy : zero.zeropage;

		if (ret == 0 || some > 0) {
			done += some;
			piece = 2 * size;
		} else if (errno == ENOENT && size > 4096) {
			/* Perhaps two mappings, which mprotect(2) has made of one: go to its end. */
			piece = size / 2 & ~4095UL;
			continue;
		} else if (errno == EEXIST || errno == ENOENT) {
			/* It is there already, or its mapping is gone: whoever waits looks again. */
			wake(fd, start + done);
			done += 4096;
		} else {
			return errno == EAGAIN ? (int64_t)done : -errno;
		}
	}
	return done;
}

int64_t core_uffd_copy(int32_t fd, uint64_t start, const void *src, uint64_t len)
{
	return fill(fd, start, (uintptr_t)src, len);
}

int64_t core_uffd_zero(int32_t fd, uint64_t start, uint64_t len)
{
	return fill(fd, start, 0, len);
}
