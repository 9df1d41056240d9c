# SPDX-License-Identifier: Apache-2.0
"""sk-queues.img: what lies in a socket's receive queue, read without consuming any of it.

Facts that bite (unix(7) and net/unix/af_unix.c, net/core/datagram.c):

- SO_PEEK_OFF makes successive MSG_PEEKs walk on through the queue: bytes of a stream, packets of
  the rest. A packet longer than the buffer is marked MSG_TRUNC and its rest comes with the next
  peek. The offset belongs to the socket, so the target's own is put back.
- An empty packet is given to one walk only, for the kernel marks it as peeked: a second dump of
  the same queue misses it. Without an offset the first packet is always given, even an empty one.
- At the end of a sequence of packets that was shut down, a read gives b"" for ever.
- A peek gives copies of the descriptors that travel in a packet, ours to close. Of a stream, it
  gives all up to the end of the message that they were sent with.
- A read takes a pending error away (ECONNRESET from a peer that closed without reading): a stream
  tells its length beforehand, so that the end is not read; of datagrams the error is lost.
- While senders are told (`senders`), a peek of a stream ends where the sender changes.
"""

import errno
import fcntl
import os
import select
import socket
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import NamedTuple

from ckpt.errors import ImageError, Unsupported
from ckpt.files import senders
from ckpt.files.kind import Dump, OpenFile, Restore
from ckpt.files.senders import Control, Sender
from ckpt.files.sockopts import SO_SNDBUF, SO_SNDBUFFORCE, failed, set_buffer
from ckpt.image import pb
from ckpt.kernel import files

_SO_PEEK_OFF = 42
_SIOCINQ = 0x541B
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
_SEND = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_CHUNK = 1 << 18
_RIGHTS, _PIDFD = socket.SCM_RIGHTS, 4
_MOST_FILES = 253  # SCM_MAX_FD
_CONTROL = socket.CMSG_SPACE(4 * _MOST_FILES) + socket.CMSG_SPACE(4)
_SHUT_READ = 1
_ROOMY = 64 << 20


class Packet(NamedTuple):
    """A packet, or a piece of a stream, the files that travel with it, and who sent it.

    At dump the files are descriptors of ours, at restore the image's file ids.
    """

    data: bytes
    files: tuple[int, ...] = ()
    sender: Sender | None = None


class _Peeked(NamedTuple):
    """What one peek gives, and whether more of the packet follows."""

    data: bytes
    files: tuple[int, ...]
    sender: Sender | None
    truncated: bool


def packets(sock: socket.socket, name: str, shutdown: int = 0) -> list[Packet]:
    """Peek at all that is queued; of a stream, a piece ends where descriptors travel.

    name says whose it is in a refusal; shutdown has bit 1 if nothing more can come. Who sent it is
    known if the socket is told (SO_PASSCRED). Raises Unsupported, KernelError.
    """
    walk = _stream(sock, name) if sock.type == socket.SOCK_STREAM else None
    found: list[Packet] = []
    try:
        with _offset_kept(sock):
            for one in walk or _packets(sock, name, bool(shutdown & _SHUT_READ)):
                found.append(one)
    except BaseException:
        for one in found:
            _close(one.files)
        raise
    return found


def _stream(sock: socket.socket, name: str) -> Iterator[Packet]:
    left = int.from_bytes(fcntl.ioctl(sock, _SIOCINQ, bytes(4)), "little")
    plain: list[bytes] = []
    sender: Sender | None = None
    at = 0
    while at < left and (got := _peek_at(sock, at, _CHUNK, name)) and got.data:
        before = len(got.data)
        if got.files:
            before = _without(sock, at, len(got.data))
        at += len(got.data)
        if got.sender != sender:
            yield from _joined(plain, sender)
        sender = got.sender
        plain.append(got.data[:before])
        if got.files:
            yield from _joined(plain, sender)
            yield Packet(got.data[before:], got.files, sender)
    yield from _joined(plain, sender)


def _joined(pieces: list[bytes], sender: Sender | None) -> Iterator[Packet]:
    """Make one of pieces, which are taken."""
    if any(pieces):
        yield Packet(b"".join(pieces), (), sender)
    pieces.clear()


def _peek_at(sock: socket.socket, at: int, size: int, name: str) -> _Peeked | None:
    sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, at)
    return _peek(sock, name, size)


def _without(sock: socket.socket, at: int, size: int) -> int:
    """Return how many bytes, of size, are from messages before the last.

    There is no room for the last byte, and the kernel gives a message whole or not at all.
    """
    sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, at)
    with files.one_byte_short(size) as room:
        try:
            return sock.recv_into(room, size, _PEEK)
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            return 0


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _packets(sock: socket.socket, name: str, shut: bool) -> Iterator[Packet]:
    """Yield packets; if shut, b"" is the end and no packet."""
    first = _peek(sock, name)
    if first is None or (shut and not first.data and not first.files):
        return
    if not first.data:
        # The walk leaves it out: it is marked as peeked by now.
        yield Packet(b"", first.files, first.sender)
    else:
        _close(first.files)
    sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
    parts: list[bytes] = []
    while (got := _peek(sock, name)) is not None:
        if shut and not got.data and not parts and not got.files:
            return
        parts.append(got.data)
        if got.truncated:
            _close(got.files)  # they come with each part
        else:
            yield Packet(b"".join(parts), got.files, got.sender)
            parts.clear()


