/* SPDX-License-Identifier: Apache-2.0 */
/* System calls that Python's own os module does not offer, as thin as they come. */
#include "core.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <linux/sched.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static int64_t result(int64_t ret)
{
	return ret < 0 ? -errno : ret;
}

int64_t core_syscall(int64_t nr, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3,
		     uint64_t a4, uint64_t a5)
{
	return result(syscall(nr, a0, a1, a2, a3, a4, a5));
}

int64_t core_ptrace(int64_t request, int32_t tid, uint64_t addr, uint64_t data)
{
	return result(syscall(SYS_ptrace, request, tid, addr, data));
}

int64_t core_getregset(int32_t tid, uint32_t type, void *buf, size_t len)
{
	struct iovec iov = { buf, len };

	if (syscall(SYS_ptrace, PTRACE_GETREGSET, tid, type, &iov) < 0)
		return -errno;
	return iov.iov_len;
}

int64_t core_setregset(int32_t tid, uint32_t type, const void *buf, size_t len)
{
	struct iovec iov = { (void *)buf, len };

	return core_ptrace(PTRACE_SETREGSET, tid, type, (uintptr_t)&iov);
}

enum { BATCH = 512 };

static int64_t vm_transfer(long nr, int32_t pid, const struct core_range *ranges, size_t n,
			   char *buf)
{
	int64_t total = 0;

	for (size_t i = 0; i < n; i += BATCH) {
		struct iovec remote[BATCH], local = { buf + total, 0 };
		size_t m = n - i < BATCH ? n - i : BATCH;

		for (size_t j = 0; j < m; j++) {
			remote[j] = (struct iovec){ (void *)ranges[i + j].start, ranges[i + j].len };
			local.iov_len += ranges[i + j].len;
		}
		ssize_t got = syscall(nr, pid, &local, 1UL, remote, m, 0UL);
		if (got < 0)
			return -errno;
		/* A short transfer means that the page it stopped at is not to be had. */
		if ((size_t)got != local.iov_len)
			return -EFAULT;
		total += got;
	}
	return total;
}

int64_t core_vm_read(int32_t pid, const struct core_range *ranges, size_t n, void *buf)
{
	return vm_transfer(SYS_process_vm_readv, pid, ranges, n, buf);
}

int64_t core_vm_write(int32_t pid, const struct core_range *ranges, size_t n, const void *buf)
{
	return vm_transfer(SYS_process_vm_writev, pid, ranges, n, (char *)buf);
}

int64_t core_mem_read(int32_t fd, const struct core_range *ranges, size_t n, void *buf)
{
	char *to = buf;

	for (size_t i = 0; i < n; i++) {
		uint64_t at = ranges[i].start, end = at + ranges[i].len;

		while (at < end) {
			ssize_t got = pread(fd, to, end - at, at);

			if (got <= 0)
				return got < 0 ? -errno : -EFAULT;
			at += got;
			to += got;
		}
	}
	return to - (char *)buf;
}

/* struct pm_scan_arg of linux/fs.h; Debian 12's headers are older than the ioctl. */
struct scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

int64_t core_pagemap_scan(int32_t fd, const struct core_range *ranges, size_t n, uint64_t all_of,
			  uint64_t any_of, uint64_t inverted, uint64_t return_mask,
			  struct core_region *regions, size_t room, size_t *done)
{
	size_t found = 0;

	for (*done = 0; *done < n && found < room; ++*done) {
		const struct core_range *range = &ranges[*done];
		struct scan_arg arg = {
			.size = sizeof(arg), .start = range->start, .end = range->start + range->len,
			.vec = (uintptr_t)(regions + found), .vec_len = room - found,
			.category_inverted = inverted, .category_mask = all_of,
			.category_anyof_mask = any_of, .return_mask = return_mask,
		};
		int64_t got = result(ioctl(fd, _IOWR('f', 16, struct scan_arg), &arg));

		if (got < 0)
			return got;
		/* Not by walk_end: of more than 512 regions it is where the kernel has paused. */
		found += got;
		if (found == room)
			break;
	}
	return found;
}

int64_t core_clone_paused(uint64_t flags, const int32_t *set_tid, size_t n,
			  const int32_t lifeline[2])
{
	struct clone_args args = {
		.flags = flags,
		/* With CLONE_PARENT the kernel takes our own exit signal, and wants 0 here. */
		.exit_signal = flags & CLONE_PARENT ? 0 : SIGCHLD,
		.set_tid = (uintptr_t)set_tid,
		.set_tid_size = n,
	};
	long pid = syscall(SYS_clone3, &args, sizeof(args));

	if (pid == 0) {
		char byte;

		syscall(SYS_close, lifeline[1]);
		while (syscall(SYS_read, lifeline[0], &byte, 1UL) < 0)
			;
		for (;;)
			syscall(SYS_exit_group, 1);
	}
	return result(pid);
}
