# SPDX-License-Identifier: Apache-2.0
import fcntl
import os
from pathlib import Path

import pytest

from ckpt.errors import ImageError
from ckpt.files.pipe import Pipe


@pytest.fixture
def pipe(round_trip):
    def make(flags=0):
        reader, writer = os.pipe2(flags | os.O_NONBLOCK)
        return round_trip.keep(reader), round_trip.keep(writer)

    return make


def records(round_trip):
    round_trip.out.close()
    return [(entry.bytes, data) for entry, data in round_trip.image.records("pipes-data")]


def test_content_capacity_and_flags_are_kept(round_trip, pipe):
    reader, writer = pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 17)
    os.write(writer, b"x" * 100_000)
    ids = [round_trip.dump(Pipe, fd) for fd in (reader, writer)]
    copies = [round_trip.create(file_id) for file_id in ids]
    for fd, copy in zip((reader, writer), copies, strict=True):
        assert fcntl.fcntl(copy, fcntl.F_GETFL) == fcntl.fcntl(fd, fcntl.F_GETFL)
    assert fcntl.fcntl(copies[0], fcntl.F_GETPIPE_SZ) == 1 << 17
    assert os.read(copies[0], 1 << 20) == os.read(reader, 1 << 20) == b"x" * 100_000
    os.write(copies[1], b"more")
    assert os.read(copies[0], 10) == b"more"


def test_a_full_pipe(round_trip, pipe):
    reader, writer = pipe()
    assert os.write(writer, b"x" * (1 << 20)) == 1 << 16
    ids = [round_trip.dump(Pipe, fd) for fd in (writer, reader)]
    _, copy = (round_trip.create(file_id) for file_id in ids)
    assert len(os.read(copy, 1 << 20)) == 1 << 16
    assert records(round_trip) == [(1 << 16, b"x" * (1 << 16))]


@pytest.mark.parametrize("packets", [[b"one", b"three"], [b"lonely"], [b"x" * 4096, b"y", b"z"]])
def test_packets_stay_apart(round_trip, pipe, packets):
    reader, writer = pipe(os.O_DIRECT)
    for packet in packets:
        os.write(writer, packet)
    ids = [round_trip.dump(Pipe, fd) for fd in (reader, writer)]
    copies = [round_trip.create(file_id) for file_id in ids]
    assert fcntl.fcntl(copies[1], fcntl.F_GETFL) == fcntl.fcntl(writer, fcntl.F_GETFL)
    os.write(copies[1], b"four")
    assert [os.read(copies[0], 9999) for _ in range(len(packets) + 1)] == [*packets, b"four"]
    assert [os.read(reader, 9999) for _ in packets] == packets


def test_two_writes_without_packets_are_one_record(round_trip, pipe):
    reader, writer = pipe()
    os.write(writer, b"one")
    os.write(writer, b"two")
    round_trip.dump(Pipe, reader)
    assert records(round_trip) == [(6, b"onetwo")]


def test_a_reader_alone_reads_to_the_end(round_trip):
    reader, writer = os.pipe()
    round_trip.keep(reader)
    os.write(writer, b"last words")
    os.close(writer)
    copy = round_trip.trip(Pipe, reader)
    round_trip.make.close(ok=True)
    assert os.read(copy, 100) == b"last words"
    assert os.read(copy, 100) == b""


def test_a_writer_alone_breaks(round_trip):
    reader, writer = os.pipe()
    round_trip.keep(writer)
    os.close(reader)
    copy = round_trip.trip(Pipe, writer)
    round_trip.make.close(ok=True)
    with pytest.raises(BrokenPipeError):
        os.write(copy, b"hello?")


def test_both_ends_in_one_file(round_trip, pipe):
    reader, _writer = pipe()
    both = round_trip.keep(os.open(f"/proc/self/fd/{reader}", os.O_RDWR))
    os.write(both, b"to myself")
    copy = round_trip.trip(Pipe, both)
    assert fcntl.fcntl(copy, fcntl.F_GETFL) == fcntl.fcntl(both, fcntl.F_GETFL)
    assert os.read(copy, 100) == b"to myself"
    os.write(copy, b"again")
    assert os.read(copy, 100) == b"again"


def test_an_inherited_pipe_is_ours(round_trip, pipe):
    _reader, writer = pipe()
    mine, other = pipe()
    file_id = round_trip.dump(Pipe, writer)
    pipe_id = os.fstat(writer).st_ino
    round_trip.make.options.inherit_fd[f"pipe:[{pipe_id}]"] = other
    os.write(round_trip.create(file_id), b"out")
    assert os.read(mine, 10) == b"out"


def test_more_than_fits_is_refused(round_trip, pipe):
    reader, writer = pipe()
    os.write(writer, b"x" * 50_000)
    file_id = round_trip.dump(Pipe, reader)
    round_trip.out.close()
    path = Path(round_trip.image.path, "pipes-data.img")
    entry, data = next(round_trip.image.records("pipes-data"))
    path.unlink()
    entry.size = 4096
    with round_trip.image.writer("pipes-data") as out:
        out.append(entry, data)
    with pytest.raises(ImageError, match="do not fit 4096"):
        round_trip.create(file_id)
