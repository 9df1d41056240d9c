# SPDX-License-Identifier: Apache-2.0
"""What was typed into a pseudo terminal and not read: tty-data.img.

Whole lines, and what is raw, show; they cannot be peeked at, and are refused. Half a line does not
show at all while the terminal keeps lines together (ICANON): only while it is raw for a moment, and
then it has to be read and typed anew, or it would count as entered (n_tty_set_termios, n_tty.c).
Everybody who could read it stands still meanwhile. A child does it: should we be killed, it comes
to its end all the same.
"""

import errno
import fcntl
import os
import select
import termios
from collections.abc import Callable
from functools import partial
from typing import Any

from ckpt.errors import KernelError
from ckpt.files.sockopts import doing

TIOCGPTPEER = 0x5441
PEER_FLAGS = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK
_IFLAG, _LFLAG, _CC = 0, 3, 6
_MOST = 4096  # N_TTY_BUF_SIZE

Mode = list[Any]
"""What tcgetattr(3) returns."""


def take_half_line(master: int, slave: int) -> bytes:
    """Return what is typed of a line that is not entered yet; it is typed still, afterwards."""
    with doing("look for half a line in a pseudo terminal"):
        settle(slave)
        mode = termios.tcgetattr(slave)
        if not mode[_LFLAG] & termios.ICANON:
            return b""
        return _by_a_child(partial(_retype, master, slave, mode))


def put_back(master: int, slave: int, data: bytes, *, lines: bool) -> None:
    """Type it, as it was read; lines if the terminal keeps them together."""
    termios.tcsetattr(slave, termios.TCSANOW, _quiet(slave, lines=lines))
    os.write(master, data)
    settle(slave)


def settle(slave: int) -> None:
    """See that what was typed has arrived, of which poll(2) takes care (n_tty_poll)."""
    poll = select.poll()
    poll.register(slave, select.POLLIN)
    poll.poll(0)


def _retype(master: int, slave: int, mode: Mode) -> bytes:
    """Read it and type it anew. As it stands there is no line, or it was refused."""
    termios.tcsetattr(slave, termios.TCSANOW, _quiet(slave, lines=False))
    data = os.read(slave, _MOST) if any(fcntl.ioctl(slave, termios.FIONREAD, bytes(4))) else b""
    if data:
        put_back(master, slave, data, lines=True)
    else:
        termios.tcsetattr(slave, termios.TCSANOW, _quiet(slave, lines=True))
    termios.tcsetattr(slave, termios.TCSANOW, mode)
    return data


def _quiet(slave: int, *, lines: bool) -> Mode:
    """Return a mode in which what is typed is taken as it is, and not shown.

    What a master in packet mode is told of, flow control, stays as it is (pty_set_termios, pty.c).
    """
    mode: Mode = termios.tcgetattr(slave)

    flow = {termios.VSTART, termios.VSTOP}
    mode[_IFLAG] &= termios.IXON
    mode[_LFLAG] = termios.ICANON if lines else 0
    mode[_CC] = [char if at in flow else b"\0" for at, char in enumerate(mode[_CC])]
    return mode


def _by_a_child(do: Callable[[], bytes]) -> bytes:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if not child:
        status = 1
        try:
            os.write(writer, do())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        data = answer.read()
    if os.waitpid(child, 0)[1]:
        raise KernelError(errno.EIO, "taking what is typed in a pseudo terminal")
    return data
