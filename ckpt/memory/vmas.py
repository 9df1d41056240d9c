# SPDX-License-Identifier: Apache-2.0
"""Mappings: from smaps to vma_entry records of mm-PID.img, and back by mmap in the task."""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from enum import IntFlag

from ckpt.errors import ImageError, Unsupported
from ckpt.image import pb
from ckpt.kernel.arch import NR, TASK_SIZE
from ckpt.kernel.maps import SmapsEntry
from ckpt.kernel.remote import Batch
from ckpt.kernel.way import Way

PAGE = 4096
PROT_READ, PROT_WRITE = 1, 2
MAP_SHARED, MAP_PRIVATE, MAP_ANON, MAP_GROWSDOWN = 1, 2, 0x20, 0x100
MAP_LOCKED, MAP_NORESERVE, MAP_HUGETLB, MAP_FIXED_NOREPLACE = 0x2000, 0x4000, 0x40000, 0x100000
MADV_GUARD_INSTALL = 102
MADV_WIPEONFORK = 18
_HUGE_SHIFT, _HUGE_MASK = 26, 0x3F << 26
_MMAP_FLAGS = MAP_SHARED | MAP_PRIVATE | MAP_ANON | MAP_GROWSDOWN | MAP_NORESERVE | MAP_HUGETLB
_PR_SET_VMA, _ANON_NAME = 0x53564D41, 0
_MLOCK_ONFAULT = 1


class Status(IntFlag):
    """What a mapping is; the format's bits, and from 1 << 28 ours."""

    REGULAR = 1 << 0
    STACK = 1 << 1
    VSYSCALL = 1 << 2
    VDSO = 1 << 3
    HEAP = 1 << 5
    FILE_PRIVATE = 1 << 6
    FILE_SHARED = 1 << 7
    ANON_SHARED = 1 << 8
    ANON_PRIVATE = 1 << 9
    SYSVIPC = 1 << 10
    SOCKET = 1 << 11
    VVAR = 1 << 12
    AIORING = 1 << 13
    MEMFD = 1 << 14
    GUARD = 1 << 16
    EXT_PLUGIN = 1 << 27
    LOCK_ONFAULT = 1 << 28


# Plain numbers: an IntFlag's `&` takes as long as a system call, and there are thousands of them.
GUARD = int(Status.GUARD)
FILE_BACKED = int(Status.FILE_PRIVATE | Status.FILE_SHARED)
KERNELS_OWN = int(Status.VDSO | Status.VVAR | Status.VSYSCALL)
_PRIVATE = int(Status.ANON_PRIVATE | Status.FILE_PRIVATE)
_NOT_PRIVATE = KERNELS_OWN | GUARD
_VSYSCALL = int(Status.VSYSCALL)
_NOT_RESTORED = int(Status.AIORING | Status.SOCKET | Status.EXT_PLUGIN)

# VmFlags of proc_pid_smaps(5) and the madvise(2) advice that sets them.
_ADVICE = {"rr": 1, "sr": 2, "dc": 10, "mg": 12, "hg": 14, "nh": 15, "dd": 16, "wf": 18}
_FLAGS = {"gd": MAP_GROWSDOWN, "lo": MAP_LOCKED, "nr": MAP_NORESERVE}
_NAMED = {
    "[vdso]": Status.VDSO | Status.ANON_PRIVATE,
    "[vvar]": Status.VVAR | Status.ANON_PRIVATE,
    "[vvar_vclock]": Status.VVAR | Status.ANON_PRIVATE,
    "[heap]": Status.HEAP | Status.ANON_PRIVATE,
}
FileId = Callable[[SmapsEntry, int], int]


