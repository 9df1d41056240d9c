# SPDX-License-Identifier: Apache-2.0
"""What is still to come, by records; a journal and its heir; pages that cannot be read."""

import errno
import os

import pytest

from ckpt.errors import CkptError
from ckpt.image import pb
from ckpt.image.pages import PE_PRESENT, PageRun
from ckpt.kernel.userfaultfd import Kind, Userfaultfd
from ckpt.memory import lateness, pager
from ckpt.memory.journal import Done, Journal, Record
from ckpt.memory.late import OBJECTS, PAGE, Late, Part
from ckpt.memory.vmas import Status

ROOT, CHILD = 90, 91


@pytest.fixture
def late() -> Late:
    return Late(Userfaultfd(ROOT), [Part(0x10000, 0x20000, 0), Part(0x40000, 0x50000, 0)])


def todo(late: Late, fd: int = ROOT) -> list[tuple[int, int, int]]:
    return [tuple(part) for part in late.spaces[fd].todo]


def test_what_is_filled_or_goes_away_is_dropped(late: Late) -> None:
    late.apply(Record(Done.DRAIN, ROOT, 0x10000, 0x12000, 0))
    late.apply(Record(Kind.REMOVE, ROOT, 0x18000, 0x41000, 0))
    late.apply(Record(Kind.UNMAP, ROOT, 0x4F000, 0x90000, 0))
    assert todo(late) == [(0x12000, 0x18000, 0), (0x41000, 0x4F000, 0)]
    assert late.figures.pages[Done.DRAIN] == 2


def test_what_moves_is_still_found_in_the_image(late: Late) -> None:
    late.apply(Record(Kind.REMAP, ROOT, 0x14000, 0x44000, 0x4000))
    todo = late.spaces[ROOT].todo
    assert todo.at(0x15000) is None
    assert 0x45000 - todo.at(0x45000).moved == 0x15000
    assert todo.at(0x49000).moved == 0
    assert [part.end - part.start for part in todo] == [
        0x4000, 0x8000, 0x4000, 0x4000, 0x8000,
    ]  # fmt: skip


def test_a_child_has_its_own(late: Late) -> None:
    late.apply(Record(Kind.FORK, ROOT, CHILD, 0, 0))
    late.apply(Record(Kind.REMOVE, CHILD, 0x10000, 0x20000, 0))
    assert len(todo(late)) == 2
    assert todo(late, CHILD) == [(0x40000, 0x50000, 0)]
    late.apply(Record(Done.LEFT, ROOT, 0, 0, 0))
    assert list(late.spaces) == [CHILD]


def test_the_next_piece_of_a_block(late: Late) -> None:
    todo = late.spaces[ROOT].todo
    assert todo.within(0x0, 0x10000) == []
    assert todo.within(0x0, 0x11000) == [(0x10000, 0x11000, 0)]
    assert todo.within(0x1F000, 0x41000) == [(0x1F000, 0x20000, 0), (0x40000, 0x41000, 0)]
    assert todo.within(0x50000, 0x60000) == []
    assert todo.first() == (0x10000, 0x20000, 0)


# --- shared objects


OBJECT = 1 << 48


@pytest.fixture
def shared() -> Late:
    """An object of 16 pages, of which the last 8 are mapped at 0x10000, all at 0x40000."""
    windows = [Part(0x10000, 0x18000, 0x8000 - OBJECT), Part(0x40000, 0x50000, 0x40000 - OBJECT)]
    return Late(Userfaultfd(ROOT), [], windows, [Part(OBJECT, OBJECT + 0x10000, 0)])


def test_a_page_of_an_object_comes_once_for_all(shared: Late) -> None:
    shared.apply(Record(Kind.FORK, ROOT, CHILD, 0, 0))
    child = shared.spaces[CHILD]
    assert shared.image_address(child, 0x11000) == OBJECT + 0x9000
    assert shared.image_address(child, 0x49000) == OBJECT + 0x9000
    shared.apply(Record(Done.FAULT, OBJECTS, OBJECT + 0x8000, OBJECT + 0xA000, 1))
    assert shared.image_address(child, 0x11000) is None
    assert shared.image_address(shared.spaces[ROOT], 0x48000) is None
    assert shared.image_address(child, 0x47000) == OBJECT + 0x7000


def test_what_is_not_mapped_any_more_still_comes_for_others(shared: Late) -> None:
    shared.apply(Record(Kind.UNMAP, ROOT, 0x10000, 0x18000, 0))
    space = shared.spaces[ROOT]
    assert shared.image_address(space, 0x11000) is None
    assert shared.image_address(space, 0x49000) == OBJECT + 0x9000


