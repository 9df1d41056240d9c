# SPDX-License-Identifier: Apache-2.0
import fcntl
import os

import pytest

from ckpt.files.fifo import Fifo


@pytest.fixture
def fifo(tmp_path):
    os.mkfifo(tmp_path / "fifo", 0o640)
    return tmp_path / "fifo"


@pytest.fixture
def opened(round_trip, fifo):
    return lambda flags: round_trip.keep(os.open(fifo, flags))


def trip(round_trip, *fds):
    """Dump, let the pipe go, and restore."""
    ids = [round_trip.dump(Fifo, fd) for fd in fds]
    for fd in fds:
        os.dup2(os.open("/dev/null", os.O_RDONLY), fd)
    copies = [round_trip.create(file_id) for file_id in ids]
    round_trip.make.close(ok=True)
    return copies


def test_content_path_and_flags(round_trip, fifo, opened):
    both, reader = opened(os.O_RDWR), opened(os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(both, fcntl.F_SETPIPE_SZ, 8192)
    os.write(both, b"content")
    flags = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (both, reader)]
    copies = trip(round_trip, both, reader)
    assert [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in copies] == flags
    assert [os.readlink(f"/proc/self/fd/{fd}") for fd in copies] == [str(fifo)] * 2
    assert fcntl.fcntl(copies[1], fcntl.F_GETPIPE_SZ) == 8192
    assert os.read(copies[1], 100) == b"content"


def test_a_lone_reader(round_trip, opened):
    reader = opened(os.O_RDONLY | os.O_NONBLOCK)
    (copy,) = trip(round_trip, reader)
    assert os.read(copy, 10) == b""


def test_a_lone_writer(round_trip, opened):
    reader = opened(os.O_RDONLY | os.O_NONBLOCK)
    writer = opened(os.O_WRONLY)
    os.dup2(os.open("/dev/null", os.O_RDONLY), reader)
    (copy,) = trip(round_trip, writer)
    with pytest.raises(BrokenPipeError):
        os.write(copy, b"x")


def test_a_deleted_fifo(round_trip, fifo, opened):
    both = opened(os.O_RDWR)
    os.write(both, b"content")
    fifo.unlink()
    (copy,) = trip(round_trip, both)
    assert os.read(copy, 10) == b"content"
    assert os.fstat(copy).st_mode & 0o777 == 0o640
    assert not fifo.exists()


def test_the_owner_is_in_the_entry_of_the_path(round_trip, opened):
    both = opened(os.O_RDWR)
    fcntl.fcntl(both, fcntl.F_SETOWN, os.getpid())
    message = round_trip.message(round_trip.dump(Fifo, both))
    assert round_trip.entries[message.regf_id].reg.fown.pid == os.getpid()