def dump(mapping: SmapsEntry, file_id: FileId) -> pb.vma_entry:
    """Return the record of a mapping.

    file_id(mapping, open flags) saves the file behind a mapping and returns its id.
    """
    status = status_of(mapping)
    entry = pb.vma_entry(
        start=mapping.start, end=mapping.end, pgoff=0, shmid=0, prot=mapping.prot, fd=-1,
        flags=_flags(mapping, status), status=status,
    )  # fmt: skip
    advice = sum(1 << advice for flag, advice in _ADVICE.items() if flag in mapping.vm_flags)
    if advice and not status & (Status.VDSO | Status.VSYSCALL):
        entry.madv = advice
    if status & Status.SYSVIPC:
        entry.pgoff, entry.shmid = mapping.pgoff, mapping.inode
        entry.fdflags = 2 if "mw" in mapping.vm_flags else 0  # as attached: SHM_RDONLY or not
    elif status & FILE_BACKED:
        entry.fdflags = 2 if status & Status.FILE_SHARED and "mw" in mapping.vm_flags else 0
        entry.pgoff, entry.shmid = mapping.pgoff, file_id(mapping, entry.fdflags)
    elif mapping.path.startswith("[anon:"):
        entry.name = mapping.path[6:-1]
    return entry


def status_of(mapping: SmapsEntry) -> Status:
    """Say what a mapping is, by what smaps shows."""
    path = mapping.path
    if path == "[vsyscall]":
        return Status.VSYSCALL | Status.ANON_PRIVATE
    status = Status.REGULAR
    if "lf" in mapping.vm_flags:
        status |= Status.LOCK_ONFAULT
    if path in _NAMED:
        return status | _NAMED[path]
    if mapping.shared and path.startswith("/SYSV"):
        return status | Status.ANON_SHARED | Status.SYSVIPC
    if not mapping.inode or (not mapping.shared and path.startswith("/anon_hugepage")):
        return status | Status.ANON_PRIVATE
    status |= Status.FILE_SHARED if mapping.shared else Status.FILE_PRIVATE
    return status | Status.MEMFD if is_memory_file(mapping) else status


def is_sysv(status: int) -> bool:
    """Say whether a mapping of this status is of a System V segment."""
    return bool(status & Status.SYSVIPC)


def is_memory_file(mapping: SmapsEntry) -> bool:
    """Say whether the file behind a mapping is memory without a name: a memfd, shared anonymous."""
    nameless = ("/memfd:", "/anon_hugepage", "[anon_shmem:")
    return mapping.path.startswith(nameless) or (
        mapping.shared and mapping.path == "/dev/zero (deleted)"
    )


def _flags(mapping: SmapsEntry, status: Status) -> int:
    flags = MAP_SHARED if mapping.shared else MAP_PRIVATE
    if not status & FILE_BACKED:
        flags |= MAP_ANON
    if "ht" in mapping.vm_flags:
        flags |= MAP_HUGETLB | (mapping.kernel_page_size.bit_length() - 1) << _HUGE_SHIFT
    return flags | sum(bit for flag, bit in _FLAGS.items() if flag in mapping.vm_flags)


_REFUSED = {
    "/[aio]": "an AIO context (io_setup) is not dumped: have the program destroy it",
    "anon_inode:[io_uring]": "an io_uring cannot be dumped: have the program use epoll",
    "anon_inode:[perf_event]": "stop the profiler first",
}


def check(way: Way, mapping: SmapsEntry) -> None:
    """Raise Unsupported for a mapping that cannot be dumped."""
    where = f"mapping {mapping.start:#x}-{mapping.end:#x} of pid {way.pid} ({mapping.path})"
    for path, hint in _REFUSED.items():
        if mapping.path.startswith(path):
            raise Unsupported(f"{where}: not supported", hint=hint)
    if "um" in mapping.vm_flags and not _has_userfaultfd(way.tid):
        raise Unsupported(
            f"pid {way.pid} is still being restored: {where} does not have all its pages yet",
            hint="try again when the pager has left; it does so when all pages are in",
        )
    if mapping.vm_flags & {"um", "uw", "ui"}:
        raise Unsupported(
            f"{where}: registered with a userfaultfd of the target",
            hint="a program that handles its own page faults cannot be dumped",
        )
    if mapping.vm_flags & {"io", "pf"} and mapping.path not in _NAMED and mapping.inode:
        raise Unsupported(f"{where}: device memory", hint="a plugin for this device must dump it")