def test_what_is_discarded_is_in_doubt(shared: Late) -> None:
    shared.apply(Record(Kind.REMOVE, ROOT, 0x12000, 0x14000, 0))
    assert shared.doubtful == [(OBJECT + 0xA000, OBJECT + 0xC000, 0)]
    assert shared.image_address(shared.spaces[ROOT], 0x12000) == OBJECT + 0xA000
    shared.apply(Record(Done.GONE, OBJECTS, OBJECT + 0xA000, OBJECT + 0xC000, 0))
    shared.apply(Record(Done.SETTLED, OBJECTS, 0, 0, 0))
    assert shared.image_address(shared.spaces[ROOT], 0x12000) is None
    assert shared.doubtful == []
    assert shared.figures.pages[Done.GONE] == 0


def test_a_mapping_that_moved_may_have_grown(shared: Late) -> None:
    assert not shared.hurry
    shared.apply(Record(Kind.REMAP, ROOT, 0x40000, 0x80000, 0x10000))
    assert shared.hurry
    assert shared.image_address(shared.spaces[ROOT], 0x81000) == OBJECT + 0x1000


def entry(**fields: int) -> pb.vma_entry:
    base = {"start": 0, "end": PAGE, "pgoff": 0, "shmid": 7, "prot": 3, "fd": -1, "fdflags": 2,
            "flags": 1, "status": Status.FILE_SHARED | Status.MEMFD}  # fmt: skip
    return pb.vma_entry(**base | fields)


@pytest.mark.parametrize(
    ("mappings", "opened", "seals", "late"),
    [
        ([entry()], [], 0, True),
        ([entry(), entry(start=PAGE, end=2 * PAGE)], [8], 0, True),
        ([entry()], [7], 0, False),  # open
        ([entry()], [], 16, False),  # F_SEAL_FUTURE_WRITE
        ([entry(), entry(fdflags=0)], [], 0, False),
        ([entry(flags=0x2001)], [], 0, False),  # locked
        ([entry(), entry(status=Status.FILE_PRIVATE | Status.MEMFD)], [], 0, False),
        ([], [], 0, False),
    ],
)
def test_which_objects_may_be_late(
    mappings: list[pb.vma_entry], opened: list[int], seals: int, late: bool
) -> None:
    memfd = pb.memfd_inode_entry(uid=0, gid=0, size=PAGE, shmid=5, seals=seals, inode_id=1)
    memfd.name = b"x" if isinstance(memfd.name, bytes) else "x"
    fown = pb.fown_entry(uid=0, euid=0, signum=0, pid_type=0, pid=0)
    opener = pb.memfd_file_entry(id=7, flags=2, pos=0, fown=fown, inode_id=1)
    files = {
        7: pb.file_entry(type=pb.FD_MEMFD, id=7, memfd=opener),
        8: pb.file_entry(type=pb.FD_REG, id=8),
    }
    found = lateness.late_objects([memfd], files, opened, mappings)
    assert found == ({5: mappings} if late else {})


# --- a journal


def test_a_journal_has_what_was_read_and_not_looked_at() -> None:
    """A reader that was killed in between leaves what the kernel gave it behind the end."""
    journal = Journal(1 << 16)
    journal.write(Done.DRAIN, ROOT, 1, 2)
    event = bytes([Kind.REMOVE]) + bytes(7) + b"".join(n.to_bytes(8, "little") for n in (8, 9, 0))
    reader, writer = os.pipe()
    os.write(writer, event)
    adopted = journal._adopt
    journal._adopt = lambda *_: []  # type: ignore[method-assign]
    journal.read(reader)
    journal._adopt = adopted  # type: ignore[method-assign]
    os.close(reader)
    os.close(writer)
    assert list(journal) == [(Done.DRAIN, ROOT, 1, 2, 0), (Kind.REMOVE, reader, 8, 9, 0)]


def test_a_journal_that_is_full_says_so() -> None:
    journal = Journal(8192)
    for at in range(300):
        journal.write(Done.DRAIN, ROOT, at)
    with pytest.raises(CkptError):
        list(journal)


class Reader:
    """Two pages, of which the second cannot be read."""

    run = PageRun(0x10000, 2, PE_PRESENT, 5, 0)

    def find(self, vaddr: int) -> PageRun | None:
        return self.run if self.run.vaddr <= vaddr < self.run.end else None


def test_a_bad_page_takes_no_other_along(monkeypatch: pytest.MonkeyPatch) -> None:
    def preadv(_: int, views: list[memoryview], offset: int) -> int:
        if offset + len(views[0]) > PAGE:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return len(views[0])

    monkeypatch.setattr(os, "preadv", preadv)
    source = pager.Source({0: Reader()})
    view = memoryview(bytearray(2 * PAGE))
    assert source.read(0x10000, view) == PAGE
    assert source.read(0x11000, view[:PAGE]) == 0
    assert source.why == os.strerror(errno.EIO)
