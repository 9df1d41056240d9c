# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from ckpt.errors import ImageError
from ckpt.image import pb
from ckpt.image.kinds import KINDS
from ckpt.image.records import RecordWriter, Source
from tests.unit.image.samples import fill


def source_of(path, data):
    path.write_bytes(data)
    return Source(os.open(path, os.O_RDONLY), str(path))


def test_a_full_disk_is_an_image_error():
    fd = os.open("/dev/full", os.O_WRONLY)
    with (
        pytest.raises(ImageError, match="full: No space left"),
        RecordWriter(fd, "full", KINDS["mm"]),
    ):
        pass
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_size_beyond_the_file_allocates_nothing(tmp_path):
    problem = r"offset 4: .*4294967295 bytes.*only 0 bytes follow"
    source = source_of(tmp_path / "f", b"\xff\xff\xff\xff")
    with source, pytest.raises(ImageError, match=problem):
        source.message(pb.mm_entry)


def test_a_message_without_its_required_fields_is_none(tmp_path):
    source = source_of(tmp_path / "f", b"\x02\0\0\0\x08\x01")
    with source, pytest.raises(ImageError, match="offset 4: expected a pstree_entry"):
        source.message(pb.pstree_entry)


def test_a_tail_can_be_copied_without_reading_it(tmp_path):
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    message = fill(pb.ghost_file_entry())
    message.chunks = False
    with RecordWriter(fd, "f", KINDS["ghost-file"]) as writer:
        writer.append(message)
        os.write(writer.tail_fd(), b"ghost")
    with Source(os.open(tmp_path / "f", os.O_RDONLY), "f") as source:
        source.expect(KINDS["ghost-file"])
        (record,) = source.records(KINDS["ghost-file"])
        assert os.pread(source.fileno(), 9, record.tail_offset) == b"ghost"


def test_a_ghost_file_in_chunks(tmp_path):
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    chunks = [(pb.ghost_chunk_entry(len=3, off=off), b"abc") for off in (0, 1 << 40)]
    with RecordWriter(fd, "f", KINDS["ghost-file"]) as writer:
        writer.append(fill(pb.ghost_file_entry()))
        for chunk, data in chunks:
            writer.append(chunk, data)
    with Source(os.open(tmp_path / "f", os.O_RDONLY), "f") as source:
        source.expect(KINDS["ghost-file"])
        _, *rest = [
            (record.message, source.tail(record)) for record in source.records(KINDS["ghost-file"])
        ]
    assert rest == chunks
