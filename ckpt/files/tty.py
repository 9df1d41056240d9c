# SPDX-License-Identifier: Apache-2.0
"""Terminals: the shell's own (--shell-job), pseudo terminals with both ends inside, the console.

tty-info.img has one record per terminal end, tty.img (in files.img) one per open file. Facts that
bite (ioctl_tty(2), drivers/tty/pty.c, tty_jobctrl.c):

- The session and foreground group of a terminal are told only to who has it as controlling
  terminal, so they come from /proc/PID/stat.
- Modes and size belong to the pair: what is set at the master is the slave's too.
- /dev/ptmx gives the lowest free number; the path /dev/pts/N is fixed by it.
- What lies unread in a terminal that stays outside stays there; for the others see `ttydata`.
"""

import errno
import fcntl
import os
import select
import stat
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

from ckpt.errors import (
    CkptError,
    ImageError,
    KernelError,
    NoSuchTask,
    OptionsError,
    Unsupported,
)
from ckpt.files.external import inherited, tty_key
from ckpt.files.kind import INSIDE, Dump, FileKind, NotNow, OpenFile, Restore
from ckpt.files.sockopts import doing
from ckpt.files.ttydata import (
    CHANGE,
    PEER_FLAGS,
    TIOCGPTPEER,
    TOO_MUCH,
    Unread,
    has_change,
    hindrance,
    in_packet_mode,
    most,
    natural_ends,
    put,
    take,
    unread,
)
from ckpt.files.ttyinfo import (
    PTY_SLAVES,
    Kind,
    controlling_pty,
    identify,
    lock_mode,
    read_info,
    set_mode,
)
from ckpt.image import pb
from ckpt.image.text import get_path, set_text
from ckpt.kernel import procfs
from ckpt.kernel.arch import NR
from ckpt.kernel.fdinfo import fdinfo
from ckpt.kernel.remote import Batch, Call
from ckpt.kernel.way import way_to
from ckpt.options import DumpOptions

_TIOCSPTLCK, _TIOCGPTN = 0x40045431, 0x80045430
_MOST_PTYS = 4096
_AT_FDCWD = -100
_SIGNALS = "unread data in a pseudo terminal that signals when there is some (O_ASYNC)"


class Tty(FileKind):
    """An open terminal."""

    type = pb.FD_TTY
    field = "tty"

    @classmethod
    def claims(cls, file: OpenFile) -> bool:
        """Recognise it by its device number."""
        if not stat.S_ISCHR(file.stat.st_mode) or file.flags & os.O_PATH:
            return False
        return os.major(file.stat.st_rdev) in (4, 5, *PTY_SLAVES)

    @classmethod
    def check(cls, file: OpenFile, options: DumpOptions) -> None:
        """Refuse the shell's terminal without leave, hung-up ones, too much unread data."""
        kind, _ = identify(file)
        if kind in (Kind.VT, Kind.SERIAL):
            raise Unsupported(f"{file.name}: a terminal line of the machine", hint="close it first")
        _check_alive(file)
        if _is_outside(file, kind):
            if not (options.shell_job or tty_key(file) in options.external):
                raise Unsupported(
                    f"{file.name}: a terminal whose other end is outside the dump",
                    hint="use --shell-job to restore it onto the terminal of the restore",
                )
        elif kind is Kind.PTY:
            _check_end(file)

    @classmethod
    def dump(cls, file: OpenFile, out: Dump) -> Any:
        """Write the terminal once, the path, and the file."""
        kind, info_id = identify(file)
        outside = _is_outside(file, kind)
        if out.first("tty", info_id):
            info = read_info(file, kind, info_id)
            if info_id & 1 and kind is Kind.PTY and _has_hung_up(file.fd):
                info.hung_up = True
            if outside and tty_key(file) in out.options.external:
                info.type = Kind.EXT_TTY
            out.writer("tty-info").append(info)
            if info_id & 1 and kind is Kind.PTY:
                _save_unread(file, info.pty.index, out)
        return pb.tty_file_entry(
            **file.common(), tty_info_id=info_id, regf_id=_save_path(file, out)
        )

    @classmethod
    def create(cls, entry: Any, make: Restore) -> int:
        """Open it, once its pair is there and in its mode."""
        info = _info(entry.tty_info_id, make)
        if info.type == Kind.CTTY and _controls_a_session(info.sid, make):
            return INSIDE
        flags = entry.flags & ~os.O_CREAT | os.O_NOCTTY | os.O_CLOEXEC
        if info.type == Kind.PTY and _has_master(info.pty.index, make):
            master: int = make.once(("pty", info.pty.index), lambda: _make_pty(info, make))
            with doing(f"open pseudo terminal {info.pty.index}"):
                if entry.tty_info_id & 1:
                    return os.dup(master)
                fd: int = fcntl.ioctl(master, TIOCGPTPEER, flags)
            if info.exclusive:
                own = os.dup(fd)
                make.at_end(lambda ok: _make_exclusive(own))
            return fd
        outside = _open_outside(info, entry, flags, make)
        make.once(("tty mode", entry.tty_info_id), lambda: _set_outside(outside, info))
        return outside

    @classmethod
    def open_inside(cls, entry: Any, make: Restore, batch: Batch) -> Call:
        """Open /dev/tty: the terminal that controls the task's own session."""
        flags = entry.flags & ~os.O_CREAT | os.O_NOCTTY
        return batch.call(NR.openat, _AT_FDCWD, batch.data(b"/dev/tty\0"), flags, 0, must=True)


