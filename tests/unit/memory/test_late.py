# SPDX-License-Identifier: Apache-2.0
"""What is still to come, by records; a journal and its heir; pages that cannot be read."""

import errno
import os

import pytest

from ckpt.errors import CkptError
from ckpt.image.pages import PE_PRESENT, PageRun
from ckpt.kernel.userfaultfd import Kind, Userfaultfd
from ckpt.memory import pager
from ckpt.memory.journal import Done, Journal, Record
from ckpt.memory.late import PAGE, Late, Part

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
    space = late.spaces[ROOT]
    assert space.at(0x15000) is None
    assert 0x45000 - space.at(0x45000).moved == 0x15000
    assert space.at(0x49000).moved == 0
    assert [part.end - part.start for part in space.todo] == [
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
    space = late.spaces[ROOT]
    assert space.within(0x0, 0x10000) is None
    assert space.within(0x0, 0x11000) == (0x10000, 0x11000, 0)
    assert space.within(0x1F000, 0x41000) == (0x1F000, 0x20000, 0)
    assert space.within(0x50000, 0x60000) is None


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
    source = pager.Source(Reader())
    view = memoryview(bytearray(2 * PAGE))
    assert source.read(0x10000, view) == PAGE
    assert source.read(0x11000, view[:PAGE]) == 0
    assert source.why == os.strerror(errno.EIO)
