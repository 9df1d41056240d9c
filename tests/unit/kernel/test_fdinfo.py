# SPDX-License-Identifier: Apache-2.0
"""The parser of fdinfo, on given texts and on descriptors made here."""

import ctypes
import fcntl
import os
import select
import socket
import tempfile
from collections.abc import Callable

import pytest

from ckpt.kernel.fdinfo import (
    EpollTarget,
    Fanotify,
    FanotifyMark,
    FdInfo,
    InotifyWatch,
    Lock,
    TimerFd,
    fdinfo,
    locks,
    parse_fdinfo,
    parse_locks,
)

COMMON = b"pos:\t0\nflags:\t02\nmnt_id:\t17\nino:\t17\n"
HANDLE = bytes.fromhex("e8f7030000000000")


def test_a_plain_file() -> None:
    with tempfile.TemporaryFile() as file:
        file.seek(812)
        info = fdinfo(os.getpid(), file.fileno())
        assert (info.pos, info.ino) == (812, os.fstat(file.fileno()).st_ino)
        assert info.flags & os.O_CLOEXEC and info.flags & os.O_ACCMODE == os.O_RDWR
    assert parse_fdinfo(b"pos:\t5\nflags:\t0100001\nmnt_id:\t9\n") == FdInfo(5, 0o100001, 9, 0)


def test_eventfd() -> None:
    fd = os.eventfd(300, os.EFD_SEMAPHORE)
    info = fdinfo("self", fd)
    os.close(fd)
    assert (info.eventfd_count, info.eventfd_semaphore) == (300, True)
    assert info.eventfd_id is not None and info.other == {}


def test_epoll() -> None:
    read, write = os.pipe()
    with select.epoll() as epoll:
        epoll.register(read, select.EPOLLIN | select.EPOLLET)
        (target,) = fdinfo("self", epoll.fileno()).epoll
    want = (read, select.EPOLLIN | select.EPOLLET | select.EPOLLERR | select.EPOLLHUP)
    assert (target.fd, target.events & 0xFFFFFFFF) == want
    assert (target.data & 0xFFFFFFFF, target.ino) == (read, os.fstat(read).st_ino)
    os.close(read)
    os.close(write)


def test_epoll_of_old_and_of_many() -> None:
    line = b"tfd: %8d events:       19 data: deadbeefdeadbeef  pos:-1 ino:209e sdev:f\n"
    info = parse_fdinfo(COMMON + b"".join(line % n for n in range(10_000)))
    assert len(info.epoll) == 10_000
    assert info.epoll[7] == EpollTarget(7, 0x19, 0xDEADBEEFDEADBEEF, -1, 0x209E, 0xF)
    old = parse_fdinfo(COMMON + b"tfd:        5 events:       19 data:                5 \n")
    assert old.epoll == (EpollTarget(5, 0x19, 5, 0, 0, 0),)


def test_signalfd() -> None:
    info = parse_fdinfo(COMMON + b"sigmask:\t0000000180004200\n")
    assert info.sigmask == 0x180004200


def test_timerfd() -> None:
    text = (
        b"clockid: 7\nticks: 3\nsettime flags: 03\nit_value: (1, 999968791)\nit_interval: (2, 5)\n"
    )
    info = parse_fdinfo(COMMON + text)
    assert info.timer == TimerFd(7, 3, 3, (1, 999968791), (2, 5))
    assert info.other == {}


def test_inotify() -> None:
    text = (
        b"inotify wd:1f ino:3f7e8 sdev:fe00000 mask:100 ignored_mask:0 fhandle-bytes:8 "
        b"fhandle-type:1 f_handle:e8f7030000000000\n"
        b"inotify wd:2 ino:1 sdev:2 mask:3 ignored_mask:0 \n"
    )
    info = parse_fdinfo(COMMON + text)
    assert info.inotify[0] == InotifyWatch(0x1F, 0x3F7E8, 0xFE00000, 0x100, 0, 1, HANDLE)
    assert info.inotify[1] == InotifyWatch(2, 1, 2, 3, 0, 0, b"")


