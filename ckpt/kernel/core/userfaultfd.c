/* SPDX-License-Identifier: Apache-2.0 */
/* userfaultfd: a log of writes, write-protection of many ranges, pages put where none are. */
#include "core.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { MESSAGES = 64, ATTEMPTS = 100 };
enum { LONGEST_DELAY = 5000000 }; /* ns: a target hardly notices that */

static int64_t writeprotect(int32_t fd, uint64_t start, uint64_t len, uint64_t mode)
{
	struct uffdio_writeprotect wp = { .range = { start, len }, .mode = mode };

	return ioctl(fd, UFFDIO_WRITEPROTECT, &wp) < 0 ? -errno : 0;
}

/* As above; many threads may be changing mappings, and there is a moment without an event soon. */
static int64_t writeprotect_soon(int32_t fd, uint64_t start, uint64_t len, uint64_t mode)
{
	int64_t ret;

	for (int i = 0; i < ATTEMPTS; i++)
		if ((ret = writeprotect(fd, start, len, mode)) != -EAGAIN)
			break;
	return ret;
}

int64_t core_uffd_register(int32_t fd, const struct core_range *ranges, size_t n, uint64_t mode,
			   uint8_t *done)
{
	int64_t count = 0;

	for (size_t i = 0; i < n; i++) {
		struct uffdio_register arg = {
			.range = { ranges[i].start, ranges[i].len },
			.mode = mode,
		};

		done[i] = ioctl(fd, UFFDIO_REGISTER, &arg) == 0;
		if (!done[i] && errno != EINVAL && errno != EBUSY && errno != ENOMEM && errno != EPERM)
			return -errno;
		count += done[i];
	}
	return count;
}

int64_t core_uffd_protect(int32_t fd, const struct core_range *ranges, size_t n, int32_t protect)
{
	uint64_t mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0;

	for (size_t i = 0; i < n; i++) {
		int64_t ret = writeprotect_soon(fd, ranges[i].start, ranges[i].len, mode);

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

static void wake(int32_t fd, uint64_t start)
{
	struct uffdio_range range = { start, 4096 };

	ioctl(fd, UFFDIO_WAKE, &range);
}

static void delay(uint64_t ns)
{
	if (ns > LONGEST_DELAY)
		ns = LONGEST_DELAY;
	if (ns)
		nanosleep(&(struct timespec){ .tv_nsec = ns }, NULL);
}

_Static_assert(sizeof(pthread_mutex_t) <= sizeof(((struct core_log *)0)->lock), "core.h");

static pthread_mutex_t *lock_of(struct core_log *log)
{
	return (pthread_mutex_t *)log->lock;
}

int64_t core_log_init(struct core_log *log)
{
	pthread_mutexattr_t attr;
	int ret = pthread_mutexattr_init(&attr);

	/* Who answers has a priority above those who take: they inherit it. */
	if (!ret)
		ret = pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT);
	if (!ret)
		ret = pthread_mutex_init(lock_of(log), &attr);
	return -ret;
}

static void answer(struct core_log *log, int32_t fd, const struct uffd_msg *msg)
{
	struct core_event event = decoded(msg);
	int64_t ret;

	if (event.kind != UFFD_EVENT_PAGEFAULT) {
		log->events[log->n_events++] = event;
		return;
	}
	ret = writeprotect(fd, event.start, 4096, 0);
	if (ret < 0)
		wake(fd, event.start); /* Its memory is gone, or (EAGAIN) it will fault again. */
	if (ret != -EAGAIN)
		log->faults[log->n_faults++] = event.start;
}

static uint64_t room(const struct core_log *log)
{
	return log->room - (log->n_faults > log->n_events ? log->n_faults : log->n_events);
}

int64_t core_log_answer(struct core_log *log, int32_t fd)
{
	struct uffd_msg msgs[MESSAGES];
	int64_t ret = 0;

	/*
	 * Under the lock: whoever takes the log and protects its pages must not find one whose
	 * protection is just going, but which is not in the log yet.
	 */
	pthread_mutex_lock(lock_of(log));
	while (room(log) >= MESSAGES) {
		ssize_t got = read(fd, msgs, sizeof(msgs));

		if (got < 0) {
			ret = errno == EAGAIN ? ret : -errno;
			break;
		}
		for (size_t i = 0; i < got / sizeof(msgs[0]); i++)
			answer(log, fd, &msgs[i]);
		ret += got / sizeof(msgs[0]);
	}
	pthread_mutex_unlock(lock_of(log));
	return ret;
}

int64_t core_log_keep(struct core_log *log, int32_t fd, int32_t stop)
{
	struct pollfd fds[] = { { .fd = fd, .events = POLLIN }, { .fd = stop, .events = POLLIN } };

	for (;;) {
		int64_t got;

		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			return -errno;
		if (fds[1].revents)
			return 1;
		got = core_log_answer(log, fd);
		if (got <= 0)
			return got;
		delay(got * __atomic_load_n(&log->delay_ns, __ATOMIC_RELAXED));
	}
}

int64_t core_log_take(struct core_log *log, uint64_t *faults, struct core_event *events,
		      uint64_t counts[2])
{
	pthread_mutex_lock(lock_of(log));
	counts[0] = log->n_faults;
	counts[1] = log->n_events;
	memcpy(faults, log->faults, log->n_faults * sizeof(*faults));
	memcpy(events, log->events, log->n_events * sizeof(*events));
	log->n_faults = log->n_events = 0;
	pthread_mutex_unlock(lock_of(log));
	return 0;
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
