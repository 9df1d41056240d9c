# SPDX-License-Identifier: Apache-2.0
"""Who sent what lies in the queue of a unix socket: credentials in flight (SCM_CREDENTIALS).

Facts that bite (unix(7); net/unix/af_unix.c, include/net/scm.h):

- A message has a sender if that was claimed, or if either end had SO_PASSCRED, or was not accepted
  yet. Only a reader who has SO_PASSCRED is told: so it is set for the look.
- Who has it is told of a message without a sender, too: pid 0, and the ids that stand for none.
- The pid is told after the process is gone. One of a namespace that the reader does not see is
  told as 0, and nobody here could claim it.
- Root may claim any ids, but only the pid of a process that is there: where there is none a
  stand-in has it for as long as it takes to send. So it is all the same whether a sender is
  restored with the socket, runs elsewhere, or ended long ago.
- A pidfd of the sender (SO_PASSPIDFD) would be the stand-in's, and a label (SO_PASSSEC) ours.
"""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

from ckpt.errors import ImageError
from ckpt.files.kind import Dump, OpenFile
from ckpt.files.sockopts import SO_PASSCRED, SO_PASSSEC, SOL_SOCKET, set_option
from ckpt.image import pb
from ckpt.kernel import procfs
from ckpt.kernel.standin import stand_in

Control = tuple[int, int, bytes]
"""Level, type and content of a control message."""

_CREDENTIALS = struct.Struct("@iII")
_SCM_SECURITY = 3
_LABEL = 4096  # more than any security module's


class Sender(NamedTuple):
    """Who sent a message, as the reader is told."""

    pid: int
    uid: int
    gid: int


@contextmanager
def told(file: OpenFile, sock: socket.socket, out: Dump) -> Iterator[None]:
    """Have the senders told while the block lasts, of a socket of a target that stands still."""
    if sock.getsockopt(SOL_SOCKET, SO_PASSCRED):
        yield
        return
    with out.changed(file, SOL_SOCKET, SO_PASSCRED, 0):
        set_option(sock, SOL_SOCKET, SO_PASSCRED, 1)
        try:
            yield
        finally:
            set_option(sock, SOL_SOCKET, SO_PASSCRED, 0)


def room(sock: socket.socket) -> int:
    """Return how many bytes of control messages tell of the sender."""
    if sock.family != socket.AF_UNIX:
        return 0
    label = sock.getsockopt(SOL_SOCKET, SO_PASSSEC) and socket.CMSG_SPACE(_LABEL)
    return socket.CMSG_SPACE(_CREDENTIALS.size) + label


def sender(control: list[Control]) -> Sender | None:
    """Return who sent it; None if nobody is known."""
    for _, kind, value in control:
        if kind == socket.SCM_CREDENTIALS:
            found = Sender(*_CREDENTIALS.unpack(value[: _CREDENTIALS.size]))
            return None if found == _nobody() else found
    return None


def hindrance(control: list[Control]) -> str:
    """Name what tells of the sender and cannot be sent again; "" if there is no such thing."""
    if any(kind == _SCM_SECURITY for _, kind, _ in control):
        return "the security label of a sender (SO_PASSSEC)"
    found = sender(control)
    return "credentials of another pid namespace" if found and not found.pid else ""


@cache
def _nobody() -> Sender:
    """Return what is told where the kernel knows of no sender."""
    return Sender(
        0, *(int(procfs.read_path(f"/proc/sys/kernel/overflow{which}id")) for which in "ug")
    )


def saved(one: Sender) -> pb.sk_sender_entry:
    """Return the record of a sender."""
    return pb.sk_sender_entry(pid=one.pid, uid=one.uid, gid=one.gid)


# --- restore


def read(entry: pb.sk_packet_entry) -> Sender | None:
    """Return the sender of a record's packet. Raises ImageError."""
    if not entry.HasField("sender"):
        return None
    found = Sender(entry.sender.pid, entry.sender.uid, entry.sender.gid)
    if found.pid <= 0:
        raise ImageError(f"sk-queues.img: a sender of pid {found.pid}")
    return found


@contextmanager
def present(one: Sender | None) -> Iterator[None]:
    """Have a process with the pid of a sender while the block sends for it.

    One for all messages in a row: a stream joins those of one process, and only those.
    """
    if one is None or _is_there(one.pid):
        yield
        return
    with stand_in(one.pid):
        yield


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def claim(one: Sender | None) -> list[Control]:
    """Return the control message that names a sender, if there is one."""
    return [(SOL_SOCKET, socket.SCM_CREDENTIALS, _CREDENTIALS.pack(*one))] if one else []
