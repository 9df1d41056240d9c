# SPDX-License-Identifier: Apache-2.0
"""fanotify(7): the system calls, and the flags that matter here."""

from enum import IntFlag

from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import check, ffi, syscall

PERMISSION = 0x10000 | 0x20000 | 0x40000 | 0x100000
"""FAN_OPEN_PERM, ACCESS, OPEN_EXEC, PRE_ACCESS: who causes one waits for the listener's answer."""


class Mark(IntFlag):
    """FAN_MARK_*: what a mark is on, and how."""

    ADD = 0x1
    MOUNT = 0x10
    IGNORED_MASK = 0x20
    IGNORED_SURV_MODIFY = 0x40
    FILESYSTEM = 0x100
    EVICTABLE = 0x200
    IGNORE = 0x400


def init(flags: int, event_flags: int) -> int:
    """Return a new group; event_flags are those of the files that its events bring."""
    return check(syscall(NR.fanotify_init, flags, event_flags), "fanotify_init")


def mark(fd: int, flags: int, mask: int, file: int) -> None:
    """Mark what a descriptor, which may be O_PATH, is open on (fanotify_mark(2))."""
    path = ffi.from_buffer(f"/proc/self/fd/{file}\0".encode())
    at = int(ffi.cast("uintptr_t", path))
    check(syscall(NR.fanotify_mark, fd, flags, mask, file, at), "fanotify_mark")