def _is_outside(file: OpenFile, kind: Kind) -> bool:
    """Say whether the terminal's other end is not ours: the controlling one, a lone slave."""
    if kind is Kind.CTTY:
        return controlling_pty(file.pid) not in _masters(file)
    is_slave = kind is Kind.PTY and os.major(file.stat.st_rdev) in PTY_SLAVES
    return is_slave and identify(file)[1] >> 1 not in _masters(file)


def _masters(file: OpenFile) -> set[int | None]:
    """Return the numbers of the pseudo terminals whose masters the tree has open."""
    found: set[int | None] = set()
    if not any(link.endswith("ptmx") for link in file.links):
        return found
    for pid in file.tree:
        with suppress(KernelError, NoSuchTask):  # closed, or ended, meanwhile
            found |= _masters_of(pid)
    return found


def _masters_of(pid: int) -> set[int | None]:
    found: set[int | None] = set()
    tid = way_to(pid).tid
    for number in procfs.fds(tid):
        with suppress(KernelError):
            if procfs.fd_link(tid, number).endswith("ptmx"):
                found.add(fdinfo(tid, number).tty_index)
    return found


def _check_alive(file: OpenFile) -> None:
    try:
        fcntl.ioctl(file.fd, termios.TCGETS, bytes(36))
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise Unsupported(
            f"{file.name}: its terminal has hung up", hint="have the target close it"
        ) from None


