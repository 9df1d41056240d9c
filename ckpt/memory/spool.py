# SPDX-License-Identifier: Apache-2.0
"""Pages on their way to pages-N.img while it is not yet known which pages there will be.

The format has the pages in the order of their addresses, without gaps. A first look says which
pages there are, and their places follow. Pages that come up later go to a second, nameless file;
in the end they are put in between, and what has gone is taken out.
"""

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ckpt.errors import ImageError
from ckpt.image.pages import PAGE, PageWriter
from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import check, ffi, lib, syscall
from ckpt.memory.layout import Range

_Piece = tuple[int, int, int]
_EDIT = 16 << 20  # opening or closing a gap takes about as long as copying so many bytes
_AT_ONCE = 1 << 20
_COLLAPSE, _INSERT = 8, 0x20  # FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE


class Spool:
    """The pages of a process, by address. first are the ranges (start, end) of the first look."""

    def __init__(self, writer: PageWriter, directory: int, first: Iterable[Range]) -> None:
        self._writer = writer
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._offsets: list[int] = []
        self.size = 0
        for start, end in first:
            self._starts.append(start)
            self._ends.append(end)
            self._offsets.append(self.size)
            self.size += end - start
        self._extra: dict[int, int] = {}
        self._extra_fd = os.open(
            f"/proc/self/fd/{directory}", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600
        )

    def close(self) -> None:
        """Let the second file go."""
        if self._extra_fd >= 0:
            os.close(self._extra_fd)
            self._extra_fd = -1

    def put(self, pieces: list[Range], data: memoryview) -> None:
        """Keep pages, pieces (start, length) of them, instead of what was kept for them before."""
        places: list[Range] = []
        begun = at = 0
        for start, length in pieces:
            end = at + length
            while at < end:
                offset, some = self._place(start, end - at)
                if offset < 0:
                    self._write(data[begun:at], places)
                    self._put_extra(start, data[at : at + some])
                    begun, places = at + some, []
                else:
                    places.append((offset, some))
                start, at = start + some, at + some
        self._write(data[begun:at], places)

    def _write(self, data: memoryview, places: list[Range]) -> None:
        """Write pages to their places (offset, length), one behind the other in data."""
        ranges = ffi.new("struct core_range[]", places)
        ret = lib.core_pwrite_all(self._writer.fd, ranges, len(places), ffi.from_buffer(data))
        if ret < 0:
            raise ImageError(f"{self._writer.name}: {os.strerror(-ret)}")

    def _place(self, start: int, length: int) -> Range:
        """Return the offset for as much of a range as has its place together; -1 if none has."""
        at = bisect_right(self._starts, start) - 1
        if at >= 0 and start < self._ends[at]:
            inside = start - self._starts[at]
            return self._offsets[at] + inside, min(length, self._ends[at] - start)
        after = self._starts[at + 1] if at + 1 < len(self._starts) else start + length
        return -1, min(length, after - start)

    def _put_extra(self, start: int, data: memoryview) -> None:
        for page in range(0, len(data), PAGE):
            place = self._extra.setdefault(start + page, len(self._extra) * PAGE)
            os.pwrite(self._extra_fd, data[page : page + PAGE], place)

    def ranges(self) -> list[Range]:
        """Return all that is kept, as ranges (start, end) by address; adjacent ones may touch."""
        extra = [(page, page + PAGE) for page in self._extra]
        return sorted([*zip(self._starts, self._ends, strict=True), *extra])

    def arrange(self, wanted: Iterable[Range]) -> None:
        """Make pages-N.img hold just the wanted pages, in order; all of them are kept.

        Where few places differ, by opening and closing gaps in the file, which only moves extents
        (fallocate(2), ext4 and xfs); else the file is made anew.
        """
        pieces = list(self._pieces(wanted))
        edits = _edits(pieces, self._writer.fd, self.size)
        if len(edits) * _EDIT > self.size or not self._edit(edits):
            self._writer.rewrite(pieces)

    def _edit(self, edits: "list[_Edit]") -> bool:
        """Insert and take out, from the back to the front; False if the file system cannot."""
        fd, size, moved = self._writer.fd, self.size, False
        for edit in reversed(edits):
            at_end = edit.offset + (0 if edit.source is not None else edit.length) == size
            if not at_end:
                mode = _COLLAPSE if edit.source is None else _INSERT
                ret = syscall(NR.fallocate, fd, mode, edit.offset, edit.length)
                if ret < 0 and not moved:
                    return False
                check(ret, "fallocate of the pages file")
                moved = True
            if edit.source is None:
                size -= edit.length
                os.ftruncate(fd, size)
            else:
                size += edit.length
                self._fill(edit.offset, edit.source, edit.length)
        return True

    def _fill(self, offset: int, source: int, length: int) -> None:
        for at in range(0, length, _AT_ONCE):
            pages = os.pread(self._extra_fd, min(_AT_ONCE, length - at), source + at)
            self._writer.pwrite(memoryview(pages), offset + at)

    def _pieces(self, wanted: Iterable[Range]) -> "Iterator[_Piece]":
        """Yield (descriptor, offset, length) for the wanted pages."""
        for start, end in wanted:
            while start < end:
                offset, length = self._place(start, end - start)
                if offset >= 0:
                    yield self._writer.fd, offset, length
                else:
                    length = PAGE
                    yield self._extra_fd, self._extra[start], length
                start += length


class _Edit(NamedTuple):
    """A gap of length to be filled from source in the second file, or (None) to be closed."""

    offset: int
    length: int
    source: int | None


def _edits(pieces: "list[_Piece]", fd: int, size: int) -> list[_Edit]:
    """Return, by offset in the file fd of that size, what makes it the pieces in their order."""
    edits: list[_Edit] = []
    at = 0
    for source, offset, length in [*pieces, (fd, size, 0)]:
        if source != fd:
            last = edits[-1] if edits else None
            joined = last and last.source is not None and last.offset == at
            if joined and last and last.source is not None and last.source + last.length == offset:
                edits[-1] = last._replace(length=last.length + length)
            else:
                edits.append(_Edit(at, length, offset))
            continue
        if offset > at:
            edits.append(_Edit(at, offset - at, None))
        at = offset + length
    return edits
