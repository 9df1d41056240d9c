# SPDX-License-Identifier: Apache-2.0
"""What a terminal is and what mode it is in: `tty_info_entry` both ways.

Terminals are numbered as CRIU does: a pseudo terminal N is 2 N and its master 2 N + 1, the others
have fixed numbers. A termios is the kernel's own (TCGETS): 36 bytes, whose speeds are in c_cflag.
CRIU keeps the 19 bytes of c_cc as they lie in memory, four to a word, in an array of 19 words.
"""

import fcntl
import os
import struct
import termios
from contextlib import suppress
from enum import IntEnum
from typing import Any

from ckpt.errors import NoSuchTask
from ckpt.files.kind import OpenFile
from ckpt.files.sockopts import doing
from ckpt.image import pb
from ckpt.kernel import procfs

PTY_SLAVES = range(136, 144)
"""Majors of /dev/pts/N, 256 numbers each (Documentation/admin-guide/devices.txt)."""

_TIOCGLCKTRMIOS, _TIOCSLCKTRMIOS = 0x5456, 0x5457
_TIOCGPKT, _TIOCGPTLCK, _TIOCGEXCL = 0x80045438, 0x80045439, 0x80045440
_CONSOLE, _VT, _CTTY, _SERIAL = 1002 << 1, 1004 << 1, 1006 << 1, 1010 << 1
_TERMIOS = struct.Struct("=4IB19s")
_WINSIZE = struct.Struct("=4H")
_CC_WORDS, _CC_BYTES = 19, 19


class Kind(IntEnum):
    """Values of TtyType."""

    PTY = 1
    CONSOLE = 2
    VT = 3
    CTTY = 4
    EXT_TTY = 5
    SERIAL = 6


def identify(file: OpenFile) -> tuple[Kind, int]:
    """Return what a terminal is, and its number in the image."""
    major, minor = os.major(file.stat.st_rdev), os.minor(file.stat.st_rdev)
    if major in PTY_SLAVES:
        return Kind.PTY, (major - PTY_SLAVES[0] << 8 | minor) << 1
    if (major, minor) == (5, 2):
        return Kind.PTY, (file.info.tty_index or 0) << 1 | 1
    if major == 5:
        return (Kind.CTTY, _CTTY) if minor == 0 else (Kind.CONSOLE, _CONSOLE)
    return (Kind.VT, _VT) if minor < 64 else (Kind.SERIAL, _SERIAL)


def read_info(file: OpenFile, kind: Kind, info_id: int) -> pb.tty_info_entry:
    """Return everything about the terminal behind a file. Raises KernelError."""
    sid, pgrp = _job(file, kind)
    info = pb.tty_info_entry(
        id=info_id,
        type=kind,
        locked=_flag(file.fd, _TIOCGPTLCK),
        exclusive=_flag(file.fd, _TIOCGEXCL),
        packet_mode=_flag(file.fd, _TIOCGPKT),
        sid=sid,
        pgrp=pgrp,
        rdev=file.stat.st_rdev,
        dev=file.stat.st_dev,
        uid=file.stat.st_uid,
        gid=file.stat.st_gid,
    )
    with doing(f"read the mode of {file.name}"):
        _read_mode(file.fd, info)
    if kind is Kind.PTY:
        info.pty.index = info_id >> 1
    return info


def _read_mode(fd: int, info: pb.tty_info_entry) -> None:
    info.termios.CopyFrom(_termios(fcntl.ioctl(fd, termios.TCGETS, bytes(_TERMIOS.size))))
    locked = bytes(_TERMIOS.size)
    with suppress(OSError):
        locked = fcntl.ioctl(fd, _TIOCGLCKTRMIOS, locked)
    info.termios_locked.CopyFrom(_termios(locked))
    rows, columns, width, height = _WINSIZE.unpack(fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    info.winsize.CopyFrom(
        pb.winsize_entry(ws_row=rows, ws_col=columns, ws_xpixel=width, ws_ypixel=height)
    )


def _job(file: OpenFile, kind: Kind) -> tuple[int, int]:
    """Return session and foreground group if it is the controlling terminal of a process."""
    number = identify(file)[1] >> 1 if kind is Kind.PTY else -1
    for pid in (file.pid,) if kind is Kind.CTTY else file.tree:
        with suppress(NoSuchTask):
            task = procfs.stat(pid)
            if kind is Kind.PTY:
                is_ours = number == _pty(task.tty_nr)
            else:
                is_ours = kind is Kind.CTTY or file.stat.st_rdev == _device(task.tty_nr)
            if task.tty_nr and is_ours:
                return task.session, max(task.tpgid, 0)
    return 0, 0


def _device(tty_nr: int) -> int:
    return os.makedev(tty_nr >> 8 & 0xFFF, tty_nr & 0xFF | tty_nr >> 12 & 0xFFF00)


def controlling_pty(pid: int) -> int | None:
    """Return the number of the pseudo terminal that controls a process's session, if one does."""
    return _pty(procfs.stat(pid).tty_nr)


def _pty(tty_nr: int) -> int | None:
    device = _device(tty_nr)
    if os.major(device) not in PTY_SLAVES:
        return None
    return os.major(device) - PTY_SLAVES[0] << 8 | os.minor(device)


def _flag(fd: int, request: int) -> bool:
    """Return a flag of a terminal; one that has no such flag has it off."""
    with suppress(OSError):
        return any(fcntl.ioctl(fd, request, bytes(4)))
    return False


def _termios(raw: bytes) -> pb.termios_entry:
    iflag, oflag, cflag, lflag, line, cc = _TERMIOS.unpack(raw)
    return pb.termios_entry(
        c_iflag=iflag,
        c_oflag=oflag,
        c_cflag=cflag,
        c_lflag=lflag,
        c_line=line,
        c_ispeed=0,
        c_ospeed=0,
        c_cc=struct.unpack(f"={_CC_WORDS}I", cc.ljust(_CC_WORDS * 4, b"\0")),
    )


def _raw(entry: Any) -> bytes:
    words = list(entry.c_cc)[: _CC_BYTES // 4 + 1]
    cc = struct.pack(f"={len(words)}I", *words).ljust(_CC_BYTES, b"\0")[:_CC_BYTES]
    flags = entry.c_iflag, entry.c_oflag, entry.c_cflag, entry.c_lflag
    return _TERMIOS.pack(*flags, entry.c_line, cc)


def set_mode(fd: int, info: Any, *, size: bool) -> None:
    """Put a terminal in its mode again; size says whether it gets its old window size too.

    Raises KernelError.
    """
    with doing(f"set the mode of terminal {info.id}"):
        if info.HasField("termios"):
            fcntl.ioctl(fd, termios.TCSETS, _raw(info.termios))
        if size and info.HasField("winsize"):
            old = info.winsize
            window = _WINSIZE.pack(old.ws_row, old.ws_col, old.ws_xpixel, old.ws_ypixel)
            fcntl.ioctl(fd, termios.TIOCSWINSZ, window)


def lock_mode(fd: int, info: Any) -> None:
    """Lock the bits of its mode that were. Needs CAP_SYS_ADMIN, if there are any."""
    with doing(f"lock the mode of terminal {info.id}"):
        if info.HasField("termios_locked") and any(locked := _raw(info.termios_locked)):
            fcntl.ioctl(fd, _TIOCSLCKTRMIOS, locked)
