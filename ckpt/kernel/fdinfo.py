# SPDX-License-Identifier: Apache-2.0
"""What /proc/PID/fdinfo/FD says about an open file, and the file locks of /proc/locks.

A descriptor fetched with pidfd_getfd(2) shares its open file with the owner's, so
`fdinfo("self", fd)` of the local copy says the same, save for O_CLOEXEC and the POSIX locks, which
belong to the process. Sockets have just the common fields. Format: proc_pid_fdinfo(5) and the
show_fdinfo function of each kind in the kernel. Device numbers are the kernel's own here: major
<< 20 | minor.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from ckpt.kernel import procfs
from ckpt.kernel.procfs import Pid


class EpollTarget(NamedTuple):
    """A member of an epoll set, by the number its descriptor had at EPOLL_CTL_ADD.

    `pos`, `ino` and `sdev` are of the file itself (Linux 4.13), which may no longer be the one
    behind that number.
    """

    fd: int
    events: int
    data: int
    pos: int
    ino: int
    sdev: int


class TimerFd(NamedTuple):
    """The state of a timerfd; times are (seconds, nanoseconds), `value` the time left.

    `ticks` are the expirations not yet read; `settime_flags` the TFD_TIMER_ flags it was armed
    with, so an absolute timer too has its time *left* here.
    """

    clock: int
    ticks: int
    settime_flags: int
    value: tuple[int, int]
    interval: tuple[int, int]


class InotifyWatch(NamedTuple):
    """An inotify watch. The file handle (type, bytes) is empty if the file system exports none."""

    wd: int
    ino: int
    sdev: int
    mask: int
    ignored_mask: int
    handle_type: int
    handle: bytes


class FanotifyMark(NamedTuple):
    """A fanotify mark: on an inode (`ino`, `sdev`), a mount (`mnt_id`) or a file system (`sdev`).

    What does not apply is None. `mflags` are the FAN_MARK_ flags kept with it.
    """

    mnt_id: int | None
    ino: int | None
    sdev: int | None
    mflags: int
    mask: int
    ignored_mask: int
    handle_type: int
    handle: bytes


class Fanotify(NamedTuple):
    """A fanotify group: the two arguments of fanotify_init(2), and its marks."""

    flags: int
    event_flags: int
    marks: tuple[FanotifyMark, ...]


class Lock(NamedTuple):
    """A file lock or lease.

    `kind` is POSIX, FLOCK, OFDLCK, LEASE or DELEG; `mode` ADVISORY, or a lease's ACTIVE,
    BREAKING; `access` READ, WRITE or UNLCK. `pid` is 0 or -1 if it belongs to no process that we
    can see. `end` is the last byte, None to the end of the file. A `blocked` one only waits.
    """

    id: int
    blocked: bool
    kind: str
    mode: str
    access: str
    pid: int
    major: int
    minor: int
    ino: int
    start: int
    end: int | None


class FdInfo(NamedTuple):
    """One open file. What its kind does not have is None or empty.

    `flags` are the open(2) flags with O_CLOEXEC of this very descriptor; `ino` is 0 before Linux
    5.14. `pidfd` is the pid in our pid namespace, -1 if the process is gone, and `pidfd_ns` its
    pids from there inwards. `other` holds the lines that have no field here, by key.
    """

    pos: int
    flags: int
    mnt_id: int
    ino: int
    eventfd_count: int | None = None
    eventfd_id: int | None = None
    eventfd_semaphore: bool = False
    epoll: tuple[EpollTarget, ...] = ()
    sigmask: int | None = None
    timer: TimerFd | None = None
    inotify: tuple[InotifyWatch, ...] = ()
    fanotify: Fanotify | None = None
    pidfd: int | None = None
    pidfd_ns: tuple[int, ...] = ()
    tty_index: int | None = None
    locks: tuple[Lock, ...] = ()
    other: Mapping[str, str] = {}


_COMMON = re.compile(rb"pos:\t(-?\d+)\nflags:\t(\d+)\nmnt_id:\t(-?\d+)\n(?:ino:\t(\d+)\n)?")
_EPOLL = re.compile(
    rb"^tfd: *(\d+) events: *([0-9a-f]+) data: *([0-9a-f]+)"
    rb"(?: *pos:(-?\d+) ino:([0-9a-f]+) sdev:([0-9a-f]+))?",
    re.MULTILINE,
)
_TIMERFD = re.compile(
    rb"clockid: (\d+)\nticks: (\d+)\nsettime flags: (\d+)\n"
    rb"it_value: \((\d+), (\d+)\)\nit_interval: \((\d+), (\d+)\)\n"
)
_WORD = re.compile(rb"([\w-]+):([0-9a-f]+)")
_LOCK = re.compile(
    rb"^(?:lock:\t)?(\d+): *(->)? *(\w+) +(\S+) +(\w+) +(-?\d+) "
    rb"([0-9a-f]+):([0-9a-f]+):(\d+) (\d+) (\d+|EOF)$",
    re.MULTILINE,
)


def fdinfo(pid: Pid, fd: int) -> FdInfo:
    """The open file behind a descriptor of a process."""
    return parse_fdinfo(procfs.read(pid, f"fdinfo/{fd}"))


def parse_fdinfo(text: bytes) -> FdInfo:
    """Parse /proc/PID/fdinfo/FD."""
    common = _COMMON.match(text)
    assert common, text
    pos, flags, mnt_id, ino = common.groups()
    numbers = (int(pos), int(flags, 8), int(mnt_id), int(ino or b"0"))
    rest = text[common.end() :]
    return _with_kind(numbers, rest) if rest else FdInfo(*numbers)


def _with_kind(numbers: tuple[int, int, int, int], rest: bytes) -> FdInfo:
    lines = dict(line.partition(b":")[::2] for line in rest.split(b"\n"))
    return FdInfo(
        *numbers,
        eventfd_count=_int(lines.pop(b"eventfd-count", None), 16),
        eventfd_id=_int(lines.pop(b"eventfd-id", None)),
        eventfd_semaphore=lines.pop(b"eventfd-semaphore", b"").strip() == b"1",
        epoll=_epoll(rest),
        sigmask=_int(lines.pop(b"sigmask", None), 16),
        timer=_timer(rest),
        inotify=_inotify(rest),
        fanotify=_fanotify(rest),
        pidfd=_int(lines.pop(b"Pid", None)),
        pidfd_ns=tuple(map(int, lines.pop(b"NSpid", b"").split())),
        tty_index=_int(lines.pop(b"tty-index", None)),
        locks=tuple(parse_locks(rest)),
        other=_other(lines),
    )


def _int(value: bytes | None, base: int = 10) -> int | None:
    return None if value is None else int(value, base)


# Keys of lines that became a field of their own above, other than by name.
_TAKEN = (b"tfd", b"inotify", b"fanotify", b"lock", b"clockid", b"ticks", b"settime", b"it_")


def _other(lines: dict[bytes, bytes]) -> dict[str, str]:
    left = {key: value for key, value in lines.items() if key and not key.startswith(_TAKEN)}
    return {key.strip().decode(): value.strip().decode() for key, value in left.items()}


def _epoll(rest: bytes) -> tuple[EpollTarget, ...]:
    return tuple(
        EpollTarget(int(fd), int(events, 16), int(data, 16), int(pos or 0), _hex(ino), _hex(sdev))
        for fd, events, data, pos, ino, sdev in _EPOLL.findall(rest)
    )


def _hex(value: bytes) -> int:
    return int(value or b"0", 16)


def _timer(rest: bytes) -> TimerFd | None:
    found = _TIMERFD.search(rest)
    if not found:
        return None
    clock, ticks, flags, *times = found.groups()
    sec, nsec, every_sec, every_nsec = map(int, times)
    return TimerFd(int(clock), int(ticks), int(flags, 8), (sec, nsec), (every_sec, every_nsec))


def _words(line: bytes) -> dict[bytes, bytes]:
    """The key:value words of an inotify or fanotify line; the numbers are hexadecimal."""
    return dict(_WORD.findall(line))


def _handle(words: dict[bytes, bytes]) -> tuple[int, bytes]:
    size = _hex(words.get(b"fhandle-bytes", b""))
    handle = bytes.fromhex(words.get(b"f_handle", b"").decode())[:size]
    return _hex(words.get(b"fhandle-type", b"")), handle


def _inotify(rest: bytes) -> tuple[InotifyWatch, ...]:
    lines = (line for line in rest.split(b"\n") if line.startswith(b"inotify wd:"))
    return tuple(_watch(_words(line)) for line in lines)


def _watch(words: dict[bytes, bytes]) -> InotifyWatch:
    keys = (b"wd", b"ino", b"sdev", b"mask", b"ignored_mask")
    wd, ino, sdev, mask, ignored = (int(words[key], 16) for key in keys)
    return InotifyWatch(wd, ino, sdev, mask, ignored, *_handle(words))


def _fanotify(rest: bytes) -> Fanotify | None:
    lines = (line for line in rest.split(b"\n") if line.startswith(b"fanotify "))
    words = [_words(line) for line in lines]
    if not words:
        return None
    head, *marks = words
    return Fanotify(
        int(head[b"flags"], 16), int(head[b"event-flags"], 16), tuple(map(_mark, marks))
    )


def _mark(words: dict[bytes, bytes]) -> FanotifyMark:
    mnt_id, ino, sdev = (_int(words.get(key), 16) for key in (b"mnt_id", b"ino", b"sdev"))
    mflags, mask, ignored = (int(words[key], 16) for key in (b"mflags", b"mask", b"ignored_mask"))
    return FanotifyMark(mnt_id, ino, sdev, mflags, mask, ignored, *_handle(words))


# --- /proc/locks


def locks() -> list[Lock]:
    """All file locks whose owner is in the pid namespace of our /proc."""
    return parse_locks(procfs.read_path("/proc/locks"))


def parse_locks(text: bytes) -> list[Lock]:
    """Parse /proc/locks, or the `lock:` lines of an fdinfo (lock_get_status in fs/locks.c)."""
    return [
        Lock(
            id=int(number),
            blocked=bool(arrow),
            kind=kind.decode(),
            mode=mode.decode(),
            access=access.decode(),
            pid=int(pid),
            major=int(major, 16),
            minor=int(minor, 16),
            ino=int(ino),
            start=int(start),
            end=None if end == b"EOF" else int(end),
        )
        for number, arrow, kind, mode, access, pid, major, minor, ino, start, end in (
            _LOCK.findall(text)
        )
    ]
