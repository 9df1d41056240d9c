# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from ckpt.errors import ImageError
from ckpt.image import pb
from ckpt.image.directory import ImageDir
from ckpt.image.kinds import KINDS
from ckpt.image.show import render_text, show
from tests.unit.image.samples import complete_image, fill


def shown(path, kind, message, extra=b"", **ids):
    with ImageDir.create(path) as image, image.writer(kind, **ids) as writer:
        writer.append(message, extra)
    return next(show(path))["entries"][0]


def test_a_whole_directory_is_json(tmp_path):
    path = complete_image(tmp_path / "i")
    (path / "dump.log").write_text("not ours")
    files = {file["file"]: file for file in map(json.loads, map(json.dumps, show(path)))}
    assert files.keys() == {file.name for file in path.iterdir()} - {"dump.log"}
    assert files["inventory.img"]["magic"] == "inventory"
    assert files["pages-1.img"]["raw"] == 3 * 4096
    assert files["pagemap-1.img"]["entries"][0] == {"pages_id": 1}
    assert any("vaddr: 0x4000" in line for line in render_text(path))


def test_flags_addresses_and_enums_are_readable(tmp_path):
    vma = fill(pb.vma_entry())
    vma.start, vma.status, vma.prot, vma.flags = 0x7000, 1 | 1 << 9 | 1 << 30, 3, 0x22
    entry = shown(tmp_path / "v", "vmas", vma, id=1)
    assert entry["start"] == "0x7000"
    assert entry["status"] == "REGULAR | ANON_PRIVATE | 0x40000000"
    assert entry["prot"] == "PROT_READ | PROT_WRITE"
    assert entry["flags"] == "MAP_PRIVATE | MAP_ANON"
    file = pb.file_entry(type=pb.FD_EVENTFD, id=1)
    assert shown(tmp_path / "f", "files", file)["type"] == "EVENTFD"


def test_bytes_and_tails_are_base64(tmp_path):
    entry = shown(tmp_path / "p", "pipes-data", pb.pipe_data_entry(pipe_id=1, bytes=2), b"hi")
    assert (entry["extra"], entry["extra_bytes"]) == ("aGk=", 2)
    entry = shown(tmp_path / "t", "tty-data", pb.tty_data_entry(tty_id=1, data=b"hi"))
    assert entry["data"] == "aGk="


def test_one_file_is_known_by_its_magic_whatever_its_name(tmp_path):
    path = complete_image(tmp_path / "i")
    (path / "pstree.img").rename(tmp_path / "what")
    assert next(show(tmp_path / "what"))["magic"] == "pstree"


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\x19CVT\0\0\0\0", b"plain text"])
def test_what_is_no_image_is_refused(data, tmp_path):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ImageError, match="magic"):
        next(show(tmp_path / "file"))


def test_missing_and_strange_files(tmp_path):
    with pytest.raises(ImageError, match="No such file"):
        next(show(tmp_path / "missing"))
    with pytest.raises(ImageError, match="not a regular file"):
        next(show("/dev/null"))


def test_every_magic_leads_to_its_messages():
    for kind in KINDS.values():
        assert bool(kind.magic) == bool(kind.messages)
        assert [type_.__name__ for type_ in kind.message_types()] == list(kind.messages)