def test_fanotify() -> None:
    text = (
        b"fanotify flags:200 event-flags:8000\n"
        b"fanotify mnt_id:1b mflags:2 mask:20 ignored_mask:1\n"
        b"fanotify sdev:fe00000 mflags:0 mask:20 ignored_mask:0\n"
        b"fanotify ino:3f7e8 sdev:fe00000 mflags:0 mask:20 ignored_mask:0 fhandle-bytes:8 "
        b"fhandle-type:1 f_handle:e8f7030000000000\n"
    )
    marks = (
        FanotifyMark(0x1B, None, None, 2, 0x20, 1, 0, b""),
        FanotifyMark(None, None, 0xFE00000, 0, 0x20, 0, 0, b""),
        FanotifyMark(None, 0x3F7E8, 0xFE00000, 0, 0x20, 0, 1, HANDLE),
    )
    assert parse_fdinfo(COMMON + text).fanotify == Fanotify(0x200, 0x8000, marks)


def test_pidfd() -> None:
    fd = os.pidfd_open(os.getpid())
    info = fdinfo("self", fd)
    os.close(fd)
    assert (info.pidfd, info.pidfd_ns[0]) == (os.getpid(), os.getpid())
    assert parse_fdinfo(COMMON + b"Pid:\t-1\nNSpid:\t-1\n").pidfd == -1


def test_tty() -> None:
    master, slave = os.openpty()
    assert fdinfo("self", master).tty_index == int(os.path.basename(os.ttyname(slave)))
    os.close(master)
    os.close(slave)


def test_locks_of_a_descriptor_and_of_all() -> None:
    with tempfile.TemporaryFile() as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 5)
        ino = os.fstat(file.fileno()).st_ino
        (mine,) = fdinfo("self", file.fileno()).locks
        everywhere = [lock for lock in locks() if lock.ino == ino]
    assert (mine.kind, mine.access, mine.start, mine.end) == ("POSIX", "WRITE", 5, 14)
    assert [(lock.pid, lock.start) for lock in everywhere] == [(os.getpid(), 5)]


def test_locks() -> None:
    text = (
        b"1: FLOCK  ADVISORY  WRITE 4549 fe:00:2148770 0 EOF\n"
        b"1: -> FLOCK  ADVISORY  READ  4550 fe:00:2148770 0 EOF\n"
        b"2: OFDLCK ADVISORY  READ  -1 103:1f:99 0 9\n"
        b"3: LEASE  BREAKING  UNLCK 812 00:15:7 0 EOF\n"
    )
    assert parse_locks(text) == [
        Lock(1, False, "FLOCK", "ADVISORY", "WRITE", 4549, 0xFE, 0, 2148770, 0, None),
        Lock(1, True, "FLOCK", "ADVISORY", "READ", 4550, 0xFE, 0, 2148770, 0, None),
        Lock(2, False, "OFDLCK", "ADVISORY", "READ", -1, 0x103, 0x1F, 99, 0, 9),
        Lock(3, False, "LEASE", "BREAKING", "UNLCK", 812, 0, 0x15, 7, 0, None),
    ]
    lines = b"".join(b"lock:\t" + line for line in text.splitlines(keepends=True))
    assert parse_fdinfo(COMMON + lines).locks == tuple(parse_locks(text))


def test_what_has_no_field_is_kept_by_key() -> None:
    text = b"SqMask:\t0x7\nPollList:\n  op=6, task_works=0\nCqOverflowList:\n"
    other = parse_fdinfo(COMMON + text).other
    assert (other["SqMask"], other["PollList"]) == ("0x7", "")


@pytest.mark.parametrize(
    "make",
    [
        lambda: ctypes.CDLL(None).inotify_init1(0),
        lambda: os.memfd_create("x"),
        lambda: os.open("/", os.O_DIRECTORY),
        lambda: socket.socket().detach(),
    ],
)
def test_every_descriptor_has_the_common_fields(make: Callable[[], int]) -> None:
    fd = make()
    info = fdinfo("self", fd)
    assert info.ino == os.fstat(fd).st_ino or info.ino
    os.close(fd)
