# SPDX-License-Identifier: Apache-2.0
"""Chains of images: what `dedup` frees in the older ones, and what nobody can do with them then."""

import os
from pathlib import Path

import pytest

from ckpt.dedup import DedupReport, dedup
from ckpt.errors import ImageError
from ckpt.image import pb
from ckpt.image.directory import ImageDir
from ckpt.image.pages import PAGE, PE_PARENT, PE_PRESENT, PageReader, PageWriter
from ckpt.log import Log

Runs = list[tuple[int, int, int]]
HERE, THERE = PE_PRESENT, PE_PARENT


def image(path: Path, fill: bytes, runs: Runs, parent: str | None = None) -> Path:
    """An image with these runs (page, pages, flags), all pages filled with a byte."""
    with ImageDir.create(path, parent) as made:
        for kind, id_, pages_id in (("pagemap", 7, 1), ("pagemap-shmem", 5, 2)):
            with PageWriter(made, kind, id_, pages_id) as writer:
                for page, pages, flags in runs:
                    writer.add(page * PAGE, pages, flags)
                writer.write(fill * writer.size)
        made.seal(pb.inventory_entry(img_version=2))
    return path


def content(path: Path) -> str:
    """What the pages are filled with, one letter each; a dot for a page that there is not."""
    found = ["."] * 10
    with ImageDir.open(path) as opened, PageReader(opened, "pagemap", 7) as reader:
        for run in reader:
            for page in range(run.nr_pages):
                data = os.pread(run.fd, PAGE, run.offset + page * PAGE)
                assert data == data[:1] * PAGE
                found[run.vaddr // PAGE + page] = data[:1].decode()
    return "".join(found)


def holes(path: Path, pages_id: int = 1) -> str:
    """Of each page in the file, whether it is there."""
    with (path / f"pages-{pages_id}.img").open("rb") as file:
        pages = os.fstat(file.fileno()).st_size // PAGE
        found = ""
        for page in range(pages):
            try:
                there = os.lseek(file.fileno(), page * PAGE, os.SEEK_DATA) == page * PAGE
            except OSError:
                there = False
            found += "x" if there else "."
    return found


def run(path: Path) -> DedupReport:
    return dedup(str(path), Log())


@pytest.fixture
def chain(tmp_path: Path) -> list[Path]:
    """Three images, each with some pages of its own."""
    a = image(tmp_path / "a", b"a", [(0, 4, HERE), (6, 4, HERE)])
    b = image(
        tmp_path / "b", b"b", [(0, 1, THERE), (1, 2, HERE), (3, 1, THERE), (6, 4, THERE)], "../a"
    )
    c = image(
        tmp_path / "c", b"c", [(0, 2, THERE), (2, 1, HERE), (6, 1, HERE), (7, 3, THERE)], "../b"
    )
    return [a, b, c]


def test_pages_of_the_newest_are_freed(chain: list[Path]) -> None:
    a, b, c = chain
    assert content(c) == "abc...caaa"
    report = run(c)
    assert (holes(a), holes(b), holes(c)) == ("xx.x.xxx", "x.", "xx")
    assert holes(a, 2) == holes(a)
    assert report.pages == 2 * 3
    assert report.freed == 2 * 3 * PAGE
    assert content(c) == "abc...caaa"


def test_again_and_again(chain: list[Path]) -> None:
    a, b, c = chain
    for image in (b, c, b, c):
        run(image)
    assert (holes(a), holes(b)) == ("x..x.xxx", "x.")
    assert content(c) == "abc...caaa"
    assert run(c).freed == 0


def test_an_older_one_is_no_image_any_more(chain: list[Path]) -> None:
    a, b, c = chain
    run(b)
    with pytest.raises(ImageError, match=f"{a}: `ckpt dedup` has freed pages"):
        content(a)
    assert content(b) == "abba..aaaa"
    assert content(c) == "abc...caaa"


def test_another_child_does_not_get_zeros(chain: list[Path], tmp_path: Path) -> None:
    _, b, _ = chain
    other = image(tmp_path / "other", b"o", [(0, 2, THERE)], "../a")
    fine = image(tmp_path / "fine", b"f", [(0, 1, THERE), (3, 1, THERE)], "../a")
    run(b)
    with pytest.raises(ImageError, match="page 0x1000 is not in the parent image"):
        content(other)
    assert content(fine) == "a..a......"


def test_no_parent(tmp_path: Path) -> None:
    path = image(tmp_path / "a", b"a", [(0, 4, HERE)])
    assert run(path).pages == 0
    assert content(path) == "aaaa......"


def test_a_circle(tmp_path: Path) -> None:
    path = image(tmp_path / "a", b"a", [(0, 4, HERE)])
    (path / "parent").symlink_to(".")
    with pytest.raises(ImageError, match="is its own parent"):
        run(path)
    assert holes(path) == "xxxx"


def test_short_pages(chain: list[Path]) -> None:
    a, b, _ = chain
    os.truncate(a / "pages-1.img", PAGE)
    with pytest.raises(ImageError, match="4096 bytes, but"):
        run(b)


def test_after_an_attempt_that_was_killed(chain: list[Path]) -> None:
    a, b, _ = chain
    (a / "inventory.img.tmp").touch()
    run(b)
    assert content(b) == "abba..aaaa"


def test_what_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        run(tmp_path / "nothing")
