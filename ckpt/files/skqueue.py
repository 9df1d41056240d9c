# SPDX-License-Identifier: Apache-2.0
"""sk-queues.img: what lies in a socket's receive queue, read without consuming any of it.

Facts that bite (unix(7) and net/unix/af_unix.c, net/core/datagram.c):

- SO_PEEK_OFF makes successive MSG_PEEKs walk on through the queue: bytes of a stream, packets of
  the rest. A packet longer than the buffer is marked MSG_TRUNC and its rest comes with the next
  peek. The offset belongs to the socket, so the target's own is put back.
- An empty packet is given to one walk only, for the kernel marks it as peeked: a second dump of
  the same queue misses it. Without an offset the first packet is always given, even an empty one.
- At the end of a sequence of packets that was shut down, a read gives b"" for ever.
- A read takes a pending error away (ECONNRESET from a peer that closed without reading): a stream
  tells its length beforehand, so that the end is not read; of datagrams the error is lost.
"""

import errno
import fcntl
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from ckpt.errors import Unsupported
from ckpt.files.kind import Dump, OpenFile, Restore
from ckpt.files.sockopts import SO_PASSCRED, SO_SNDBUF, SO_SNDBUFFORCE, failed, set_buffer
from ckpt.image import pb

_SO_PEEK_OFF = 42
_SIOCINQ = 0x541B
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT
_SEND = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_CHUNK = 1 << 18
_CREDENTIALS = struct.Struct("@iII")
_SHUT_READ = 1
_ROOMY = 64 << 20


class Packet(NamedTuple):
    """A packet, or a piece of a stream; scm will name descriptors that travel with it."""

    data: bytes
    scm: Sequence[pb.scm_entry] = ()


def packets(sock: socket.socket, name: str, shutdown: int = 0) -> list[Packet]:
    """Peek at all that is queued; a stream is one piece.

    name says whose it is in a refusal; shutdown has bit 1 if nothing more can come. Raises
    Unsupported for descriptors or credentials in flight, KernelError.
    """
    with _offset_kept(sock):
        if sock.type == socket.SOCK_STREAM:
            return _stream(sock, name)
        return [Packet(data) for data in _packets(sock, name, bool(shutdown & _SHUT_READ))]


def _stream(sock: socket.socket, name: str) -> list[Packet]:
    left = int.from_bytes(fcntl.ioctl(sock, _SIOCINQ, bytes(4)), "little")
    sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
    pieces: list[bytes] = []
    while left > 0 and (got := _peek(sock, name)) is not None and got[0]:
        pieces.append(got[0])
        left -= len(got[0])
    return [Packet(b"".join(pieces))] if pieces else []


def _packets(sock: socket.socket, name: str, shut: bool) -> Iterator[bytes]:
    """Yield packets; if shut, b"" is the end and no packet."""
    first = _peek(sock, name)
    if first is None or (shut and not first[0]):
        return
    if not first[0]:
        yield b""  # the walk leaves it out: it is marked as peeked by now
    sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
    parts: list[bytes] = []
    while (got := _peek(sock, name)) is not None:
        data, truncated = got
        if shut and not data and not parts:
            return
        parts.append(data)
        if not truncated:
            yield b"".join(parts)
            parts.clear()


def _peek(sock: socket.socket, name: str) -> tuple[bytes, bool] | None:
    """Return what the next peek gives and whether more of the packet follows; None at the end."""
    # No room for descriptors: the kernel would install copies of them here. MSG_CTRUNC tells.
    credentials = socket.CMSG_SPACE(_CREDENTIALS.size) if _passes_credentials(sock) else 0
    try:
        data, control, flags, _ = sock.recvmsg(_CHUNK, credentials, _PEEK)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        return _peek(sock, name)
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.EINVAL):  # never connected: nothing to read
            return None
        raise failed(error, f"peek at the queue of {name}") from error
    if flags & socket.MSG_CTRUNC:
        _refuse(name, "file descriptors")
    if any(_CREDENTIALS.unpack(value[:12])[0] for _, _, value in control):
        _refuse(name, "credentials")
    return data, bool(flags & socket.MSG_TRUNC)


def _passes_credentials(sock: socket.socket) -> bool:
    family = sock.family in (socket.AF_UNIX, socket.AF_NETLINK)
    return family and bool(sock.getsockopt(socket.SOL_SOCKET, SO_PASSCRED))


def _refuse(name: str, what: str) -> None:
    raise Unsupported(
        f"{name}: {what} in flight in its queue",
        hint="wait until the receiver has read them, then dump again",
    )


@contextmanager
def _offset_kept(sock: socket.socket) -> Iterator[None]:
    """Have no peek offset for a while; the target's own is put back."""
    before = sock.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)
    sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, -1)
    try:
        yield
    finally:
        sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, before)


def check_first(sock: socket.socket, name: str) -> None:
    """Raise Unsupported if the first packet carries what we cannot dump.

    For a running target: looks at one packet only, and not at all if the target itself walks its
    queue (its offset would move).
    """
    if sock.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF) < 0:
        _peek(sock, name)


def dump_queue(file: OpenFile, sock: socket.socket, shutdown: int, out: Dump) -> None:
    """Write the queue of a socket as packets of its file."""
    offset = sock.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)
    with out.changed(file, socket.SOL_SOCKET, _SO_PEEK_OFF, offset):
        queued = packets(sock, file.name, shutdown)
    if queued:
        out.passing()
    for packet in queued:
        entry = pb.sk_packet_entry(id_for=file.id, length=len(packet.data), scm=packet.scm)
        out.writer("sk-queues").append(entry, packet.data)


# --- restore


def queue_of(file_id: int, make: Restore) -> list[Packet]:
    """Return what the image holds for a file's queue; the image is read once."""
    queues: dict[int, list[Packet]] = make.once("sk-queues", lambda: _read(make))
    return queues.get(file_id, [])


def _read(make: Restore) -> dict[int, list[Packet]]:
    queues: dict[int, list[Packet]] = {}
    if make.image.exists("sk-queues"):
        for entry, data in make.image.records("sk-queues"):
            queues.setdefault(entry.id_for, []).append(Packet(data, list(entry.scm)))
    return queues


def send_all(sender: socket.socket, queue: list[Packet]) -> None:
    """Send packets to the connected receiver. Raises Unsupported, KernelError (EAGAIN: no room).

    The sender's buffer is made roomy for it: the same bytes may be charged more than they were.
    Its right size is to be set afterwards.
    """
    if not queue:
        return
    set_buffer(sender, SO_SNDBUF, SO_SNDBUFFORCE, _ROOMY)
    for packet in queue:
        if packet.scm:
            raise Unsupported("sk-queues.img: descriptors in flight are not restored yet")
        try:
            _send(sender, packet.data)
        except OSError as error:
            raise failed(error, "send to fill a socket's queue") from error


def _send(sender: socket.socket, data: bytes) -> None:
    sent = sender.send(data, _SEND)
    while sent < len(data):
        sent += sender.send(data[sent:], _SEND)
