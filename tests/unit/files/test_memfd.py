# SPDX-License-Identifier: Apache-2.0
import fcntl
import mmap
import os

import pytest

from ckpt.files.memfd import Memfd, open_memfd, save_mapped

F_SEAL_FUTURE_WRITE = 0x10


@pytest.fixture
def memfd(round_trip):
    def make(content, flags=os.MFD_ALLOW_SEALING, name="mem"):
        fd = round_trip.keep(os.memfd_create(name, flags))
        os.write(fd, content)
        return fd

    return make


def link(fd):
    return os.readlink(f"/proc/self/fd/{fd}")


def reopen(round_trip, fd, flags):
    return round_trip.keep(os.open(f"/proc/self/fd/{fd}", flags))


def test_all_of_it(round_trip, memfd):
    fd = memfd(b"m" * 5000)
    os.fchmod(fd, 0o640)
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    copy = round_trip.trip(Memfd, fd)
    round_trip.make.close(ok=True)
    assert link(copy) == link(fd) == "/memfd:mem (deleted)"
    assert os.pread(copy, 9999, 0) == b"m" * 5000
    assert os.lseek(copy, 0, os.SEEK_CUR) == 5000
    assert fcntl.fcntl(copy, fcntl.F_GET_SEALS) == seals
    assert fcntl.fcntl(copy, fcntl.F_GETFL) == fcntl.fcntl(fd, fcntl.F_GETFL)
    assert os.fstat(copy).st_mode == os.fstat(fd).st_mode


def test_no_sealing(round_trip, memfd):
    copy = round_trip.trip(Memfd, memfd(b"x", flags=0))
    round_trip.make.close(ok=True)
    assert fcntl.fcntl(copy, fcntl.F_GET_SEALS) == fcntl.F_SEAL_SEAL


def test_openers_share_it(round_trip, memfd):
    fd = memfd(b"shared")
    ids = [
        round_trip.dump(Memfd, fd),
        round_trip.dump(Memfd, reopen(round_trip, fd, os.O_WRONLY)),
        round_trip.dump(Memfd, reopen(round_trip, fd, os.O_PATH)),
    ]
    first, second, third = (round_trip.create(file_id) for file_id in ids)
    os.write(second, b"S")
    assert os.pread(first, 9, 0) == b"Shared"
    assert os.lseek(first, 0, os.SEEK_CUR) == 6
    assert fcntl.fcntl(second, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
    assert fcntl.fcntl(third, fcntl.F_GETFL) & os.O_PATH
    assert os.path.samestat(os.fstat(first), os.fstat(third))
    round_trip.out.close()
    assert len(list(round_trip.image.records("memfd"))) == 1


def test_mapped_for_writing_before_it_was_sealed(round_trip, memfd):
    fd = memfd(b"m" * 4096)
    file_id = save_mapped(fd, link(fd), round_trip.out)
    assert save_mapped(fd, link(fd), round_trip.out) == file_id
    with mmap.mmap(fd, 4096):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
        opened = round_trip.dump(Memfd, fd)
    copy = round_trip.create(opened)
    mapped = round_trip.keep(
        open_memfd(round_trip.entries[file_id].memfd, round_trip.make, os.O_RDWR)
    )
    with mmap.mmap(mapped, 4096) as memory:
        round_trip.make.close(ok=True)
        memory[0] = ord("M")
    assert os.pread(copy, 2, 0) == b"Mm"


def test_huge_pages_are_told(round_trip):
    try:
        fd = round_trip.keep(os.memfd_create("huge", os.MFD_HUGETLB | os.MFD_HUGE_2MB))
    except OSError:
        pytest.skip("no huge pages of 2 MiB")
    copy = round_trip.trip(Memfd, fd)
    assert os.fstat(copy).st_blksize == 2 << 20
    ((entry, _),) = round_trip.image.records("memfd")
    assert entry.hugetlb_flag == os.MFD_HUGETLB | os.MFD_HUGE_2MB


def test_a_file_of_that_name_is_none(round_trip):
    file = round_trip.open_file(round_trip.keep(os.open("/proc/self/status", os.O_RDONLY)))
    file = file._replace(link="/memfd:x (deleted)")
    assert not Memfd.claims(file)
