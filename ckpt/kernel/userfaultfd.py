# SPDX-License-Identifier: Apache-2.0
"""userfaultfd(2): write-protect and missing faults of the address space that opened it.

Facts that bite:
- It belongs to the address space of the task that opened it, so the task opens it (a stub's
  call), we take a copy by pidfd_getfd, and the task closes its own. When the last copy is closed,
  by our death too, the kernel takes all protection away and wakes who waits; a missing page is
  then one of zeros.
- While an event other than a fault is unread, ioctls that change pages say EAGAIN, and whoever
  caused the event waits until it is read.
- With WP_UNPOPULATED a page that is not there is protected as well: its first write faults. But
  what is discarded (REMOVE, UNMAP) comes back unprotected, so those ranges have to be known.
"""

import errno
import os
from enum import IntEnum, IntFlag
from struct import Struct
from typing import NamedTuple

from ckpt.kernel.arch import NR, TASK_SIZE
from ckpt.kernel.ffi import check, ffi, lib, syscall

USERFAULTFD_IOC_NEW, UFFDIO_API, _UFFDIO_REGISTER = 0xAA00, 0xC018AA3F, 0xC020AA00
_UFFDIO_UNREGISTER, _UFFDIO_WAKE, _UFFDIO_POISON = 0x8010AA01, 0x8010AA02, 0xC020AA08
_API = 0xAA
_ROOM = 1 << 16  # messages: more than come while we look at what a task has open
_LOWEST = 1 << 16  # the kernel's mmap_min_addr, or more
API_REQUEST = Struct("<QQQ")  # struct uffdio_api: api, features, ioctls


class Feature(IntFlag):
    """UFFD_FEATURE_*."""

    PAGEFAULT_FLAG_WP = 1 << 0
    EVENT_FORK = 1 << 1
    EVENT_REMAP = 1 << 2
    EVENT_REMOVE = 1 << 3
    EVENT_UNMAP = 1 << 6
    WP_HUGETLBFS_SHMEM = 1 << 12
    WP_UNPOPULATED = 1 << 13
    WP_ASYNC = 1 << 15


FILLING = Feature.EVENT_FORK | Feature.EVENT_REMAP | Feature.EVENT_REMOVE | Feature.EVENT_UNMAP
"""What a pager asks for: all that happens to memory that it has still to fill."""
TRACKING = (
    Feature.PAGEFAULT_FLAG_WP
    | Feature.EVENT_REMAP
    | Feature.EVENT_REMOVE
    | Feature.EVENT_UNMAP
    | Feature.WP_UNPOPULATED
)


class Mode(IntFlag):
    """UFFDIO_REGISTER_MODE_*: which faults are told."""

    MISSING = 1
    WP = 2


class Kind(IntEnum):
    """UFFD_EVENT_*."""

    PAGEFAULT = 0x12
    FORK = 0x13
    REMAP = 0x14
    REMOVE = 0x15
    UNMAP = 0x16


class Event(NamedTuple):
    """What happened to [start, end): memory that went away.

    to is where a remap went.
    """

    kind: Kind
    start: int
    end: int
    to: int


def api_request(features: Feature) -> bytes:
    """Return the argument of UFFDIO_API, which the opener has to make first."""
    return API_REQUEST.pack(_API, features, 0)