def _has_hung_up(master: int) -> bool:
    """Say whether the last slave was closed."""
    poll = select.poll()
    poll.register(master, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def _check_end(file: OpenFile) -> None:
    """Raise NotNow if there is unread data at this end that could not be written anew."""
    waiting, info_id = unread(file.fd), identify(file)[1]
    if info_id & 1 and has_change(file.fd):
        raise _not_now(file, CHANGE)
    if not waiting:
        return
    if info_id & 1 and not _may_take(file, info_id >> 1):
        raise _not_now(file, "unread data in a pseudo terminal whose other end is outside the dump")
    if file.flags & os.O_ASYNC:
        raise _not_now(file, _SIGNALS)
    if waiting > most(file.fd, master=bool(info_id & 1)):
        raise _not_now(file, TOO_MUCH)


def _not_now(file: OpenFile, what: str) -> NotNow:
    return NotNow(f"{file.name}: {what}", hint="try again when it has been read")


def _may_take(master: OpenFile, index: int) -> bool:
    """Say whether there may be unread data, and the other end is open in the tree, or nowhere.

    One that was never open must not be opened: closed again, it is one that hung up.
    """
    if _has_hung_up(master.fd):
        return unread(master.fd) > 0
    if f"/dev/pts/{index}" in master.links:
        return True
    return "/dev/tty" in master.links and index in map(_controlling, master.tree)


def _controlling(pid: int) -> int | None:
    with suppress(NoSuchTask):
        return controlling_pty(pid)
    return None


@contextmanager
def _slave(master: OpenFile) -> Iterator[int]:
    """Open the other end for a while."""
    with doing(f"open the slave of {master.name}"):
        slave = fcntl.ioctl(master.fd, TIOCGPTPEER, PEER_FLAGS)
    try:
        yield slave
    finally:
        os.close(slave)


def _signals(master: OpenFile, index: int) -> bool:
    """Say whether anybody in the tree is sent SIGIO when there is something to read."""
    ends = f"/dev/pts/{index}", "/dev/tty"
    for pid in master.tree:
        for number in procfs.fds(pid):
            with suppress(KernelError):
                link = procfs.fd_link(pid, number)
                if link in ends or link.endswith("ptmx"):
                    info = fdinfo(pid, number)
                    mine = link in ends or info.tty_index == index
                    if mine and info.flags & os.O_ASYNC:
                        return True
    return False


def _save_unread(master: OpenFile, index: int, out: Dump) -> None:
    """Save what was written and not read, at either end."""
    _check_end(master)
    if not _may_take(master, index):
        return
    with _slave(master) as slave:
        what = hindrance(master.fd, slave)
        if not what and (unread(master.fd) or unread(slave)) and _signals(master, index):
            what = _SIGNALS
        if what:
            raise _not_now(master, what)
        found = take(master.fd, slave)
    if found.typed or found.ends:
        entry = pb.tty_data_entry(tty_id=index << 1, data=found.typed, ends=found.ends)
        out.writer("tty-data").append(entry)
    if found.shown:
        # CRIU keeps the control byte that a master in packet mode reads first.
        data = bytes(in_packet_mode(master.fd)) + found.shown
        out.writer("tty-data").append(pb.tty_data_entry(tty_id=index << 1 | 1, data=data))


def _save_path(file: OpenFile, out: Dump) -> int:
    """Add the record of the path, which CRIU opens it by."""
    entry = pb.reg_file_entry(
        id=out.next_id(),
        flags=file.flags,
        pos=0,
        fown=file.owner(),
        mode=file.stat.st_mode,
    )
    set_text(entry, "name", file.link)
    out.add_entry(pb.file_entry(type=pb.FD_REG, id=entry.id, reg=entry))
    return entry.id


# --- restore


def _infos(make: Restore) -> dict[int, Any]:
    def read() -> dict[int, Any]:
        return {info.id: info for info, _ in make.image.records("tty-info")}

    return make.once("tty-info", read)


def _info(info_id: int, make: Restore) -> Any:
    try:
        return _infos(make)[info_id]
    except KeyError:
        raise ImageError(f"tty-info.img: no terminal with id {info_id}") from None


class Controlling(NamedTuple):
    """A terminal that controls a session: our descriptor of it, and the group in the foreground."""

    fd: int
    foreground: int


def controlling(make: Restore) -> dict[int, Controlling]:
    """Return those whose masters are in the image, by session; they are closed at the end."""
    found: dict[int, Controlling] = {}
    for info in _infos(make).values() if make.image.exists("tty-info") else ():
        if info.type != Kind.PTY or info.sid in (0, *found):
            continue
        if _has_master(info.pty.index, make):
            master = make.once(("pty", info.pty.index), partial(_make_pty, info, make))
            slave = fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            make.at_end(partial(_close, slave))
            found[info.sid] = Controlling(slave, info.pgrp)
    return found


def _close(fd: int, ok: bool) -> None:
    os.close(fd)


def _controls_a_session(session: int, make: Restore) -> bool:
    """Say whether a terminal that is made here controls it."""
    infos = [info for info in _infos(make).values() if info.type == Kind.PTY]
    return any(info.sid == session and _has_master(info.pty.index, make) for info in infos)


def _has_master(index: int, make: Restore) -> bool:
    return index << 1 | 1 in _infos(make)


def _make_exclusive(slave: int) -> None:
    fcntl.ioctl(slave, termios.TIOCEXCL)
    os.close(slave)


def _make_pty(info: Any, make: Restore) -> int:
    """Make a pseudo terminal of this number, in its mode, and return its master.

    Ours is closed when the restore is done.
    """
    index, master = info.pty.index, _info(info.pty.index << 1 | 1, make)
    fd = _open_ptmx(index)
    make.at_end(lambda ok: os.close(fd))
    with doing(f"set up pseudo terminal {index}"):
        fcntl.ioctl(fd, _TIOCSPTLCK, struct.pack("i", 0))
        make.at_end(lambda ok: _lock(fd, master))
        set_mode(fd, master, size=True)
        waiting = _saved_unread(index, master, make)
        if waiting or master.hung_up or index << 1 in _infos(make):
            peer = fcntl.ioctl(fd, TIOCGPTPEER, PEER_FLAGS)
            # Held to the end: a terminal whose last slave was closed is one that hung up.
            make.at_end(lambda ok: os.close(peer))
            if waiting:
                put(fd, peer, waiting)
        lock_mode(fd, master)
        if master.packet_mode:
            fcntl.ioctl(fd, termios.TIOCPKT, struct.pack("i", 1))
    return fd


def _lock(fd: int, info: Any) -> None:
    """Make exclusive and lock what was: now all slaves are open."""
    if info.exclusive:
        fcntl.ioctl(fd, termios.TIOCEXCL)
    if info.locked:
        fcntl.ioctl(fd, _TIOCSPTLCK, struct.pack("i", 1))


def _open_ptmx(index: int) -> int:
    """Open masters until one has this number. Raises KernelError if somebody else has it."""
    opened: list[int] = []
    try:
        while len(opened) < _MOST_PTYS:
            with doing("open /dev/ptmx"):
                fd = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            number = struct.unpack("i", fcntl.ioctl(fd, _TIOCGPTN, bytes(4)))[0]
            if number == index:
                return fd
            opened.append(fd)
            if number > index:
                break
        hint = "the dumped process may still be running"
        raise KernelError(errno.EBUSY, f"open pseudo terminal {index}", hint=hint)
    finally:
        for fd in opened:
            os.close(fd)


def _saved_unread(index: int, master: Any, make: Restore) -> Unread | None:
    """Return what was unread at either end, if the image has some. Raises ImageError."""
    found = None
    for entry, _ in make.image.records("tty-data") if make.image.exists("tty-data") else ():
        if entry.tty_id >> 1 != index:
            continue
        found = found or Unread()
        if entry.tty_id & 1:
            found = found._replace(shown=entry.data[1:] if master.packet_mode else entry.data)
        else:
            lines = master.termios.c_lflag & termios.ICANON
            ends = tuple(entry.ends) or (natural_ends(entry.data) if lines else ())
            found = found._replace(typed=entry.data, ends=ends)
    if found and not found.is_sound():
        raise ImageError(f"tty-data.img: what was unread of terminal {index} cannot have been")
    return found


def _open_outside(info: Any, entry: Any, flags: int, make: Restore) -> int:
    """Open the terminal that stands for one whose other end was outside, or a console."""
    key = f"tty[{info.rdev:x}:{info.dev:x}]"
    if (fd := inherited(make.options, key)) is not None:
        return fd
    if info.type == Kind.EXT_TTY:
        raise OptionsError(
            f"{key}: the dump left this terminal outside",
            hint=f"--inherit-fd 'fd[N]:{key}' puts descriptor N in its place",
        )
    with doing("open a terminal"):
        if info.type == Kind.CONSOLE:
            return os.open(get_path(make.entry(entry.regf_id).reg, "name"), flags)
        if not make.options.shell_job:
            raise CkptError(
                f"terminal {info.id} was the shell's that started the process",
                hint="use --shell-job to restore it onto the terminal of the restore",
            )
        return os.open("/dev/tty" if info.type == Kind.CTTY else _own_terminal(), flags)


def _set_outside(fd: int, info: Any) -> None:
    set_mode(fd, info, size=False)
    lock_mode(fd, info)


def _own_terminal() -> str:
    """Return a path to our terminal: by a name other than /dev/tty if a descriptor has one."""
    return next((f"/proc/self/fd/{fd}" for fd in (0, 1, 2) if os.isatty(fd)), "/dev/tty")
