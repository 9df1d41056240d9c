# SPDX-License-Identifier: Apache-2.0
"""What was written into a pseudo terminal and not read, at either end: tty-data.img.

There is no looking at it without taking it away, so it is read and written anew, while all of the
tree stands still; nothing is read unless it fits in again. A child does it, in a session of its own
and deaf to signals: should we be killed, it comes to its end all the same, and all is there again a
moment later. Facts that bite (drivers/tty/n_tty.c, pty.c):

- What the master reads comes as it is: written anew it must not be processed (OPOST).
- While the slave keeps lines together (ICANON) a read gives one line. That a line ended is a mark
  beside the buffer, so one that ended by EOF (^D) lacks its end, and may be empty.
- Half a line does not show then, only in a terminal that is raw for a moment; and that takes all
  marks away. So lines are read first, and half of one has to be typed anew, too, or it would
  count as entered (n_tty_set_termios).
- Characters that edit, signal or stop are taken literally if LNEXT (^V) comes before them.
- A master in packet mode reads a control byte first, and is told of changes of flow control (IXON,
  START, STOP) and of any if EXTPROC is set: so these stay as they are.
- What the master writes is brought by another thread. poll(2) waits for it, but not if there is
  something to read already; TIOCSTI types at once.
- What does not fit into the buffer waits where nobody sees it: from 4095 bytes on.
- A terminal that is stopped (^S) takes nothing from its slave: poll(2) tells, as it is no room.
- Typing sends SIGIO to who asked for that (O_ASYNC), at the end of a line or in a raw terminal.
"""

import errno
import fcntl
import os
import select
import signal
import struct
import termios
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Self

from ckpt.errors import KernelError
from ckpt.files.sockopts import doing
from ckpt.interrupt import uninterrupted

TIOCGPTPEER = 0x5441
PEER_FLAGS = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK
TOO_MUCH = "more unread data in a pseudo terminal than might fit in again"
CHANGE = "a change of its pseudo terminal that it has not read (TIOCPKT)"
_TIOCGPKT, _TIOCGLCKTRMIOS = 0x80045438, 0x5456
_TERMIOS_SIZE = 36
_IFLAG, _OFLAG, _LFLAG, _CC = 0, 1, 3, 6
_EXTPROC = 0x10000
_SIZE = 4096  # N_TTY_BUF_SIZE
_FULL = _SIZE - 1
_MOST_LINES = _SIZE // 2  # half a line may be as long, which does not show
_MOST_KEPT = 1 << 16  # what the kernel keeps of an end, read buffer and all
_PATIENCE_MS = 1000
_HEAD = struct.Struct("=3I")

Mode = list[Any]
"""What tcgetattr(3) returns."""


