# SPDX-License-Identifier: Apache-2.0
import os
import signal
import time
from pathlib import Path

import pytest

from ckpt.errors import ImageError
from ckpt.image import pb
from ckpt.image.directory import ImageDir
from ckpt.image.kinds import KINDS
from ckpt.interrupt import interrupt
from tests.unit.image.samples import complete_image, fill, sample

WITH_MESSAGES = [kind for kind in KINDS.values() if kind.magic and kind.name != "inventory"]
INVENTORY = {"img_version": 2}


def sealed(path: Path, **files: object) -> Path:
    with ImageDir.create(path) as image:
        for kind, message in files.items():
            image.write(kind, message)
        image.seal(pb.inventory_entry(**INVENTORY))
    return path


@pytest.mark.parametrize("kind", WITH_MESSAGES, ids=str)
def test_what_is_written_is_read(kind, tmp_path):
    message, tail = sample(kind)
    id_ = 0x1F if "%" in kind.pattern else None
    with ImageDir.create(tmp_path / "i") as image:
        with image.writer(kind.name, id_) as writer:
            writer.append(message, tail)
        assert image.exists(kind.name, id_)
        assert list(image.records(kind.name, id_)) == [(message, tail)]
        assert image.read(kind.name, id_) == message


@pytest.mark.parametrize("kind", WITH_MESSAGES, ids=str)
def test_every_truncation_is_noticed(kind, tmp_path):
    message, tail = sample(kind)
    id_ = 7 if "%" in kind.pattern else None
    with ImageDir.create(tmp_path / "i") as image:
        with image.writer(kind.name, id_) as writer:
            writer.append(message, tail)
        name = tmp_path / "i" / kind.file_name(id_)
        whole = name.read_bytes()
        # A ghost file simply becomes shorter; cutting at the end of a message is no damage then.
        end = len(whole) - len(tail) * (kind.name == "ghost-file")
        for length in range(end):
            name.write_bytes(whole[:length])
            with pytest.raises(ImageError, match="expected"):
                image.read(kind.name, id_)


def test_a_name_ends_in_hex_where_criu_has_it_so():
    assert KINDS["ghost-file"].file_name(31) == "ghost-file-1f.img"
    assert KINDS["core"].file_name(31) == "core-31.img"
    assert KINDS["stats-dump"].file_name(None) == "stats-dump"


def test_an_unfinished_dump_is_no_image(tmp_path):
    with ImageDir.create(tmp_path / "i") as image:
        image.write("files")
    with pytest.raises(ImageError, match=r"no inventory\.img") as caught:
        ImageDir.open(tmp_path / "i")
    assert caught.value.hint


def test_another_version_is_refused(tmp_path):
    with ImageDir.create(tmp_path / "i") as image:
        image.seal(pb.inventory_entry(img_version=3))
    with pytest.raises(ImageError, match="version 3"):
        ImageDir.open(tmp_path / "i")


def test_an_exception_removes_what_was_written(tmp_path):
    with pytest.raises(RuntimeError), ImageDir.create(tmp_path / "i") as image:
        image.write("pstree", fill(pb.pstree_entry()))
        os.close(image.open_raw("pages", 1, write=True))
        raise RuntimeError
    assert not (tmp_path / "i").exists()


def test_an_exception_leaves_what_others_wrote(tmp_path):
    (tmp_path / "dump.log").write_text("log")
    with pytest.raises(RuntimeError), ImageDir.create(tmp_path) as image:
        image.write("files")
        raise RuntimeError
    assert os.listdir(tmp_path) == ["dump.log"]


def test_a_sealed_image_outlives_an_exception(tmp_path):
    with pytest.raises(RuntimeError), ImageDir.create(tmp_path / "i") as image:
        image.seal(pb.inventory_entry(**INVENTORY))
        raise RuntimeError
    ImageDir.open(tmp_path / "i").close()