def _has_userfaultfd(tid: int) -> bool:
    """Say whether a process has one itself: its faults may be its own affair."""
    for fd in os.listdir(f"/proc/{tid}/fd"):
        with suppress(FileNotFoundError):  # it runs, and may close what it likes
            if "userfaultfd" in os.readlink(f"/proc/{tid}/fd/{fd}"):
                return True
    return False


def merged_vvar(entries: Iterable[pb.vma_entry]) -> list[pb.vma_entry]:
    """Return the entries with adjacent vvar parts as one: so does CRIU, and Linux before 6.13."""
    merged: list[pb.vma_entry] = []
    for entry in entries:
        last = merged[-1] if merged else None
        if last and last.status & entry.status & Status.VVAR and last.end == entry.start:
            last.end = entry.end
        else:
            merged.append(entry)
    return merged


def guard(start: int, end: int) -> pb.vma_entry:
    """Return the record of guard pages (MADV_GUARD_INSTALL) inside a mapping."""
    return pb.vma_entry(
        start=start, end=end, pgoff=0, shmid=0, prot=0, flags=0, status=Status.GUARD, fd=-1
    )


# --- restore


def checked(entries: Iterable[pb.vma_entry]) -> list[pb.vma_entry]:
    """Return the mappings of an image, those the kernel makes by itself left out.

    Raises ImageError unless they are page aligned, in the task's part of the address space, and
    do not overlap.
    """
    found, end = [], 0
    for entry in entries:
        if entry.status & _VSYSCALL:
            continue
        low = end if not entry.status & GUARD else 0
        aligned = not (entry.start | entry.end | entry.pgoff) % PAGE
        if not aligned or not low <= entry.start < entry.end <= TASK_SIZE:
            raise ImageError(f"mm: no mapping can be at {entry.start:#x}-{entry.end:#x}")
        if entry.status & _NOT_RESTORED:
            what = Status(entry.status)
            raise ImageError(f"mm: the mapping at {entry.start:#x} ({what!r}) is not restored here")
        end = max(end, entry.end)
        found.append(entry)
    return found


def is_private(entry: pb.vma_entry) -> bool:
    """Say whether the mapping's written pages are the task's own, saved in its pagemap."""
    return bool(entry.status & _PRIVATE) and not entry.status & _NOT_PRIVATE


def map_in(entry: pb.vma_entry, fd: int, batch: Batch, *, fill: bool) -> None:
    """Add the call that makes a mapping, writable if it is to be filled.

    Only then: a mapping that was ever writable is accounted for, and does not merge any more with
    its neighbours that were not.
    """
    flags = entry.flags & (_MMAP_FLAGS | _HUGE_MASK) | MAP_FIXED_NOREPLACE
    prot = entry.prot | PROT_READ | PROT_WRITE if fill else entry.prot
    length = entry.end - entry.start
    batch.call(NR.mmap, entry.start, length, prot, flags, fd, entry.pgoff, must=True)


def finish(entry: pb.vma_entry, batch: Batch, *, fill: bool) -> None:
    """Add the calls that give a filled mapping its protection, advice, lock and name."""
    start, length = entry.start, entry.end - entry.start
    if entry.status & GUARD:
        batch.call(NR.madvise, start, length, MADV_GUARD_INSTALL, must=True)
        return
    if fill and entry.prot & 3 != PROT_READ | PROT_WRITE:
        batch.call(NR.mprotect, start, length, entry.prot, must=True)
    for advice in range(entry.madv.bit_length()):
        if entry.madv >> advice & 1:
            batch.call(NR.madvise, start, length, advice, must=True)
    if entry.flags & MAP_LOCKED:
        onfault = _MLOCK_ONFAULT if entry.status & Status.LOCK_ONFAULT else 0
        batch.call(NR.mlock2, start, length, onfault, must=True)
    if entry.name:
        name = batch.data(entry.name.encode()[:79] + b"\0")
        batch.call(NR.prctl, _PR_SET_VMA, _ANON_NAME, start, length, name)
