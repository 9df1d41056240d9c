# SPDX-License-Identifier: Apache-2.0
"""pidfd: a process that cannot be mistaken for another, and copies of its descriptors."""

from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import check, syscall


def pidfd_open(pid: int) -> int:
    """Return a pidfd of a process; raises NoSuchTask."""
    return check(syscall(NR.pidfd_open, pid, 0), "pidfd_open", pid=pid)


def pidfd_getfd(pidfd: int, number: int) -> int:
    """Return a local, close-on-exec copy of descriptor `number`: the same open file.

    Raises KernelError (EBADF: there is no such descriptor).
    """
    return check(syscall(NR.pidfd_getfd, pidfd, number, 0), f"pidfd_getfd of fd {number}")
