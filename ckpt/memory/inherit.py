# SPDX-License-Identifier: Apache-2.0
"""What a forked task keeps of its maker's memory, so that the two go on sharing pages (COW).

A private mapping is kept where both images have it alike, at the same place: what either has grown,
cut or put elsewhere since the fork is unmapped or made anew. Of the pages only those are read that
differ, as the images tell: nobody looks at the memory itself.
"""

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import NamedTuple

from ckpt.image import pb
from ckpt.image.pages import PAGE, PageRun
from ckpt.kernel.arch import NR
from ckpt.kernel.remote import Batch
from ckpt.memory.layout import Range, intersect, subtract, union
from ckpt.memory.vmas import (
    FILE_BACKED,
    GUARD,
    MAP_GROWSDOWN,
    MAP_HUGETLB,
    MAP_LOCKED,
    PROT_READ,
    PROT_WRITE,
    Status,
    is_private,
    map_in,
)

_MADV_DONTFORK, _MADV_WIPEONFORK = 10, 18
_NOT_FORKED = 1 << _MADV_DONTFORK | 1 << _MADV_WIPEONFORK
_KIND = Status.ANON_PRIVATE.value | FILE_BACKED
_WINDOW = 1 << 20


class Kept(NamedTuple):
    """A part of a mapping that is kept; its protection is still the maker's."""

    start: int
    end: int
    prot: int


def kept(own: Iterable[pb.vma_entry], makers: Iterable[pb.vma_entry]) -> dict[int, list[Kept]]:
    """Return what is kept of each mapping, by its start; both are in the order of addresses."""
    own, makers = list(own), list(makers)
    guards = union((one.start, one.end) for one in own + makers if one.status & GUARD)
    theirs = [entry for entry in makers if _can_be_kept(entry, guards)]
    found: dict[int, list[Kept]] = {}
    at = 0
    for entry in own:
        while at < len(theirs) and theirs[at].end <= entry.start:
            at += 1
        if _can_be_kept(entry, guards):
            pieces = [
                Kept(max(entry.start, maker.start), min(entry.end, maker.end), maker.prot)
                for maker in _until(entry.end, theirs, at)
                if _alike(entry, maker)
            ]
            if pieces:
                found[entry.start] = pieces
    return found


def _until(end: int, entries: list[pb.vma_entry], at: int) -> Iterator[pb.vma_entry]:
    while at < len(entries) and entries[at].start < end:
        yield entries[at]
        at += 1


def _can_be_kept(entry: pb.vma_entry, guards: list[Range]) -> bool:
    """Say whether a mapping is forked, with all of its pages; guards do not overlap."""
    if not is_private(entry) or entry.flags & MAP_HUGETLB or entry.madv & _NOT_FORKED:
        return False
    below = bisect_left(guards, (entry.end, 0)) - 1
    return below < 0 or guards[below][1] <= entry.start


def _alike(own: pb.vma_entry, maker: pb.vma_entry) -> bool:
    """Say whether the one may be what a fork has made of the other; protection can be changed."""
    if (own.flags ^ maker.flags) & ~MAP_LOCKED or (own.status ^ maker.status) & _KIND:
        return False
    if own.flags & MAP_GROWSDOWN and own.start < maker.start:
        return False  # nothing but a fault grows it downwards
    if own.status & FILE_BACKED and (own.shmid, own.fdflags, own.start - own.pgoff) != (
        (maker.shmid, maker.fdflags, maker.start - maker.pgoff)
    ):
        return False
    return bool(own.madv == maker.madv and own.name == maker.name)


def complete(entry: pb.vma_entry, pieces: list[Kept], fd: int, batch: Batch, *, fill: bool) -> None:
    """Add the calls that make a whole mapping of the kept pieces, writable if it is to be filled.

    What follows a piece is grown out of it: as one mapping, which mremap(2) of it needs.
    """
    ends = {piece.end for piece in pieces}
    for start, end in subtract([(entry.start, entry.end)], [piece[:2] for piece in pieces]):
        if start in ends:
            batch.call(NR.mremap, start - PAGE, PAGE, PAGE + end - start, 0, must=True)
            continue
        part = pb.vma_entry()
        part.CopyFrom(entry)
        part.start, part.end = start, end
        part.pgoff = entry.pgoff + start - entry.start if entry.status & FILE_BACKED else 0
        map_in(part, fd, batch, fill=fill)
    prot = entry.prot | PROT_READ | PROT_WRITE if fill else entry.prot
    if any(piece.prot != prot for piece in pieces):
        batch.call(NR.mprotect, entry.start, entry.end - entry.start, prot, must=True)


class Difference(NamedTuple):
    """What is to be read into kept memory, what is to be given back, and how much was compared."""

    runs: list[PageRun]
    gone: list[Range]
    compared: int
    same: int


def difference(own: list[PageRun], makers: list[PageRun], pieces: list[Kept]) -> Difference:
    """Compare the pages that a mapping has in the image with those that its maker has."""
    ranges = [(run.vaddr, run.end) for run in own]
    cut = [run.part(piece.start, piece.end) for piece in pieces for run in _within(piece, makers)]
    theirs = [(run.vaddr, run.end) for run in cut]
    same = union(_same(own, cut))
    runs, at = [], 0
    for start, end in subtract(ranges, same):
        while own[at].end <= start:
            at += 1
        runs.append(own[at].part(start, end))
    compared = sum(end - start for start, end in intersect(ranges, theirs)) // PAGE
    alike = sum(end - start for start, end in same) // PAGE
    return Difference(runs, subtract(theirs, union(ranges)), compared, alike)


def _within(piece: Kept | PageRun, runs: list[PageRun]) -> Iterator[PageRun]:
    """Yield the runs that have a part in it."""
    start = piece[0]
    at = max(bisect_right(runs, start, key=attrgetter("vaddr")) - 1, 0)
    while at < len(runs) and runs[at].vaddr < piece.end:
        if runs[at].end > start:
            yield runs[at]
        at += 1


def _same(own: list[PageRun], theirs: list[PageRun]) -> Iterator[Range]:
    """Yield where the two have the same bytes."""
    for run in own:
        for other in _within(run, theirs):
            start, end = max(run.vaddr, other.vaddr), min(run.end, other.end)
            if run.fd >= 0 and other.fd >= 0:
                yield from _same_pages(run.part(start, end), other.part(start, end))


def _same_pages(one: PageRun, other: PageRun) -> Iterator[Range]:
    for at in range(0, one.nr_pages * PAGE, _WINDOW):
        length, start = min(_WINDOW, one.nr_pages * PAGE - at), one.vaddr + at
        ours = os.pread(one.fd, length, one.offset + at)
        theirs = os.pread(other.fd, length, other.offset + at)
        if ours == theirs:
            yield start, start + length
            continue
        for page in range(0, length, PAGE):
            if ours[page : page + PAGE] == theirs[page : page + PAGE]:
                yield start + page, start + page + PAGE
