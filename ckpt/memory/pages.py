# SPDX-License-Identifier: Apache-2.0
"""Pages of private memory: out of a stopped task into pages-N.img, and back in at once.

Out by process_vm_readv, many runs at a time, through one small buffer that stays in the CPU's
cache. Back in by preadv, made by the task itself: one copy, from the page cache to its place.
"""

import mmap
import os
from collections.abc import Iterable, Iterator
from itertools import chain

from ckpt.errors import ImageError, KernelError
from ckpt.image import pb
from ckpt.image.pages import PAGE, PE_LAZY, PE_PRESENT, PageReader, PageRun, PageWriter
from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import ffi, lib
from ckpt.kernel.pagemap import Page, Region, scan
from ckpt.kernel.remote import Batch, Call
from ckpt.memory.vmas import MAP_HUGETLB, MAP_LOCKED, Status, guard, is_private

_BUFFER = 1 << 20
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
    if not (is_private(entry) or entry.status & Status.VDSO):
        return [], []
    none_of = Page.PFNZERO
    if entry.status & Status.FILE_PRIVATE:
        none_of |= Page.FILE
    wanted = Page.PRESENT | Page.SWAPPED | Page.GUARD
    found = list(
        scan(pagemap, entry.start, entry.end, any_of=wanted, none_of=none_of, tell=Page.GUARD)
    )
    guards = [guard(run.start, run.end) for run in found if run.categories & Page.GUARD]
    return [run for run in found if not run.categories & Page.GUARD], guards


def flags_of(entry: pb.vma_entry) -> int:
    """Return the pagemap flags for a mapping's pages; what is lazy CRIU too can restore late."""
    lazy = entry.status & Status.ANON_PRIVATE and not entry.status & Status.VDSO
    return PE_PRESENT | (PE_LAZY if lazy and not entry.flags & (MAP_LOCKED | MAP_HUGETLB) else 0)


class Buffer:
    """The one buffer through which pages of a task go to a file."""

    def __init__(self, pid: int, mem: int) -> None:
        self._pid, self._mem = pid, mem
        self._map = mmap.mmap(-1, _BUFFER)
        self._view = memoryview(self._map)
        self._address = ffi.from_buffer(self._map)

    def __enter__(self) -> "Buffer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory back."""
        self._view.release()
        ffi.release(self._address)
        self._map.close()

    def copy(self, runs: Iterable[Region], writer: PageWriter) -> None:
        """Write the pages of all runs, in order."""
        for pieces, size in _filled(runs):
            self._read(pieces, size)
            writer.write(self._view[:size])

    def _read(self, pieces: list[tuple[int, int]], size: int) -> None:
        ranges = ffi.new("struct core_range[]", pieces)
        if lib.core_vm_read(self._pid, ranges, len(pieces), self._address) == size:
            return
        # A page that may not be read (PROT_NONE): /proc/PID/mem reads it all the same.
        at = 0
        for start, length in pieces:
            try:
                got = os.preadv(self._mem, [self._view[at : at + length]], start)
            except OSError as error:
                number = error.errno or 0
                raise KernelError(number, "reading memory", pid=self._pid, addr=start) from error
            if got != length:
                raise KernelError(5, "reading memory", pid=self._pid, addr=start + got)
            at += length


def _filled(runs: Iterable[Region]) -> Iterator[tuple[list[tuple[int, int]], int]]:
    """Yield pieces (start, length) that fill the buffer, and how much of it they fill."""
    pieces: list[tuple[int, int]] = []
    size = 0
    for start, end, _ in runs:
        while start < end:
            length = min(end - start, _BUFFER - size)
            pieces.append((start, length))
            start, size = start + length, size + length
            if size == _BUFFER:
                yield pieces, size
                pieces, size = [], 0
    if pieces:
        yield pieces, size


# --- restore


class Filler:
    """Reads pages of an image into a task's mappings, by the task's own preadv.

    fds maps a descriptor of ours to the number it has in the task.
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
