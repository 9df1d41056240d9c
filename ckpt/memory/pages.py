# SPDX-License-Identifier: Apache-2.0
"""Pages of private memory: out of a task into pages-N.img, and back in before it runs.

Out by /proc/PID/mem, many runs at a time, through small buffers that stay in the CPU's cache.
Back in by preadv, made by the task itself: one copy, from the page cache to its place.
"""

import errno
import os
from _thread import allocate_lock
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from ckpt.errors import ImageError, KernelError
from ckpt.image import pb
from ckpt.image.pages import PAGE, PE_LAZY, PE_PRESENT, PageReader, PageRun, PageWriter
from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import ffi, lib, syscall
from ckpt.kernel.pagemap import Page, Region, scan
from ckpt.kernel.remote import Batch, Call
from ckpt.log import Log
from ckpt.memory.layout import Range
from ckpt.memory.vmas import (
    MADV_WIPEONFORK,
    MAP_HUGETLB,
    MAP_LOCKED,
    Status,
    guard,
    is_private,
)

_THERE = Page.PRESENT | Page.SWAPPED | Page.GUARD
BUFFER = 256 << 10
"""Bytes that are copied at once, at most."""
_WORTH_A_THREAD = 4 << 20
_WRITE_BACK = 8 << 20
_SYNC_WRITE = 2  # SYNC_FILE_RANGE_WRITE: begin, do not wait
_IOV_MAX = 1024
_READ_MAX = 1 << 30  # the kernel moves at most 2 GiB a call


class Counts:
    """Pages looked at and pages written."""

    __slots__ = ("scanned", "written")

    def __init__(self, scanned: int = 0, written: int = 0) -> None:
        self.scanned, self.written = scanned, written


def dumped(pagemap: int, entry: pb.vma_entry) -> tuple[list[Region], list[pb.vma_entry]]:
    """Return the runs of a mapping whose pages belong in the image, and its guard pages' records.

    Anonymous memory: all but the zero page. Private file mappings: what was written, which is
    what is no longer the file's.
    """
    kernels = bool(entry.status & Status.VDSO)
    if not (is_private(entry) or kernels):
        return [], []
    found = written(pagemap, [(entry.start, entry.end)], kernels=kernels)
    guards = [guard(run.start, run.end) for run in found if run.categories & Page.GUARD]
    return [run for run in found if not run.categories & Page.GUARD], guards


def written(pagemap: int, ranges: list[Range], *, kernels: bool = False) -> list[Region]:
    """Return the runs of private memory in ranges that are its own.

    That is neither a file's nor the zero page. Guard pages are runs of their own. With kernels it
    is the vDSO, whose pages seem a file's.
    """
    none_of = Page.PFNZERO if kernels else Page.PFNZERO | Page.FILE
    return list(scan(pagemap, ranges, any_of=_THERE, none_of=none_of, tell=Page.GUARD))


def can_be_late(entry: pb.vma_entry) -> bool:
    """Say whether a mapping's pages may come when it runs already: private anonymous ones.

    Not those that a fork wipes: a child's would be asked for like any other, and are zeros.
    """
    plain = entry.status & Status.ANON_PRIVATE and is_private(entry)
    wiped = entry.madv >> MADV_WIPEONFORK & 1
    return bool(plain) and not wiped and not entry.flags & (MAP_LOCKED | MAP_HUGETLB)


def flags_of(entry: pb.vma_entry) -> int:
    """Return the pagemap flags for a mapping's pages."""
    return PE_PRESENT | (PE_LAZY if can_be_late(entry) else 0)


def by_mapping(
    mappings: Iterable[pb.vma_entry], reader: PageReader
) -> Iterator[tuple[pb.vma_entry, list[PageRun]]]:
    """Yield each mapping with the saved runs in it, cut to it."""
    runs = iter(reader)
    run = next(runs, None)
    for entry in mappings:
        found = []
        while run and run.vaddr < entry.end:
            if run.end > entry.start and is_private(entry):
                found.append(run.part(entry.start, entry.end))
            if run.end > entry.end:
                break
            run = next(runs, None)
        yield entry, found


def copy(
    pid: int,
    mem: int,
    runs: list[Region],
    writer: PageWriter,
    log: Log,
    *,
    write_back: bool = True,
) -> None:
    """Write the pages of all runs to the file, from its begin; mem is the open /proc/PID/mem.

    With write_back the disk begins at once: the file is safe sooner, but the copy takes longer.
    Two threads where it is worth one: a file takes one write at a time, and the other reads.
    """
    job = _Copy(pid, mem, runs, writer, log, write_back=write_back)
    if sum(run.end - run.start for run in runs) < _WORTH_A_THREAD:
        job.work()
    else:
        from threading import Thread

        other = Thread(target=job.work)
        other.start()
        job.work()
        other.join()
    if job.error:
        raise job.error


