/* SPDX-License-Identifier: Apache-2.0 */
/* What is done to many things at once: from Python, one by one, that would take the longest. */
#include "core.h"

#include <errno.h>
#include <linux/kcmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A file of /proc may give less than it has; only 0 is its end. */
static int64_t read_whole(int32_t fd, char *buf, size_t room)
{
	size_t done = 0;

	while (done < room) {
		ssize_t got = pread(fd, buf + done, room - done, done);

		if (got <= 0)
			return got < 0 ? -errno : (int64_t)done;
		done += got;
	}
	return -E2BIG;
}

int64_t core_look(const struct core_look *looks, size_t n, int64_t *rets, void *buf, size_t size)
{
	size_t end = 0;

	for (size_t i = 0; i < n; i++) {
		const uint64_t *a = looks[i].arg;

		if (looks[i].nr != CORE_WHOLE) {
			rets[i] = core_syscall(looks[i].nr, a[0], a[1], a[2], a[3], a[4], a[5]);
			continue;
		}
		rets[i] = read_whole(a[0], (char *)buf + end, size - end);
		if (rets[i] == -E2BIG)
			return -E2BIG;
		if (rets[i] > 0)
			end += rets[i];
	}
	return end;
}

int64_t core_same_said(const int64_t *lengths, const char *said, const int64_t *its_lengths,
		       const char *its, size_t n, uint8_t *same)
{
	int64_t others = 0;

	for (size_t i = 0; i < n; i++) {
		size_t mine = lengths[i] > 0 ? lengths[i] : 0;
		size_t theirs = its_lengths[i] > 0 ? its_lengths[i] : 0;

		same[i] = lengths[i] == its_lengths[i] && !memcmp(said, its, mine);
		others += !same[i];
		said += mine;
		its += theirs;
	}
	return others;
}

int64_t core_pwrite_all(int32_t fd, const struct core_range *ranges, size_t n, const void *buf)
{
	const char *from = buf;

	for (size_t i = 0; i < n; i++) {
		uint64_t at = ranges[i].start, end = at + ranges[i].len;

		while (at < end) {
			ssize_t done = pwrite(fd, from, end - at, at);

			if (done < 0)
				return -errno;
			at += done;
			from += done;
		}
	}
	return 0;
}

int64_t core_same_files(int32_t pid, const int32_t *theirs, const int32_t *ours, size_t n,
			uint8_t *same)
{
	int32_t self = getpid();
	int64_t others = 0;

	for (size_t i = 0; i < n; i++) {
		same[i] = !syscall(SYS_kcmp, pid, self, KCMP_FILE, theirs[i], ours[i]);
		others += !same[i];
	}
	return others;
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

int64_t core_sort(uint64_t *numbers, size_t n)
{
	size_t left = 0;

	qsort(numbers, n, sizeof(*numbers), compare);
	for (size_t i = 0; i < n; i++)
		if (!left || numbers[i] != numbers[left - 1])
			numbers[left++] = numbers[i];
	return left;
}

enum { VALUE = 4 };	/* words of an option's value */

int64_t core_getsockopts(int32_t fd, const int32_t *options, size_t n, int32_t *buf)
{
	for (size_t i = 0; i < n; i++, buf += 1 + VALUE) {
		socklen_t length = VALUE * sizeof(*buf);

		memset(buf, 0, (1 + VALUE) * sizeof(*buf));
		if (getsockopt(fd, options[2 * i], options[2 * i + 1], buf + 1, &length) < 0)
			buf[0] = -errno;
		else
			buf[0] = length;
	}
	return 0;
}
