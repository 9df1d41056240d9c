# SPDX-License-Identifier: Apache-2.0
"""Pages of memory: a pagemap (runs in address order) and the raw pages that it stands for.

`pages-N.img` holds the runs marked PRESENT in pagemap order and nothing else, so the place of a
page follows from the pagemap alone. A writer may fill it in any order once all runs are added.
"""

import errno
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import NamedTuple, Self

from ckpt.errors import ImageError
from ckpt.image import pb
from ckpt.image.directory import ImageDir
from ckpt.image.kinds import KINDS

PAGE = 4096
"""Bytes in a page, on every architecture that the format is used on here."""
PE_PARENT = 1
"""The pages are in the parent image."""
PE_LAZY = 2
"""The pages need not be there before the task runs."""
PE_PRESENT = 4
"""The pages are in pages-N.img."""

_KNOWN = PE_PARENT | PE_LAZY | PE_PRESENT
_END = 1 << 64
_LONGEST_RUN = 1 << 18


class PageRun(NamedTuple):
    """Adjacent pages with the same flags.

    `vaddr` is in bytes (in a shmem pagemap: from the start of the object), `nr_pages` in pages.
    The bytes are in the file `fd` from byte `offset`. PE_PARENT is never set here: `fd` is the
    file that really holds the pages. `fd` is -1 for pages that only a page server has (PE_LAZY).
    """

    vaddr: int
    nr_pages: int
    flags: int
    fd: int
    offset: int

    @property
    def end(self) -> int:
        """Address behind the last page."""
        return self.vaddr + self.nr_pages * PAGE

    def part(self, start: int, end: int) -> "PageRun":
        """Return the pages of this run within [start, end), which must overlap it."""
        vaddr = max(self.vaddr, start)
        nr_pages = (min(self.end, end) - vaddr) // PAGE
        offset = self.offset + vaddr - self.vaddr if self.flags & PE_PRESENT else 0
        return PageRun(vaddr, nr_pages, self.flags, self.fd, offset)


