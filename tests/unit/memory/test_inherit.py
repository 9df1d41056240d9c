# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from ckpt.image import pb
from ckpt.image.pages import PE_PRESENT, PageRun
from ckpt.memory.inherit import Kept, difference, kept
from ckpt.memory.vmas import MAP_ANON, MAP_GROWSDOWN, MAP_PRIVATE, MAP_SHARED, Status

PAGE = 4096
ANON = Status.REGULAR | Status.ANON_PRIVATE
STACK = MAP_PRIVATE | MAP_ANON | MAP_GROWSDOWN
FILE = Status.REGULAR | Status.FILE_PRIVATE


def vma(start, end, status=ANON, flags=MAP_PRIVATE | MAP_ANON, **more):
    fields = {"pgoff": 0, "shmid": 0, "prot": 3, "fd": -1} | more
    return pb.vma_entry(start=start * PAGE, end=end * PAGE, status=status, flags=flags, **fields)


def parts(own, makers):
    """What is kept, in pages."""
    found = kept(own, makers)
    return [(one.start // PAGE, one.end // PAGE) for pieces in found.values() for one in pieces]


def test_the_same_mapping():
    assert parts([vma(1, 5)], [vma(1, 5)]) == [(1, 5)]


def test_what_they_have_in_common():
    assert parts([vma(1, 8)], [vma(3, 5)]) == [(3, 5)]
    assert parts([vma(3, 5)], [vma(1, 8)]) == [(3, 5)]
    assert parts([vma(1, 8)], [vma(1, 2), vma(4, 6), vma(7, 9)]) == [(1, 2), (4, 6), (7, 8)]
    assert parts([vma(1, 2), vma(4, 6)], [vma(0, 9)]) == [(1, 2), (4, 6)]
    assert parts([vma(1, 2)], [vma(2, 3)]) == []


def test_protection_is_the_makers_for_now():
    assert kept([vma(1, 5, prot=1)], [vma(1, 5, prot=3)]) == {PAGE: [Kept(PAGE, 5 * PAGE, 3)]}


@pytest.mark.parametrize(
    ("own", "maker"),
    [
        (vma(1, 5), vma(1, 5, FILE, MAP_PRIVATE, shmid=1)),
        (vma(1, 5, FILE, MAP_PRIVATE, shmid=1), vma(1, 5, FILE, MAP_PRIVATE, shmid=2)),
        (vma(1, 5, FILE, MAP_PRIVATE, shmid=1), vma(1, 5, FILE, MAP_PRIVATE, shmid=1, pgoff=PAGE)),
        (vma(1, 5, madv=1 << 14), vma(1, 5)),
        (vma(1, 5, madv=1 << 10), vma(1, 5, madv=1 << 10)),
        (vma(1, 5, madv=1 << 18), vma(1, 5, madv=1 << 18)),
        (vma(1, 5, name="one"), vma(1, 5)),
        (vma(1, 5, Status.FILE_SHARED, MAP_SHARED, shmid=1),) * 2,
        (vma(1, 5, Status.VDSO | ANON),) * 2,
        (vma(1, 5, flags=STACK), vma(2, 5, flags=STACK)),
        (vma(1, 5), vma(1, 5, flags=MAP_PRIVATE | MAP_ANON | 0x4000)),
    ],
)  # fmt: skip
def test_what_is_made_anew(own, maker):
    assert parts([own], [maker]) == []


def test_not_around_guard_pages():
    guard = vma(2, 3, Status.GUARD, 0, prot=0)
    assert parts([vma(1, 5), vma(6, 7)], [vma(1, 5), guard, vma(6, 7)]) == [(6, 7)]
    assert parts([vma(1, 5), guard], [vma(1, 5)]) == []


def test_a_file_that_was_cut():
    one = vma(3, 5, FILE, MAP_PRIVATE, shmid=1, pgoff=2 * PAGE)
    assert parts([one], [vma(1, 8, FILE, MAP_PRIVATE, shmid=1)]) == [(3, 5)]


@pytest.fixture
def pages():
    """Descriptors of pages with these letters."""
    opened = []

    def make(text, at, *, start=0):
        fd = os.memfd_create("pages")
        opened.append(fd)
        os.write(fd, b"".join(letter.encode() * PAGE for letter in text))
        return PageRun(at * PAGE, len(text) - start, PE_PRESENT, fd, start * PAGE)

    yield make
    for fd in opened:
        os.close(fd)


def found(own, makers, *pieces):
    result = difference(own, makers, [Kept(a * PAGE, b * PAGE, 3) for a, b in pieces])
    runs = [(run.vaddr // PAGE, run.nr_pages, run.offset // PAGE) for run in result.runs]
    gone = [(start // PAGE, end // PAGE) for start, end in result.gone]
    return runs, gone, result.compared, result.same


def test_the_same_pages(pages):
    assert found([pages("abc", 1)], [pages("abc", 1)], (1, 9)) == ([], [], 3, 3)


def test_one_that_was_written(pages):
    assert found([pages("axc", 1)], [pages("abc", 1)], (1, 9)) == ([(2, 1, 1)], [], 3, 2)


def test_one_more_and_one_less(pages):
    assert found([pages("bcd", 2)], [pages("abc", 1)], (1, 9)) == ([(4, 1, 2)], [(1, 2)], 2, 2)


def test_none_at_all(pages):
    assert found([], [pages("abc", 1)], (1, 9)) == ([], [(1, 4)], 0, 0)
    assert found([pages("abc", 1)], [], (1, 9)) == ([(1, 3, 0)], [], 0, 0)


def test_only_what_is_kept(pages):
    own, maker = [pages("abcd", 1)], [pages("abcd", 1)]
    assert found(own, maker, (2, 3), (4, 9)) == ([(1, 1, 0), (3, 1, 2)], [], 2, 2)


def test_runs_that_are_cut_otherwise(pages):
    own = [pages("ab", 1), pages("cd", 3), pages("f", 6)]
    maker = [pages("-a", 1, start=1), pages("bcxe", 2)]
    assert found(own, maker, (1, 9)) == ([(4, 1, 1), (6, 1, 0)], [(5, 6)], 4, 3)