class Userfaultfd:
    """Our copy of a task's userfaultfd, owned."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Close it; with the last copy all protection goes."""
        if self.fd >= 0:
            syscall(NR.close, self.fd)
            self.fd = -1

    def register(self, start: int, end: int, mode: Mode) -> bool:
        """Register a whole mapping; False if it cannot be (EINVAL, EBUSY)."""
        arg = ffi.new("uint64_t[4]", [start, end - start, mode, 0])
        ret = syscall(NR.ioctl, self.fd, _UFFDIO_REGISTER, int(ffi.cast("uintptr_t", arg)))
        if ret in (-errno.EINVAL, -errno.EBUSY, -errno.ENOMEM, -errno.EPERM):
            return False
        check(ret, "UFFDIO_REGISTER", addr=start)
        return True

    def register_all(self, mappings: list[tuple[int, int]], mode: Mode) -> list[tuple[int, int]]:
        """Register whole mappings (start, end); returns those that could be."""
        ranges = ffi.new("struct core_range[]", [(start, end - start) for start, end in mappings])
        done = ffi.new("uint8_t[]", len(mappings))
        ret = lib.core_uffd_register(self.fd, ranges, len(mappings), mode, done)
        check(ret, "UFFDIO_REGISTER")
        return [one for one, yes in zip(mappings, done, strict=True) if yes]

    def unregister(self, start: int, end: int) -> None:
        """Let go of a range, if it is registered; who waits for a write fault has to be woken."""
        arg = ffi.new("uint64_t[2]", [start, end - start])
        syscall(NR.ioctl, self.fd, _UFFDIO_UNREGISTER, int(ffi.cast("uintptr_t", arg)))

    def protect(self, ranges: list[tuple[int, int]], *, on: bool = True) -> int:
        """Protect ranges (start, length), or not; returns how many, if events must be read first.

        Raises KernelError, ESRCH if the address space is no more: the task has ended, or executes
        something else.
        """
        done = lib.core_uffd_protect(
            self.fd, ffi.new("struct core_range[]", ranges), len(ranges), on
        )
        return check(done, "UFFDIO_WRITEPROTECT", addr=ranges[0][0] if ranges else None)

    def give_up(self) -> None:
        """Close it at once, but keep its number: another thread may be about to use it."""
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(null, self.fd, inheritable=False)
        os.close(null)

    def copy(self, start: int, data: memoryview) -> int:
        """Put pages where none are; returns the bytes done before an event must be read."""
        done = lib.core_uffd_copy(self.fd, start, ffi.from_buffer(data), len(data))
        return check(done, "UFFDIO_COPY", addr=start)

    def zero(self, start: int, length: int) -> int:
        """Put pages of zeros where none are; returns as copy does."""
        return check(lib.core_uffd_zero(self.fd, start, length), "UFFDIO_ZEROPAGE", addr=start)

    def poison(self, start: int, length: int) -> int:
        """Have who touches these pages get SIGBUS (UFFDIO_POISON, Linux 6.6); returns as copy."""
        arg = ffi.new("uint64_t[4]", [start, length, 0, 0])
        ret = syscall(NR.ioctl, self.fd, _UFFDIO_POISON, int(ffi.cast("uintptr_t", arg)))
        if ret == -errno.EAGAIN:
            return 0
        if ret in (-errno.EEXIST, -errno.ENOENT):
            self.wake(start, start + length)
            return length
        check(ret, "UFFDIO_POISON", addr=start)
        return length

    def wake_all(self) -> None:
        """Wake who waits for any page."""
        self.wake(_LOWEST, TASK_SIZE)

    def wake(self, start: int, end: int) -> None:
        """Wake who waits for a page of a range; they look again, and tell anew."""
        arg = ffi.new("uint64_t[2]", [start, end - start])
        syscall(NR.ioctl, self.fd, _UFFDIO_WAKE, int(ffi.cast("uintptr_t", arg)))


class FaultLog:
    """What a userfaultfd tells: write faults, which are answered, and events; for all threads.

    One thread keeps it, in C: it needs neither the interpreter nor anything else that may have to
    wait for the task whose fault it answers. Making a `socket` of a task's descriptor is such a
    wait, in getsockname(2), with the interpreter's lock held: the task may be inside a recv(2)
    whose buffer faults.
    """

    def __init__(self) -> None:
        self._vectors = [_vectors(), _vectors()]
        faults, events = self._vectors[0]
        self._log = ffi.new("struct core_log *", {"faults": faults, "events": events})
        self._log.room = _ROOM
        self._counts = ffi.new("uint64_t[2]")
        check(lib.core_log_init(self._log), "pthread_mutex_init")

    def keep(self, uffd: Userfaultfd, stop: int) -> bool:
        """Answer until a descriptor can be read; False if the log has to be taken first."""
        return check(lib.core_log_keep(self._log, uffd.fd, stop), "read userfaultfd") == 1

    def answer(self, uffd: Userfaultfd) -> int:
        """Answer what is there; returns how much that was."""
        return check(lib.core_log_answer(self._log, uffd.fd), "read userfaultfd")

    def delay(self, ns: int) -> None:
        """Let each answer take so much longer."""
        self._log.delay_ns = ns

    def take(self) -> tuple[bytes, list[Event]]:
        """Empty it: the faults' addresses, eight bytes each in their order, and the events.

        Not to be called by two threads at once.
        """
        faults, events = self._vectors[1]
        lib.core_log_take(self._log, faults, events, self._counts)
        n_faults, n_events = self._counts
        return bytes(ffi.buffer(faults, n_faults * 8)), [
            Event(Kind(event.kind), event.start, event.end, event.flags)
            for event in events[0:n_events]
        ]


def _vectors() -> tuple[ffi.CData, ffi.CData]:
    """Return room for faults and events; it takes memory only as it is used."""
    new = ffi.new_allocator(should_clear_after_alloc=False)
    return new("uint64_t[]", _ROOM), new("struct core_event[]", _ROOM)