class PageWriter:
    """Writes a pagemap and its pages; a context manager.

    Leaving without an exception writes the pagemap. `kind` is "pagemap" or "pagemap-shmem";
    `pages_id` must be used once in the image.
    """

    def __init__(self, image: ImageDir, kind: str, id: int, pages_id: int) -> None:
        self.fd = image.open_raw("pages", pages_id, write=True)
        """pages-N.img, empty; pwrite wherever `add` said, or write in order."""
        self.size = 0
        """Bytes that pages-N.img must have when closed."""
        self.name = image.place(KINDS["pages"].file_name(pages_id))
        self._image = image
        self._kind = kind
        self._id = id
        self._pages_id = pages_id
        self._runs: list[tuple[int, int, int]] = []
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        self.abandon()

    def abandon(self) -> None:
        """Close the file if close() has not, and write no pagemap."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def add(self, vaddr: int, nr_pages: int, flags: int) -> int:
        """Add a run behind all others; return the byte offset in pages-N.img for its pages.

        Raises ValueError for a run that is out of order, empty or not page aligned.
        """
        if vaddr < self._end or vaddr % PAGE or nr_pages <= 0:
            raise ValueError(f"pages {vaddr:#x}+{nr_pages} after {self._end:#x}")
        offset = self.size
        if flags & PE_PRESENT:
            self.size += nr_pages * PAGE
        if self._runs and self._end == vaddr and self._runs[-1][2] == flags:
            start, before, _ = self._runs.pop()
            self._runs.append((start, before + nr_pages, flags))
        else:
            self._runs.append((vaddr, nr_pages, flags))
        self._end = vaddr + nr_pages * PAGE
        return offset

    def write(self, data: memoryview | bytes) -> None:
        """Write pages behind those already written; ImageError if the disk is full, say."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.fd, view) :]
        except OSError as error:
            raise ImageError(f"{self.name}: {error.strerror}") from error

    def pwrite(self, data: memoryview, offset: int) -> None:
        """Write pages where `add` has said, from any thread; raises ImageError as `write` does."""
        try:
            while data:
                written = os.pwrite(self.fd, data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            raise ImageError(f"{self.name}: {error.strerror}") from error

    def rewrite(self, pieces: Iterable[tuple[int, int, int]]) -> None:
        """Make the pages file anew of pieces (descriptor, offset, length), itself one of them."""
        with self._image.rewritten("pages", self._pages_id) as fd:
            for source, offset, length in pieces:
                while length:
                    copied = os.copy_file_range(source, fd, length, offset)
                    if not copied:
                        raise ImageError(f"{self.name}: pages are missing at {offset}")
                    offset, length = offset + copied, length - copied
            own = os.dup(fd)
        os.close(self.fd)
        self.fd = own

    def close(self) -> None:
        """Write the pagemap; raise ImageError if pages are missing, or are too many."""
        if self.fd < 0:
            return
        found = os.fstat(self.fd).st_size
        os.close(self.fd)
        self.fd = -1
        if found != self.size:
            raise ImageError(f"{self.name}: {found} bytes were written, expected {self.size}")
        write_pagemap(self._image, self._kind, self._id, self._pages_id, self._runs)


def write_pagemap(
    image: ImageDir, kind: str, id: int, pages_id: int, runs: Iterable[tuple[int, int, int]]
) -> None:
    """Write a pagemap of these runs (vaddr, nr_pages, flags)."""
    with image.writer(kind, id) as writer:
        writer.append(pb.pagemap_head(pages_id=pages_id))
        for vaddr, nr_pages, flags in _cut(runs):
            # Real CRIU wants the old 32-bit count to be there, and reads the new one.
            writer.append(
                pb.pagemap_entry(vaddr=vaddr, compat_nr_pages=0, flags=flags, nr_pages=nr_pages)
            )


def _cut(runs: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yield runs of 1 GiB at most: criu lazy-pages loses its place in one of 4 GiB."""
    for vaddr, nr_pages, flags in runs:
        for first in range(0, nr_pages, _LONGEST_RUN):
            yield vaddr + first * PAGE, min(nr_pages - first, _LONGEST_RUN), flags


class PageReader:
    """The pages of one pagemap, wherever in the chain of parents they are; a context manager.

    Everything is checked when it is made: the order of the runs, the length of every pages file,
    and that a parent has what is left to it. Owns the descriptors in the runs.
    """

    def __init__(self, image: ImageDir, kind: str, id: int) -> None:
        self.runs: list[PageRun] = []
        """In address order; never overlapping."""
        self._fds: list[int] = []
        try:
            for layer in reversed(list(_layers(image, kind, id))):
                self.runs = self._resolve(layer, all_there=layer.image is image)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[PageRun]:
        return iter(self.runs)

    def close(self) -> None:
        """Close the pages files."""
        while self._fds:
            os.close(self._fds.pop())

    def find(self, vaddr: int) -> PageRun | None:
        """Return the run that the page at `vaddr` is in, or None if the image has no such page."""
        at = bisect_right(self.runs, vaddr, key=attrgetter("vaddr")) - 1
        return self.runs[at] if at >= 0 and vaddr < self.runs[at].end else None

    def _resolve(self, layer: "Layer", *, all_there: bool) -> list[PageRun]:
        """Put one image's pagemap on top of `self.runs`, those of its parents.

        A parent may lack pages: `dedup` takes those that a newer image has.
        """
        fd = layer.open_pages()
        if fd >= 0:
            self._fds.append(fd)
        offset = 0
        runs: list[PageRun] = []
        for vaddr, nr_pages, flags in layer.entries:
            if flags & PE_PARENT:
                found = list(self._from_parent(vaddr, nr_pages, flags & PE_LAZY))
                if all_there:
                    _check_gapless(found, vaddr, nr_pages, layer.name)
                runs += found
            elif flags & PE_PRESENT:
                run = PageRun(vaddr, nr_pages, flags, fd, offset)
                runs += _without_holes(run) if layer.image.deduplicated else [run]
                offset += nr_pages * PAGE
            else:
                runs.append(PageRun(vaddr, nr_pages, flags, -1, 0))
        return runs

    def _from_parent(self, start: int, nr_pages: int, lazy: int) -> Iterator[PageRun]:
        """Yield the parents' runs for these pages; the newer image says whether they are lazy."""
        end = start + nr_pages * PAGE
        at = max(bisect_right(self.runs, start, key=attrgetter("vaddr")) - 1, 0)
        for index in range(at, len(self.runs)):
            run = self.runs[index]
            if run.vaddr >= end:
                return
            if run.end > start:
                flags = PE_PRESENT | lazy if run.flags & PE_PRESENT else PE_LAZY
                yield run.part(start, end)._replace(flags=flags)


def _check_gapless(runs: list[PageRun], start: int, nr_pages: int, name: str) -> None:
    """Raise ImageError if these runs are not all of the pages."""
    end = start + nr_pages * PAGE
    for run in runs:
        if run.vaddr != start:
            break
        start = run.end
    if start != end:
        raise ImageError(f"{name}: page {start:#x} is not in the parent image")


def _without_holes(run: PageRun) -> Iterator[PageRun]:
    """Yield what `dedup` has left of a run: a newer image has the rest, but maybe not ours."""
    at, end = run.offset, run.offset + run.nr_pages * PAGE
    while at < end:
        try:
            data = os.lseek(run.fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # there is none behind it
                return
            raise ImageError(f"looking for holes: {error.strerror}") from error
        # A page is there as a whole or not at all.
        first, at = -(-data // PAGE) * PAGE, os.lseek(run.fd, data, os.SEEK_HOLE) // PAGE * PAGE
        last = min(at, end)
        if first < last:
            start = run.vaddr + first - run.offset
            yield run.part(start, start + last - first)


class Layer(NamedTuple):
    """The pagemap of one image in the chain: entries are (vaddr, nr_pages, flags), checked."""

    image: ImageDir
    name: str
    pages_id: int
    entries: list[tuple[int, int, int]]

    def here(self, fd: int = -1) -> Iterator[PageRun]:
        """Yield each run that is in its pages file, which fd is open on."""
        offset = 0
        for vaddr, nr_pages, flags in self.entries:
            if _is_here(flags):
                yield PageRun(vaddr, nr_pages, flags, fd, offset)
                offset += nr_pages * PAGE

    def open_pages(self, *, write: bool = False) -> int:
        """Open the pages file; raise ImageError if it is too short. -1 if none is needed."""
        need = sum(nr_pages for _, nr_pages, flags in self.entries if _is_here(flags)) * PAGE
        if not need:
            return -1
        fd = self.image.open_raw("pages", self.pages_id, change=write)
        size = os.fstat(fd).st_size
        if size < need:
            os.close(fd)
            name = self.image.place(KINDS["pages"].file_name(self.pages_id))
            raise ImageError(f"{name}: {size} bytes, but {self.name} has pages for {need}")
        return fd


def _is_here(flags: int) -> bool:
    return bool(flags & PE_PRESENT) and not flags & PE_PARENT


def _layers(image: ImageDir, kind: str, id: int) -> Iterator[Layer]:
    """Yield the pagemaps of an image and of its parents, as far back as pages are left to them."""
    seen = set()
    while True:
        status = os.fstat(image.fd)
        if (status.st_dev, status.st_ino) in seen:
            raise ImageError(f"{image.path}: is its own parent")
        seen.add((status.st_dev, status.st_ino))
        layer = read_pagemap(image, kind, id)
        yield layer
        if not any(flags & PE_PARENT for _, _, flags in layer.entries):
            return
        if image.parent is None:
            raise ImageError(f"{layer.name}: leaves pages to the parent, but there is no parent")
        image = image.parent


def read_pagemap(image: ImageDir, kind: str, id: int) -> Layer:
    """Return the pagemap of one image, without its parents'."""
    name = image.place(KINDS[kind].file_name(id))
    with image.source(kind, id) as source:
        records = source.records(KINDS[kind])
        head = next(records, None)
        if head is None:
            raise source.error("expected a pagemap_head")
        entries: list[tuple[int, int, int]] = []
        end = 0
        for record in records:
            entry = _checked(record.message, end)
            if entry is None:
                raise source.error(f"pages must be in order after {end:#x}, and be somewhere")
            entries.append(entry)
            end = entry[0] + entry[1] * PAGE
    return Layer(image, name, head.message.pages_id, entries)


def _checked(entry: "pb.pagemap_entry", start: int) -> tuple[int, int, int] | None:
    """Return (vaddr, nr_pages, flags) of an entry at or after `start`; None if it is wrong."""
    nr_pages = entry.nr_pages if entry.HasField("nr_pages") else entry.compat_nr_pages
    flags = entry.flags
    if not entry.HasField("flags"):  # written before there were flags
        flags = PE_PARENT if entry.in_parent else PE_PRESENT
    vaddr = entry.vaddr
    if vaddr < start or vaddr % PAGE or not 0 < nr_pages <= (_END - vaddr) // PAGE:
        return None
    return (vaddr, nr_pages, flags) if flags & _KNOWN == flags != 0 else None
