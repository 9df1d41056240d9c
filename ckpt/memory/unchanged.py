# SPDX-License-Identifier: Apache-2.0
"""Pages that are as they were in the image before are left to that one.

Nothing has tracked who wrote what since: the bytes are compared, when the process runs again. So
it holds for memory of every kind, whatever has happened to it, and no engine knows of it. The
price is that all pages are written first, and those that stay are copied once more.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

from ckpt.errors import ImageError
from ckpt.image.directory import ImageDir
from ckpt.image.pages import (
    PAGE,
    PE_PARENT,
    PE_PRESENT,
    Layer,
    PageReader,
    PageRun,
    read_pagemap,
    write_pagemap,
)

_AT_ONCE = 256 << 10  # stays in the cache, and is allocated once
_WORTH = 16  # what saves less than one page of so many is not worth the copy of all others


class Skipped(NamedTuple):
    """How many pages are left to the image before."""

    private: int
    shared: int


class _Rooms:
    """Where pages are read to, new and old."""

    def __init__(self) -> None:
        self._rooms = bytearray(_AT_ONCE), bytearray(_AT_ONCE)

    def read(self, new: PageRun, old: PageRun) -> list[bytes | bytearray]:
        """Return the content of both."""
        if new.nr_pages * PAGE < _AT_ONCE:
            return [os.pread(run.fd, run.nr_pages * PAGE, run.offset) for run in (new, old)]
        for run, room in zip((new, old), self._rooms, strict=True):
            if os.preadv(run.fd, [room], run.offset) != _AT_ONCE:
                raise ImageError(f"pages are missing at {run.offset}")
        return list(self._rooms)


class _Part(NamedTuple):
    """Adjacent pages of a run that are all as before, or all are not."""

    run: PageRun
    same: bool


def leave_out(image: ImageDir) -> Skipped:
    """Take all pages out of an image that is not sealed yet that its parent has, too."""
    parent = image.parent
    if not parent:
        return Skipped(0, 0)

    def pages(kind: str) -> int:
        return sum(_leave_out(image, parent, kind, id_) for id_ in image.ids(kind))

    return Skipped(pages("pagemap"), pages("pagemap-shmem"))


def _leave_out(image: ImageDir, parent: ImageDir, kind: str, id: int) -> int:
    layer = read_pagemap(image, kind, id)
    fd = layer.open_pages() if parent.exists(kind, id) else -1
    if fd < 0:
        return 0
    try:
        with PageReader(parent, kind, id) as older:
            parts = list(_parts(layer, fd, older.runs, _Rooms()))
        same = sum(part.run.nr_pages for part in parts if part.same)
        if same * _WORTH < sum(part.run.nr_pages for part in parts):
            return 0
        with image.rewritten("pages", layer.pages_id) as thin:
            for part in parts:
                if not part.same:
                    _copy(fd, part.run, thin)
    finally:
        os.close(fd)
    image.remove(kind, id)
    runs = [(part.run.vaddr, part.run.nr_pages, _flags(part)) for part in parts] + _elsewhere(layer)
    write_pagemap(image, kind, id, layer.pages_id, _joined(sorted(runs)))
    return same


def _flags(part: _Part) -> int:
    return part.run.flags & ~PE_PRESENT | PE_PARENT if part.same else part.run.flags


def _elsewhere(layer: Layer) -> list[tuple[int, int, int]]:
    """Return the entries whose pages are not in the pages file."""
    here = {run.vaddr for run in layer.here()}
    return [entry for entry in layer.entries if entry[0] not in here]


def _joined(runs: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    found: list[tuple[int, int, int]] = []
    for vaddr, nr_pages, flags in runs:
        if found and found[-1][2] == flags and found[-1][0] + found[-1][1] * PAGE == vaddr:
            start, before, _ = found.pop()
            found.append((start, before + nr_pages, flags))
        else:
            found.append((vaddr, nr_pages, flags))
    return found


def _parts(layer: Layer, fd: int, older: list[PageRun], rooms: _Rooms) -> Iterator[_Part]:
    """Yield all pages of the layer, in order, compared with the older ones."""
    at = 0
    for run in layer.here(fd):
        start = run.vaddr
        while at < len(older) and older[at].end <= start:
            at += 1
        each = at
        while start < run.end:
            other = older[each] if each < len(older) else None
            if other is None or other.vaddr >= run.end:
                yield _Part(run.part(start, run.end), same=False)
                break
            if other.vaddr > start:
                yield _Part(run.part(start, other.vaddr), same=False)
                start = other.vaddr
            end = min(run.end, other.end)
            yield from _compared(run.part(start, end), other.part(start, end), rooms)
            start, each = end, each + 1


def _compared(run: PageRun, other: PageRun, rooms: _Rooms) -> Iterator[_Part]:
    if other.fd < 0:  # only a page server has it
        yield _Part(run, same=False)
        return
    for start in range(run.vaddr, run.end, _AT_ONCE):
        end = min(start + _AT_ONCE, run.end)
        new = run.part(start, end)
        yield from _pages(new, *rooms.read(new, other.part(start, end)))


def _pages(run: PageRun, new: bytes | bytearray, old: bytes | bytearray) -> Iterator[_Part]:
    if len(new) != run.nr_pages * PAGE:
        raise ImageError(f"pages of this dump are missing at {run.offset + len(new)}")
    if new == old:
        yield _Part(run, same=True)
        return
    begun, same = run.vaddr, new[:PAGE] == old[:PAGE]
    for at in range(PAGE, len(new), PAGE):
        now = new[at : at + PAGE] == old[at : at + PAGE]
        if now != same:
            yield _Part(run.part(begun, run.vaddr + at), same=same)
            begun, same = run.vaddr + at, now
    yield _Part(run.part(begun, run.end), same=same)


def _copy(fd: int, run: PageRun, thin: int) -> None:
    offset, length = run.offset, run.nr_pages * PAGE
    while length:
        copied = os.copy_file_range(fd, thin, length, offset)
        offset, length = offset + copied, length - copied
