# SPDX-License-Identifier: Apache-2.0
"""Which mappings are pieces of one attachment."""

import pytest

from ckpt.errors import ImageError
from ckpt.image import pb
from ckpt.kernel.sysvipc import SHM_EXEC, SHM_RDONLY
from ckpt.memory.sysv import attachments, links
from ckpt.memory.vmas import Status

AT = 0x7000_0000_0000
SYSV = Status.REGULAR | Status.ANON_SHARED | Status.SYSVIPC


def piece(shmid: int, start: int, pgoff: int, *, prot: int = 3, fdflags: int = 2) -> pb.vma_entry:
    """A mapping of one page."""
    return pb.vma_entry(
        start=start, end=start + 4096, pgoff=pgoff, shmid=shmid, prot=prot, fdflags=fdflags,
        flags=0x21, status=SYSV, fd=-1,
    )  # fmt: skip


def test_pieces_of_one_attachment_are_found() -> None:
    first, second = piece(0, AT, 0), piece(0, AT + 8192, 8192, prot=1)
    (found,) = attachments([first, second])
    assert (found.shmid, found.base, found.flags) == (0, AT, 0)
    assert found.pieces == [first, second]


def test_a_segment_attached_twice_side_by_side() -> None:
    found = attachments([piece(5, AT, 0), piece(5, AT + 4096, 0, prot=1, fdflags=0)])
    assert [(one.base, one.flags) for one in found] == [(AT, 0), (AT + 4096, SHM_RDONLY)]


def test_the_beginning_may_be_unmapped() -> None:
    (found,) = attachments([piece(5, AT + 4096, 4096, prot=7)])
    assert (found.base, found.flags, found.prot) == (AT, SHM_EXEC, 7)


def test_none_begins_below_zero() -> None:
    with pytest.raises(ImageError):
        attachments([piece(5, 4096, 8192)])


def test_other_mappings_are_none() -> None:
    other = pb.vma_entry(
        start=AT, end=AT + 4096, pgoff=0, shmid=3, prot=3, flags=2, status=Status.REGULAR, fd=-1
    )
    assert attachments([other]) == []
    assert links(1, [other, piece(5, AT, 0)]) == {5: f"/proc/1/map_files/{AT:x}-{AT + 4096:x}"}
