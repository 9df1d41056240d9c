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

		/* ENOENT: unmapped meanwhile, or not registered any more; EAGAIN: read events first. */
		if (ret == -EAGAIN)
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
	}
	return event;
}

enum { MESSAGES = 64 };

int64_t core_uffd_read(int32_t fd, struct core_event *events, size_t n, int32_t unprotect)
{
	struct uffd_msg msgs[MESSAGES];
	size_t room = n < MESSAGES ? n : MESSAGES;
	ssize_t got = read(fd, msgs, room * sizeof(msgs[0]));

	if (got < 0)
		return errno == EAGAIN ? 0 : -errno;
	got /= sizeof(msgs[0]);
	for (ssize_t i = 0; i < got; i++) {
		events[i] = decoded(&msgs[i]);
		if (!unprotect || events[i].kind != UFFD_EVENT_PAGEFAULT)
			continue;
		/*
		 * EAGAIN: another event is pending, which a later read takes. The fault has been
		 * told and will not be told again, so the caller has to see to it.
		 */
		if (writeprotect(fd, events[i].start, 4096, 0) == -EAGAIN)
			events[i].flags |= CORE_UNSERVED;
	}
	return got;
}
