# SPDX-License-Identifier: Apache-2.0
"""The system calls on files and descriptors that the os module lacks.

Each returns what the call does and raises NotPermitted or KernelError where it fails.
"""

import errno
import os
from struct import Struct

from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import check, ffi, syscall

RESOLVE_IN_ROOT = 0x10
"""Take the directory for the root: neither `..` nor any link leads out of it (openat2(2))."""

_RENAME_NOREPLACE = 1
_SPLICE_F_NONBLOCK = 2
_OPEN_HOW = Struct("<3Q")
_ITIMERSPEC = Struct("<4q")
_SIGSET = Struct("<Q")


def _address(data: bytes) -> tuple[object, int]:
    """Copy data to where the kernel can read it; returns its keeper and its address."""
    keeper = ffi.new("char[]", data)
    return keeper, int(ffi.cast("uintptr_t", keeper))


def _path(path: str) -> tuple[object, int]:
    return _address(os.fsencode(path))


def openat2(directory: int, path: str, flags: int, resolve: int = 0) -> int:
    """Open path with exactly these flags: open(2) itself adds O_LARGEFILE."""
    name, path_at = _path(path)
    how, how_at = _address(_OPEN_HOW.pack(flags, 0, resolve))
    return check(syscall(NR.openat2, directory, path_at, how_at, _OPEN_HOW.size), f"openat2 {path}")


def rename_new(directory: int, old: str, new: str) -> None:
    """Rename within a directory; raises KernelError (EEXIST) rather than replace a file."""
    (_old, old_at), (_new, new_at) = _path(old), _path(new)
    nr = NR.renameat2
    check(syscall(nr, directory, old_at, directory, new_at, _RENAME_NOREPLACE), f"rename {old}")


def tee(source: int, target: int, size: int) -> int:
    """Copy up to size bytes from pipe to pipe, consuming nothing (tee(2)); 0 if there is none.

    The target gets the source's very buffers, so the bounds of packets stay.
    """
    ret = syscall(NR.tee, source, target, size, _SPLICE_F_NONBLOCK)
    return 0 if ret == -errno.EAGAIN else check(ret, "tee")


def signalfd(mask: int, flags: int = 0) -> int:
    """Return a new signalfd(2) for the signals of mask: bit 0 is signal 1."""
    keeper, at = _address(_SIGSET.pack(mask))
    return check(syscall(NR.signalfd4, -1, at, _SIGSET.size, flags), "signalfd")


def timerfd_create(clock: int, flags: int = 0) -> int:
    """Return a new timer of that clock, not armed (timerfd_create(2))."""
    return check(syscall(NR.timerfd_create, clock, flags), "timerfd_create")


def timerfd_settime(fd: int, flags: int, value: int, interval: int) -> None:
    """Arm a timer; both times are in nanoseconds (timerfd_create(2))."""
    spec = _ITIMERSPEC.pack(*divmod(interval, 10**9), *divmod(value, 10**9))
    keeper, at = _address(spec)
    check(syscall(NR.timerfd_settime, fd, flags, at, 0), "timerfd_settime")
