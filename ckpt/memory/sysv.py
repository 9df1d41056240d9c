# SPDX-License-Identifier: Apache-2.0
"""System V shared memory in a task: one shmat for all the mappings that one once made.

mprotect and munmap split an attachment, yet one shmdt takes away all that is left of it: so the
pieces must come from one shmat again, and what was unmapped is unmapped again.
"""

from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

from ckpt.errors import ImageError
from ckpt.image import pb
from ckpt.kernel.arch import NR
from ckpt.kernel.remote import Batch
from ckpt.kernel.sysvipc import SHM_EXEC, SHM_RDONLY
from ckpt.memory.layout import Range, gaps
from ckpt.memory.vmas import PAGE, is_sysv

_PROT_READ, _PROT_WRITE, _PROT_EXEC = 1, 2, 4


class Attachment(NamedTuple):
    """Where a segment is attached, with which flags of shmat(2), and the mappings left of it."""

    shmid: int
    base: int
    flags: int
    pieces: list[pb.vma_entry]

    @property
    def prot(self) -> int:
        """The protection that shmat gives."""
        prot = _PROT_READ if self.flags & SHM_RDONLY else _PROT_READ | _PROT_WRITE
        return prot | _PROT_EXEC if self.flags & SHM_EXEC else prot


def links(pid: int, entries: Iterable[pb.vma_entry]) -> dict[int, str]:
    """Return, for each segment that the mappings are of, a link that opens its memory."""
    return {
        entry.shmid: f"/proc/{pid}/map_files/{entry.start:x}-{entry.end:x}"
        for entry in entries
        if is_sysv(entry.status)
    }


def attachments(entries: Iterable[pb.vma_entry]) -> list[Attachment]:
    """Return the attachments that mappings are the pieces of.

    Raises ImageError if one would begin below address 0.
    """
    found = []
    mappings = sorted((entry for entry in entries if is_sysv(entry.status)), key=_place)
    for (shmid, base), group in groupby(mappings, key=_place):
        pieces = list(group)
        if base < 0:
            raise ImageError(f"mm: no segment can be attached at {base:#x}")
        flags = 0 if any(piece.fdflags for piece in pieces) else SHM_RDONLY
        if any(piece.prot & _PROT_EXEC for piece in pieces):
            flags |= SHM_EXEC
        found.append(Attachment(shmid, base, flags, pieces))
    return found


def _place(entry: pb.vma_entry) -> tuple[int, int]:
    return entry.shmid, entry.start - entry.pgoff


def attach(one: Attachment, size: int, batch: Batch) -> None:
    """Add the calls that attach a segment of size bytes and make the pieces of it.

    Before anything else is mapped: what was unmapped may have other mappings in its place.
    """
    batch.call(NR.shmat, one.shmid, one.base, one.flags, must=True)
    for start, end in _unmapped(one, size):
        batch.call(NR.munmap, start, end - start, must=True)
    for piece in one.pieces:
        if piece.prot != one.prot:
            length = piece.end - piece.start
            batch.call(NR.mprotect, piece.start, length, piece.prot, must=True)


def _unmapped(one: Attachment, size: int) -> list[Range]:
    first, last = one.base, one.base + -(-size // PAGE) * PAGE
    there = [(piece.start, piece.end) for piece in one.pieces]
    return [(max(start, first), min(end, last)) for start, end in gaps(there)
            if start < last and end > first]  # fmt: skip