class Unread(NamedTuple):
    """What the slave is to read, where lines end in it, and what the master is to read."""

    typed: bytes = b""
    ends: tuple[int, ...] = ()
    shown: bytes = b""

    def pack(self) -> bytes:
        """Return it as bytes."""
        head = _HEAD.pack(len(self.ends), len(self.typed), len(self.shown))
        return head + struct.pack(f"={len(self.ends)}I", *self.ends) + self.typed + self.shown

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Undo pack."""
        ends, typed, shown = _HEAD.unpack_from(data)
        at = _HEAD.size + 4 * ends
        found = struct.unpack_from(f"={ends}I", data, _HEAD.size)
        return cls(data[at : at + typed], found, data[at + typed : at + typed + shown])

    def is_sound(self) -> bool:
        """Say whether an image can be right about it."""
        ordered = list(self.ends) == sorted(self.ends)
        room = len(self.typed) + len(self.ends) <= _MOST_KEPT and len(self.shown) <= _MOST_KEPT
        return ordered and room and max(self.ends, default=0) <= len(self.typed)

    def lines(self) -> Iterator[bytes]:
        """Yield the lines that were entered."""
        begin = 0
        for end in self.ends:
            yield self.typed[begin:end]
            begin = end


def settle(fd: int) -> None:
    """See that what was written to an end has arrived, of which poll(2) takes care (n_tty_poll)."""
    _ready(fd, select.POLLIN)


def _ready(fd: int, events: int, wait_ms: int = 0) -> int:
    poll = select.poll()
    poll.register(fd, events)
    return sum(event for _, event in poll.poll(wait_ms))


def unread(fd: int) -> int:
    """Return how much can be read at an end: of lines, those that are entered, without EOF."""
    settle(fd)
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), "little")


def most(fd: int, *, master: bool) -> int:
    """Return how much may be unread at an end if all is to fit in again."""
    lines = not master and termios.tcgetattr(fd)[_LFLAG] & termios.ICANON
    return _MOST_LINES if lines else _FULL - 1


def in_packet_mode(master: int) -> bool:
    """Say whether a master reads a control byte first (TIOCPKT)."""
    return any(fcntl.ioctl(master, _TIOCGPKT, bytes(4)))


def has_change(master: int) -> bool:
    """Say whether a master has yet to read of a change (TIOCPKT), which is read but once."""
    return in_packet_mode(master) and bool(_ready(master, select.POLLPRI) & select.POLLPRI)


def hindrance(master: int, slave: int) -> str:
    """Say why what was not read has to stay where it is; "" if it may be taken."""
    waiting = unread(master), unread(slave)
    if has_change(master):
        return CHANGE
    if termios.tcgetattr(slave)[_LFLAG] & _EXTPROC and (in_packet_mode(master) or any(waiting)):
        return "unread data in a pseudo terminal whose lines another program edits (EXTPROC)"
    if waiting[0] > most(master, master=True) or waiting[1] > most(slave, master=False):
        return TOO_MUCH
    if any(waiting) and _is_locked(slave):
        return "unread data in a pseudo terminal whose mode is locked (TIOCSLCKTRMIOS)"
    if waiting[0] and not _ready(slave, select.POLLOUT) & select.POLLOUT:
        return "unread data in a pseudo terminal that is stopped (^S)"
    return ""


def _is_locked(slave: int) -> bool:
    return any(fcntl.ioctl(slave, _TIOCGLCKTRMIOS, bytes(_TERMIOS_SIZE)))


def take(master: int, slave: int) -> Unread:
    """Return what has not been read; it is there still, afterwards. Raises KernelError."""
    with doing("look for unread data in a pseudo terminal"):
        mode = termios.tcgetattr(slave)
        lines = mode[_LFLAG] & termios.ICANON and not _is_locked(slave)
        if not lines and not unread(master) and not unread(slave):
            return Unread()
        return Unread.unpack(_by_a_child(partial(_take, master, slave, mode)))


def put(master: int, slave: int, what: Unread) -> None:
    """Have it be unread, in the mode that the terminal is in."""
    mode = termios.tcgetattr(slave)
    _write(master, slave, mode, what)
    termios.tcsetattr(slave, termios.TCSANOW, mode)


def natural_ends(data: bytes) -> tuple[int, ...]:
    """Return where lines end that nobody has counted."""
    return tuple(at + 1 for at, byte in enumerate(data) if byte == ord("\n"))


# --- in the child


def _take(master: int, slave: int, mode: Mode) -> bytes:
    lines = bool(mode[_LFLAG] & termios.ICANON)
    _be_quiet(slave, mode, lines=lines)
    found = Unread()
    try:
        typed, ends = _read_lines(slave) if lines else (b"", ())
        _be_quiet(slave, mode, lines=False)
        typed += _read_rest(slave)
        found = Unread(typed, ends, _read_rest(master, skip=in_packet_mode(master)))
        _write(master, slave, mode, found)
    finally:
        termios.tcsetattr(slave, termios.TCSANOW, mode)
    return found.pack()


def _read_lines(slave: int) -> tuple[bytes, tuple[int, ...]]:
    """Read what is entered, and tell where lines end."""
    data, ends = b"", list[int]()
    while len(ends) < _MOST_KEPT:
        settle(slave)
        try:
            data += os.read(slave, _SIZE)
        except BlockingIOError:
            break
        ends.append(len(data))
    return data, tuple(ends)


def _read_rest(fd: int, *, skip: bool = False) -> bytes:
    """Read all that a raw end has, but for the first bytes of each read."""
    data = b""
    while unread(fd):
        data += os.read(fd, _SIZE)[skip:]
    return data


def _write(master: int, slave: int, mode: Mode, what: Unread) -> None:
    """Write it from the other ends, in a mode for it. It is typed in lines, whatever they were."""
    lnext, eof = _be_quiet(slave, mode, lines=True)
    special = {b"\n"[0], lnext, eof, *(_character(mode, at) for at in _KEPT)}
    ends = {b"\n", *(bytes([_character(mode, at)]) for at in (termios.VEOL, termios.VEOL2))}
    keys = b""
    for line in what.lines():
        end = line[-1:] if line[-1:] in ends - {b"\0"} else b""
        keys += _literal(line.removesuffix(end), special, lnext) + (end or bytes([eof]))
    begun = what.ends[-1] if what.ends else 0
    type_keys(master, slave, keys + _literal(what.typed[begun:], special, lnext))
    _write_all(slave, what.shown)


def _literal(data: bytes, special: set[int], lnext: int) -> bytes:
    return b"".join(bytes([lnext, one] if one in special else [one]) for one in data)


def type_keys(master: int, slave: int, keys: bytes) -> None:
    """Have it typed when this returns: what the master writes arrives later, in another mode."""
    for at in range(len(keys)):
        try:
            fcntl.ioctl(slave, termios.TIOCSTI, keys[at : at + 1])
        except OSError as error:
            if at or error.errno not in (errno.EIO, errno.EPERM):
                raise
            _write_all(master, keys)  # no CAP_SYS_ADMIN: it arrives soon
            settle(slave)
            return


def _write_all(fd: int, data: bytes) -> None:
    while data:
        if not _ready(fd, select.POLLOUT, _PATIENCE_MS) & select.POLLOUT:
            raise OSError(errno.EAGAIN, "write to a pseudo terminal")
        data = data[os.write(fd, data) :]


_KEPT = (termios.VSTART, termios.VSTOP, termios.VEOL, termios.VEOL2)


def _character(mode: Mode, at: int) -> int:
    """Return a special character; 0 if there is none."""
    if at == termios.VEOL2 and not mode[_LFLAG] & termios.IEXTEN:
        return 0
    char = mode[_CC][at]
    return int.from_bytes(char, "little") if isinstance(char, bytes) else int(char)


def _be_quiet(slave: int, mode: Mode, *, lines: bool) -> tuple[int, int]:
    """Have it take what is typed as it is, and not show it; returns what is LNEXT and EOF then."""
    kept = {at: _character(mode, at) for at in _KEPT}
    lnext, eof = [one for one in range(1, 32) if one not in (*kept.values(), 10)][:2]
    kept |= {termios.VLNEXT: lnext, termios.VEOF: eof}
    quiet: Mode = [*mode[:_CC], [bytes([kept.get(at, 0)]) for at in range(len(mode[_CC]))]]
    quiet[_IFLAG] &= termios.IXON
    quiet[_OFLAG] = 0
    quiet[_LFLAG] = termios.ICANON | termios.IEXTEN if lines else 0
    termios.tcsetattr(slave, termios.TCSANOW, quiet)
    return lnext, eof


def _by_a_child(do: Callable[[], bytes]) -> bytes:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with uninterrupted():  # the target is not to run before the child has done it
        child = os.fork()
        if not child:
            _in_the_child(do, writer)
        os.close(writer)
        with os.fdopen(reader, "rb") as answer:
            data = answer.read()
        if os.waitpid(child, 0)[1]:
            raise KernelError(errno.EIO, "taking what is unread in a pseudo terminal")
    return data


def _in_the_child(do: Callable[[], bytes], writer: int) -> None:
    """Do it, and end."""
    status = 1
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        os.setsid()
        data = memoryview(do())
        while data:
            data = data[os.write(writer, data) :]
        status = 0
    finally:
        os._exit(status)
