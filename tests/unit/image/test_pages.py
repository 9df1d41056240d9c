# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import pytest

from ckpt.errors import ImageError
from ckpt.image import pb
from ckpt.image.directory import ImageDir
from ckpt.image.pages import PAGE, PE_LAZY, PE_PARENT, PE_PRESENT, PageReader, PageWriter
from tests.unit.image.samples import write_pages


def image_of(path, *runs, parent=None, pages_id=1):
    with ImageDir.create(path, parent) as image:
        write_pages(image, pages_id, *runs)
        image.seal(pb.inventory_entry(img_version=2))
    return path


def runs_of(path):
    with ImageDir.open(path) as image, PageReader(image, "pagemap", 1) as reader:
        return [(run.vaddr // PAGE, run.nr_pages, run.flags, run.offset) for run in reader]


def with_entries(path, *entries, pages=8):
    """An image whose pagemap says whatever we like."""
    with ImageDir.create(path) as image:
        image.write("pagemap", pb.pagemap_head(pages_id=1), *entries, id=1)
        fd = image.open_raw("pages", 1, write=True)
        os.ftruncate(fd, pages * PAGE)
        os.close(fd)
        image.seal(pb.inventory_entry(img_version=2))
    return path


def entry(vaddr, nr_pages, flags=PE_PRESENT):
    return pb.pagemap_entry(vaddr=vaddr, compat_nr_pages=0, nr_pages=nr_pages, flags=flags)


def test_adjacent_equal_runs_become_one(tmp_path):
    flags = PE_PRESENT | PE_LAZY
    runs = [(PAGE, 1, flags), (2 * PAGE, 3, flags), (5 * PAGE, 1, PE_PRESENT), (9 * PAGE, 1, 4)]
    path = image_of(tmp_path / "i", *runs)
    assert runs_of(path) == [(1, 4, flags, 0), (5, 1, 4, 4 * PAGE), (9, 1, 4, 5 * PAGE)]


def test_pages_may_come_in_any_order(tmp_path):
    with ImageDir.create(tmp_path / "i") as image:
        with PageWriter(image, "pagemap-shmem", 3, 1) as writer:
            first = writer.add(0, 1, PE_PRESENT)
            second = writer.add(7 * PAGE, 2, PE_PRESENT)
            os.pwrite(writer.fd, b"b" * 2 * PAGE, second)
            os.pwrite(writer.fd, b"a" * PAGE, first)
        with PageReader(image, "pagemap-shmem", 3) as reader:
            found = [os.pread(run.fd, 1, run.offset) for run in reader]
    assert found == [b"a", b"b"]


def test_find(tmp_path):
    path = image_of(tmp_path / "i", (PAGE, 2, PE_PRESENT), (8 * PAGE, 1, PE_PRESENT))
    with ImageDir.open(path) as image, PageReader(image, "pagemap", 1) as reader:
        assert reader.find(0) is None
        assert reader.find(2 * PAGE + 5) == reader.runs[0]
        assert reader.find(3 * PAGE) is None
        assert reader.find(8 * PAGE) == reader.runs[1]
        assert reader.find(9 * PAGE) is None


@pytest.mark.parametrize("run", [(PAGE, 1, 4), (5 * PAGE + 1, 1, 4), (5 * PAGE, 0, 4)])
def test_a_wrong_run_is_our_bug(run, tmp_path):
    with ImageDir.create(tmp_path / "i") as image, PageWriter(image, "pagemap", 1, 1) as writer:
        writer.add(PAGE, 2, PE_LAZY)
        with pytest.raises(ValueError, match="pages"):
            writer.add(*run)


def test_pages_that_were_never_written_are_noticed(tmp_path):
    with (
        ImageDir.create(tmp_path / "i") as image,
        pytest.raises(ImageError, match="0 bytes were written, expected 4096"),
        PageWriter(image, "pagemap", 1, 1) as writer,
    ):
        writer.add(PAGE, 1, PE_PRESENT)
    assert not Path(image.path, "pagemap-1.img").exists()


def test_a_chain_of_parents_is_followed(tmp_path):
    image_of(tmp_path / "a", (0, 8, PE_PRESENT), pages_id=1)
    middle = [(0, 2, PE_PARENT), (2 * PAGE, 2, PE_PRESENT), (4 * PAGE, 4, PE_PARENT)]
    image_of(tmp_path / "b", *middle, parent="../a", pages_id=2)
    top = [(PAGE, 5, PE_PARENT | PE_LAZY), (6 * PAGE, 1, PE_PRESENT)]
    path = image_of(tmp_path / "c", *top, parent="../b", pages_id=3)
    with ImageDir.open(path) as image, PageReader(image, "pagemap", 1) as reader:
        found = {
            run.vaddr // PAGE + page: os.pread(run.fd, 1, run.offset + page * PAGE)[0]
            for run in reader
            for page in range(run.nr_pages)
        }
        assert all(run.flags & PE_PRESENT and not run.flags & PE_PARENT for run in reader)
        assert reader.runs[0].flags == PE_PRESENT | PE_LAZY
    assert found == {1: 2, 2: 4, 3: 5, 4: 5, 5: 6, 6: 9}


def test_a_page_that_no_parent_has_is_noticed(tmp_path):
    image_of(tmp_path / "a", (0, 2, PE_PRESENT))
    path = image_of(tmp_path / "b", (PAGE, 2, PE_PARENT), parent="../a")
    with pytest.raises(ImageError, match="0x2000 is not in the parent"):
        runs_of(path)


def test_pages_left_to_no_parent_are_noticed(tmp_path):
    with pytest.raises(ImageError, match="there is no parent"):
        runs_of(image_of(tmp_path / "a", (0, 2, PE_PARENT)))


def test_a_cycle_of_parents_is_refused(tmp_path):
    image_of(tmp_path / "a", (0, 2, PE_PARENT))
    image_of(tmp_path / "b", (0, 2, PE_PARENT), parent="../a")
    (tmp_path / "a" / "parent").symlink_to("../b")
    with pytest.raises(ImageError, match="its own parent"):
        runs_of(tmp_path / "b")


def test_a_short_pages_file_is_noticed_at_once(tmp_path):
    path = image_of(tmp_path / "a", (0, 2, PE_PRESENT))
    os.truncate(path / "pages-1.img", 2 * PAGE - 1)
    with pytest.raises(ImageError, match="8191 bytes, but"):
        runs_of(path)


def test_pages_of_a_page_server_have_no_file(tmp_path):
    assert runs_of(image_of(tmp_path / "a", (0, 2, PE_LAZY))) == [(0, 2, PE_LAZY, 0)]


def test_entries_of_old_writers(tmp_path):
    old = pb.pagemap_entry(vaddr=PAGE, compat_nr_pages=3)
    assert runs_of(with_entries(tmp_path / "a", old)) == [(1, 3, PE_PRESENT, 0)]


@pytest.mark.parametrize(
    "entries",
    [
        [entry(2 * PAGE, 1), entry(PAGE, 1)],
        [entry(PAGE, 2), entry(2 * PAGE, 1)],
        [entry(PAGE + 1, 1)],
        [entry(PAGE, 0)],
        [entry(PAGE, 1, 0)],
        [entry(PAGE, 1, 8 | PE_PRESENT)],
        [entry((1 << 64) - PAGE, 2)],
        [entry(0, (1 << 64) - 1)],
    ],
    ids=["order", "overlap", "alignment", "empty", "nowhere", "flag", "overflow", "huge"],
)
def test_a_pagemap_that_makes_no_sense(entries, tmp_path):
    with pytest.raises(ImageError, match=r"pagemap-1\.img: offset"):
        runs_of(with_entries(tmp_path / "a", *entries))
