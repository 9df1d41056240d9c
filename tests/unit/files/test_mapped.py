# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from ckpt.errors import ImageError
from ckpt.files.eventfd import EventFd
from ckpt.files.mapped import open_mapped, save_mapped


def link(fd):
    return os.readlink(f"/proc/self/fd/{fd}")


@pytest.mark.parametrize("name", ["exe", "cwd", "root"])
def test_what_a_process_is_at(round_trip, name):
    path = f"/proc/self/{name}"
    fd = round_trip.keep(os.open(path, os.O_PATH))
    file_id = save_mapped(fd, os.readlink(path), round_trip.out)
    copy = round_trip.keep(open_mapped(file_id, os.O_RDONLY, round_trip.make))
    assert os.path.samestat(os.stat(path), os.fstat(copy))


def test_a_deleted_file_and_a_memfd(round_trip, tmp_path):
    deleted = round_trip.keep(os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT))
    os.unlink(tmp_path / "x")
    for fd in (deleted, round_trip.keep(os.memfd_create("x"))):
        os.write(fd, b"content")
        file_id = save_mapped(fd, link(fd), round_trip.out)
        round_trip.out.close()
        copy = round_trip.keep(open_mapped(file_id, os.O_RDWR, round_trip.make))
        assert os.read(copy, 10) == b"content"
        assert os.write(copy, b"more") == 4
        os.lseek(fd, 0, os.SEEK_SET)


def test_what_is_no_memory(round_trip):
    file_id = round_trip.dump(EventFd, round_trip.keep(os.eventfd(0)))
    with pytest.raises(ImageError, match="FD_EVENTFD"):
        open_mapped(file_id, os.O_RDONLY, round_trip.make)