def _peek(sock: socket.socket, name: str, size: int = _CHUNK) -> _Peeked | None:
    """Return what the next peek gives; None at the end."""
    room = _CONTROL + senders.room(sock) if sock.family == socket.AF_UNIX else 0
    try:
        data, control, flags, _ = sock.recvmsg(size, room, _PEEK)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        return _peek(sock, name, size)
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.EINVAL):  # never connected: nothing to read
            return None
        raise failed(error, f"peek at the queue of {name}") from error
    fds, pidfds = _descriptors(control)
    _close(fd for fd in pidfds if fd >= 0)
    what = "more file descriptors than we may have" if flags & socket.MSG_CTRUNC else ""
    what = what or ("a pidfd of a sender (SO_PASSPIDFD)" if pidfds else senders.hindrance(control))
    if what:
        _close(fds)
        _refuse(name, what)
    return _Peeked(data, fds, senders.sender(control), bool(flags & socket.MSG_TRUNC))


def _descriptors(control: list[Control]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the descriptors that came along, and those that are pidfds of the sender."""
    found: dict[int, array[int]] = {_RIGHTS: array("i"), _PIDFD: array("i")}
    for _, kind, value in control:
        if kind in found:
            found[kind].frombytes(value[: len(value) // 4 * 4])
    return tuple(found[_RIGHTS]), tuple(found[_PIDFD])


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


def first_carries(sock: socket.socket, name: str) -> tuple[int, ...]:
    """Return copies of the descriptors that travel in the first packet, for the caller to close.

    For a running target: looks at one packet only, and not at all if the target itself walks its
    queue (its offset would move). Raises Unsupported for what cannot be dumped.
    """
    if sock.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF) >= 0:
        return ()
    got = _peek(sock, name)
    return got.files if got else ()


def queued(file: OpenFile, sock: socket.socket, shutdown: int, out: Dump) -> list[Packet]:
    """Return the queue of a socket of a frozen target, read once a dump."""
    return out.memo_now(("queue", file.stat.st_ino), lambda: _read_queue(file, sock, shutdown, out))


def _read_queue(file: OpenFile, sock: socket.socket, shutdown: int, out: Dump) -> list[Packet]:
    if file.number < 0:
        return _read_in_flight(file, sock)
    if not _is_readable(sock):
        return []
    offset = sock.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)
    with (
        out.changed(file, socket.SOL_SOCKET, _SO_PEEK_OFF, offset),
        senders.told(file, sock, out),
    ):
        return packets(sock, file.name, shutdown)


def _is_readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return any(event & select.POLLIN for _, event in poll.poll(0))


def _read_in_flight(file: OpenFile, sock: socket.socket) -> list[Packet]:
    """Return the queue of a socket that is in flight itself.

    Nobody could set its options right if we died, so it has to do without an offset, and with the
    senders that its reader would be told of now.
    """
    got = _peek(sock, file.name, _ROOMY)
    if got is None or not (got.data or got.files):
        return []
    left = int.from_bytes(fcntl.ioctl(sock, _SIOCINQ, bytes(4)), "little")
    if left != len(got.data) or sock.type != socket.SOCK_STREAM or got.files:
        _close(got.files)
        _refuse(file.name, "a socket with packets in its own queue")
    return [Packet(got.data, (), got.sender)]


def dump_queue(file: OpenFile, sock: socket.socket, shutdown: int, out: Dump) -> None:
    """Write the queue of a socket as packets of its file."""
    packets = queued(file, sock, shutdown, out)
    if packets:
        out.passing()
    for packet in packets:
        entry = pb.sk_packet_entry(id_for=file.id, length=len(packet.data))
        if packet.files:
            entry.scm.add(type=_RIGHTS, rights=map(out.carried_id, packet.files))
        if packet.sender:
            entry.sender.CopyFrom(senders.saved(packet.sender))
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
            packet = Packet(data, tuple(_rights(entry)), senders.read(entry))
            queues.setdefault(entry.id_for, []).append(packet)
    return queues


def _rights(entry: pb.sk_packet_entry) -> Iterator[int]:
    for message in entry.scm:
        if message.type != _RIGHTS:
            raise Unsupported(f"sk-queues.img: a control message of type {message.type}")
        yield from message.rights


def send_all(
    sender: socket.socket, queue: list[Packet], descriptor: Callable[[int], int] = int
) -> None:
    """Send packets to the connected receiver. Raises ImageError, KernelError (EAGAIN: no room).

    descriptor returns one of ours for the id of a file that travels. The sender's buffer is made
    roomy for it: the same bytes may be charged more than they were. Its right size is to be set
    afterwards.
    """
    if not queue:
        return
    set_buffer(sender, SO_SNDBUF, SO_SNDBUFFORCE, _ROOMY)
    for one, row in groupby(queue, lambda packet: packet.sender):
        with senders.present(one):
            for packet in row:
                _send_for(sender, packet, descriptor)


def _send_for(sock: socket.socket, packet: Packet, descriptor: Callable[[int], int]) -> None:
    if len(packet.files) > _MOST_FILES:
        raise ImageError(f"sk-queues.img: {len(packet.files)} files in one packet")
    try:
        _send(sock, packet, [descriptor(one) for one in packet.files])
    except OSError as error:
        raise failed(error, "send to fill a socket's queue") from error


def _send(sock: socket.socket, packet: Packet, fds: list[int]) -> None:
    sender = senders.claim(packet.sender)
    rights = [(socket.SOL_SOCKET, _RIGHTS, array("i", fds).tobytes())] if fds else []
    sent = sock.sendmsg([packet.data], rights + sender, _SEND)
    while sent < len(packet.data):
        sent += sock.sendmsg([packet.data[sent:]], sender, _SEND)