class _Copy:
    """What the threads of one copy share: the pieces still to be taken, and the first error."""

    def __init__(
        self,
        pid: int,
        mem: int,
        runs: Sequence[Region],
        writer: PageWriter,
        log: Log,
        *,
        write_back: bool,
    ) -> None:
        self._pid, self._mem, self._writer = pid, mem, writer
        self._write_back = write_back
        self._pieces = filled(runs)
        self._log, self._taken, self._size = log, 0, sum(run.end - run.start for run in runs)
        self._next = allocate_lock()
        self.error: BaseException | None = None

    def work(self) -> None:
        """Copy piece by piece until there is none left, or one of us has failed."""
        try:
            view = memoryview(bytearray(BUFFER))
            while not self.error and (taken := self._take()):
                pieces, offset, size = taken
                read_into(self._pid, self._mem, pieces, view[:size])
                self._writer.pwrite(view[:size], offset)
                if self._write_back:
                    self._begin_write_back(offset + size, size)
        except BaseException as error:  # raised anew by copy(), in the thread that called it
            self.error = error

    def _take(self) -> "_Piece | None":
        with self._next:
            piece = next(self._pieces, None)
            if piece:
                self._taken += piece[2]
                self._log.copied(self._taken, self._size)
            return piece

    def _begin_write_back(self, end: int, size: int) -> None:
        if end % _WRITE_BACK < size:
            # Twice what is new, as the other thread may be late.
            begin = max(0, end - 2 * _WRITE_BACK)
            begin_write_back(self._writer.fd, begin, end - begin)


def begin_write_back(fd: int, start: int, length: int) -> None:
    """Have the disk begin to write a part of a file: the sync at the end would wait for all of it.

    And whoever leaves too much to the end is held up by the kernel (vm.dirty_ratio). Only a hint:
    what goes wrong on the disk is told by the fsync.
    """
    syscall(NR.sync_file_range, fd, start, length, _SYNC_WRITE)


def read_into(
    pid: int, mem: int, pieces: list[tuple[int, int]], view: memoryview, *, running: bool = False
) -> None:
    """Read pieces (start, length) of a task's memory, one behind the other, to fill view.

    Raises KernelError for a page that cannot be read; in a running process, that is zeros.
    """
    ranges = ffi.new("struct core_range[]", pieces)
    with ffi.from_buffer(view) as address:
        if lib.core_mem_read(mem, ranges, len(pieces), address) == len(view):
            return
    at = 0
    for start, length in pieces:
        # By pages only if it must be: what cannot be read may be one of many.
        step = PAGE if running else length
        for page in range(start, start + length, step):
            _read_page(pid, mem, page, view[at : at + step], running=running)
            at += step


def _read_page(pid: int, mem: int, start: int, view: memoryview, *, running: bool) -> None:
    """Read pages one by one, to say which cannot be read."""
    try:
        got = os.preadv(mem, [view], start)
    except OSError as error:
        if not running:
            number = error.errno or 0
            raise KernelError(number, "reading memory", pid=pid, addr=start) from error
        got = 0
    if got != len(view):
        if not running:
            raise KernelError(errno.EIO, "reading memory", pid=pid, addr=start + got)
        view[got:] = bytes(len(view) - got)


_Piece = tuple[list[tuple[int, int]], int, int]


def filled(runs: Iterable[Region | Range], most: int = BUFFER) -> Iterator[_Piece]:
    """Yield pieces (start, length) that fill a buffer, their offset in the file, and size.

    runs have their start and end first; most is the size of the buffer in bytes.
    """
    pieces: list[tuple[int, int]] = []
    offset = size = 0
    for start, end, *_ in runs:
        while start < end:
            length = min(end - start, most - size)
            pieces.append((start, length))
            start, size = start + length, size + length
            if size == most:
                yield pieces, offset, size
                pieces, offset, size = [], offset + size, 0
    if pieces:
        yield pieces, offset, size


# --- restore


class Filler:
    """Reads pages of an image into a task's mappings, by the task's own preadv.

    The task, a fork of ours, has the pages files under the numbers that they have here.
    """

    def __init__(self, reader: PageReader) -> None:
        self._reader = reader
        self._asked: list[tuple[Call, int]] = []

    def ask(self, runs: Iterable[PageRun], batch: Batch) -> int:
        """Add calls for as many of the runs as fit; returns how many runs that was."""
        taken = 0
        for group in _adjacent(runs):
            if not batch.fits(1, len(group) * 16 + 64):
                break
            self._ask(group, batch)
            taken += len(group)
        return taken

    def _ask(self, group: list[PageRun], batch: Batch) -> None:
        length = sum(run.nr_pages for run in group) * PAGE
        iov = b"".join(
            run.vaddr.to_bytes(8, "little") + (run.nr_pages * PAGE).to_bytes(8, "little")
            for run in group
        )
        call = batch.call(
            NR.preadv, group[0].fd, batch.data(iov), len(group), group[0].offset, 0, must=True
        )
        self._asked.append((call, length))

    def check(self) -> int:
        """See that all of it was read, after the batch has run; returns the pages."""
        for call, length in self._asked:
            if call.ret != length:
                raise ImageError(f"pages: {call.ret} bytes read, expected {length}")
        pages = sum(length for _, length in self._asked) // PAGE
        self._asked.clear()
        return pages


def _adjacent(runs: Iterable[PageRun]) -> Iterator[list[PageRun]]:
    """Yield groups of runs that follow each other in a file: one preadv each."""
    group: list[PageRun] = []
    size = 0
    for run in chain.from_iterable(map(_parts, runs)):
        length = run.nr_pages * PAGE
        follows = group and run.fd == group[0].fd and run.offset == group[0].offset + size
        if group and (not follows or len(group) == _IOV_MAX or size + length > _READ_MAX):
            yield group
            group, size = [], 0
        group.append(run)
        size += length
    if group:
        yield group


def _parts(run: PageRun) -> Iterator[PageRun]:
    step = _READ_MAX
    for start in range(run.vaddr, run.end, step):
        yield run.part(start, min(start + step, run.end))
