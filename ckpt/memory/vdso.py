# SPDX-License-Identifier: Apache-2.0
"""The vDSO and its data pages (vvar): moved as one, to where the image has them.

A restored task is a fork of ours, so it has this kernel's vDSO, at our place. Code of the image
may be inside it and its addresses are in the image's libc, so it must be the same, byte for byte,
as the one in the image. vDSO and vvar find each other by their distance: since Linux 6.13 there
are two kinds of vvar mappings, side by side, that CRIU keeps as one.
"""

from collections.abc import Iterable
from typing import NamedTuple

from ckpt.errors import ImageError
from ckpt.image import pb
from ckpt.kernel.arch import NR
from ckpt.kernel.maps import MapsEntry
from ckpt.kernel.remote import Batch
from ckpt.memory.layout import Range, hole, overlap
from ckpt.memory.vmas import Status

_MAYMOVE_FIXED = 3
_GROUP = int(Status.VDSO | Status.VVAR)


class Part(NamedTuple):
    """A mapping of the group."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return self.end - self.start


class Group(NamedTuple):
    """The parts of a vDSO group: data pages first or last, as they lie; code has the code."""

    parts: tuple[Part, ...]
    code: Part

    @property
    def range(self) -> Range:
        """From the first to the last byte."""
        return self.parts[0].start, self.parts[-1].end


def ours(maps: Iterable[MapsEntry]) -> Group | None:
    """Return the group in a process's maps; None if it has no vDSO."""
    parts, code = [], None
    for entry in maps:
        if entry.path in ("[vvar]", "[vvar_vclock]", "[vdso]"):
            parts.append(Part(entry.start, entry.end))
            if entry.path == "[vdso]":
                code = parts[-1]
    return Group(tuple(parts), code) if code else None


def wanted(entries: Iterable[pb.vma_entry]) -> Group | None:
    """Return the group of an image's mappings; None if it has no vDSO."""
    parts, code = [], None
    for entry in entries:
        if entry.status & _GROUP:
            parts.append(Part(entry.start, entry.end))
            if entry.status & Status.VDSO:
                code = parts[-1]
    return Group(tuple(parts), code) if code else None


def moved(group: Group, to: Group) -> Group:
    """Return our group as it lies once it is where the image has it.

    Raises ImageError if the two are not of the same shape.
    """
    distance = to.code.start - group.code.start
    low, high = group.range
    if to.code.size != group.code.size or to.range != (low + distance, high + distance):
        raise ImageError(
            "the image's vDSO is not this kernel's",
            hint="restore under the kernel that the image was dumped under",
        )
    parts = tuple(Part(part.start + distance, part.end + distance) for part in group.parts)
    code = Part(group.code.start + distance, group.code.end + distance)
    return Group(parts, code)


def move(group: Group, to: Group, busy: list[Range], batch: Batch) -> None:
    """Add the calls that move our group; by way of a free place if the two overlap.

    busy are the ranges that nothing may be put on, the group's old and new place excepted.
    """
    if overlap(group.range, [to.range]):
        if group.range == to.range:
            return
        low, high = group.range
        distance = hole(high - low, [*busy, group.range, to.range]) - low
        aside = tuple(Part(part.start + distance, part.end + distance) for part in group.parts)
        _move(group.parts, aside, batch)
        _move(aside, to.parts, batch)
    else:
        _move(group.parts, to.parts, batch)


def _move(parts: tuple[Part, ...], to: tuple[Part, ...], batch: Batch) -> None:
    for part, place in zip(parts, to, strict=True):
        batch.call(
            NR.mremap, part.start, part.size, part.size, _MAYMOVE_FIXED, place.start, must=True
        )
