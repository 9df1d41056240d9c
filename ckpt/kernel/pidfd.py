# SPDX-License-Identifier: Apache-2.0
"""pidfd: a process that cannot be mistaken for another, and copies of its descriptors."""

import errno
import os
import select

from ckpt.errors import Unsupported
from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import check, ffi, lib, syscall
from ckpt.kernel.way import Way

_PIDFD_THREAD = os.O_EXCL


def pidfd_open(pid: int) -> int:
    """Return a pidfd of a process; raises NoSuchTask."""
    return check(syscall(NR.pidfd_open, pid, 0), "pidfd_open", pid=pid)


def pidfd_of(way: Way) -> int:
    """Return one that pidfd_getfd takes: of the thread by which a process is reached.

    Raises NoSuchTask, and Unsupported where the kernel has none of a thread (Linux 6.9).
    """
    if not way.is_another:
        return pidfd_open(way.pid)
    pidfd = syscall(NR.pidfd_open, way.tid, _PIDFD_THREAD)
    if pidfd == -errno.EINVAL:
        raise Unsupported(
            f"pid {way.pid}: its first thread has ended, others have not: not supported",
            hint="it takes descriptors of threads (PIDFD_THREAD), Linux 6.9 or newer",
        )
    return check(pidfd, "pidfd_open", pid=way.tid)


def pidfd_getfd(pidfd: int, number: int) -> int:
    """Return a local, close-on-exec copy of descriptor `number`: the same open file.

    Raises KernelError (EBADF: there is no such descriptor).
    """
    return check(syscall(NR.pidfd_getfd, pidfd, number, 0), f"pidfd_getfd of fd {number}")


def has_ended(pidfd: int, wait_ms: int = 0) -> bool:
    """Say whether the process has ended, or does so within wait_ms."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(wait_ms))


def ended(count: int) -> list[int]:
    """Return so many pidfds of one process that has ended, and has been waited for."""
    found: list[int] = []
    lifeline = os.pipe2(os.O_CLOEXEC)
    pid = check(lib.core_clone_paused(0, ffi.NULL, 0, lifeline), "clone3")
    try:
        while len(found) < count:
            found.append(pidfd_open(pid))
    except BaseException:
        for fd in found:
            os.close(fd)
        raise
    finally:
        os.close(lifeline[1])
        os.close(lifeline[0])
        os.waitpid(pid, 0)
    return found