def test_a_used_directory_is_refused_and_kept(tmp_path):
    complete_image(tmp_path / "i")
    before = sorted(os.listdir(tmp_path / "i"))
    with pytest.raises(ImageError, match="image already") as caught:
        ImageDir.create(tmp_path / "i")
    assert caught.value.hint
    assert sorted(os.listdir(tmp_path / "i")) == before


@pytest.mark.parametrize("path", ["missing/i", "file", "file/i"])
def test_a_directory_that_cannot_be_is_an_image_error(path, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match=path):
        ImageDir.create(tmp_path / path)
    with pytest.raises(ImageError, match=path):
        ImageDir.open(tmp_path / path)


def test_no_file_is_written_twice(tmp_path):
    with ImageDir.create(tmp_path / "i") as image:
        image.write("files")
        with pytest.raises(ImageError, match="File exists"):
            image.write("files")
        image.write("stats-dump", pb.stats_entry())
        image.write("stats-dump", pb.stats_entry())


def test_symlinks_and_fifos_are_not_followed(tmp_path):
    path = sealed(tmp_path / "i", files=fill(pb.file_entry()))
    (path / "files.img").rename(tmp_path / "elsewhere")
    (path / "files.img").symlink_to("../elsewhere")
    os.mkfifo(path / "pstree.img")
    with ImageDir.open(path) as image:
        for kind in ("files", "pstree"):
            with pytest.raises(ImageError, match=kind):
                image.read(kind)


def test_the_parent_is_opened_when_asked_for(tmp_path):
    sealed(tmp_path / "a")
    with ImageDir.create(tmp_path / "b", parent="../a") as image:
        image.seal(pb.inventory_entry(**INVENTORY))
    with ImageDir.open(tmp_path / "b") as image:
        assert image.parent is not None
        assert image.parent.parent is None


@pytest.mark.parametrize("parent", ["../missing", "../unfinished", "../file"])
def test_a_parent_that_is_no_image_is_refused(parent, tmp_path):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match="parent"):
        ImageDir.create(tmp_path / "i", parent=parent)
    assert not (tmp_path / "i").exists()


def test_wrong_magic_names_file_offset_and_what_was_expected(tmp_path):
    path = sealed(tmp_path / "i", files=fill(pb.file_entry()))
    data = (path / "files.img").read_bytes()
    (path / "files.img").write_bytes(data[:4] + b"\0\0\0\0" + data[8:])
    with ImageDir.open(path) as image, pytest.raises(ImageError) as caught:
        image.read("files")
    assert "files.img" in str(caught.value)
    assert "0x56303138 of files, found 0x00000000" in str(caught.value)


def test_two_records_are_not_one(tmp_path):
    with ImageDir.create(tmp_path / "i") as image:
        image.write("pstree", *[fill(pb.pstree_entry())] * 2)
        with pytest.raises(ImageError, match="one record, found 2"):
            image.read("pstree")


def test_ten_thousand_records_are_fast(tmp_path):
    entry = fill(pb.file_entry())
    start = time.monotonic()
    with ImageDir.create(tmp_path / "i") as image:
        image.write("files", *[entry] * 10_000)
        assert sum(1 for _ in image.records("files")) == 10_000
    assert time.monotonic() - start < 5


def test_descriptors_are_closed(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    complete_image(tmp_path / "a")
    complete_image(tmp_path / "b", parent="../a")
    with ImageDir.open(tmp_path / "b") as image:
        assert image.parent is not None
        image.read("pstree")
    assert len(os.listdir("/proc/self/fd")) == before


def test_interrupted_just_when_a_file_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is known by then, and goes with the rest."""
    make = os.open

    def interrupted(path: str, flags: int, *args: int, **where: int) -> int:
        fd = make(path, flags, *args, **where)
        if flags & os.O_CREAT:
            interrupt(signal.SIGTERM)
        return fd

    image = ImageDir.create(tmp_path / "images")
    monkeypatch.setattr(os, "open", interrupted)
    with pytest.raises(KeyboardInterrupt), image:
        image.write("pstree")
    assert not (tmp_path / "images").exists()
