# SPDX-License-Identifier: Apache-2.0
"""Established TCP connections, read and made again in the kernel's repair mode.

tcp-stream-INODE.img holds the sequence numbers, the window, what was negotiated, and the bytes of
both queues. Facts that bite (TCP_REPAIR in net/ipv4/tcp.c; LWN 495304):

- A socket in repair sends nothing when it connects or closes; its queues are peeked and filled by
  TCP_REPAIR_QUEUE, and their sequence numbers are those of the queue's end.
- Leaving repair clears SO_REUSEADDR, so that is set again. -1 leaves without a window probe.
- An end (FIN) counts as one in the sequence. Ours is said under repair by shutdown(2), unless there
  is something to send before it. The peer's, which it may never say again, we say in its name, as
  we acknowledge ours if it had (tcpsegment); whatever it says to that is as good as the first time.
- A socket whose connection is over shows its old port, but others may have that. An error that it
  has not told yet (ECONNRESET) could only be read by taking it away: it is lost.
- What was sent but not acknowledged is filled in under repair, and sent again in its time; what
  was never sent is simply sent after repair. Nothing may go out before both ends exist, in case
  both are restored: repair ends when every file is in place.

Until the restore somebody must keep the peer's packets away (a firewall rule), or they are
answered by a reset. That is not done here.
"""

import _socket
import errno
import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from ckpt.errors import KernelError, Unsupported
from ckpt.files.kind import Dump, NotNow, OpenFile, Restore
from ckpt.files.sockopts import (
    SO_REUSEADDR,
    SO_SNDBUF,
    SO_SNDBUFFORCE,
    SOL_SOCKET,
    doing,
    restore_buffers,
    set_buffer,
    set_option,
)
from ckpt.image import pb
from ckpt.kernel import tcpsegment
from ckpt.options import DumpOptions

TCP = socket.IPPROTO_TCP
ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE, CLOSE_WAIT, LAST_ACK, LISTEN, CLOSING = (
    *(1, 4, 5, 7, 8, 9, 10, 11),
)
"""States (net/tcp_states.h)."""
SHUT = {FIN_WAIT1: 2, FIN_WAIT2: 2, CLOSE_WAIT: 1, LAST_ACK: 3, CLOSING: 3}
"""The halves shut (1 read, 2 write) in FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING."""

_MAXSEG, _INFO, _REPAIR, _QUEUE, _SEQ, _OPTIONS, _TIMESTAMP, _WINDOW = 2, 11, 19, 20, 21, 22, 24, 29
_RECEIVE, _SEND = 1, 2
_SIOCINQ, _SIOCOUTQ, _SIOCOUTQNSD = 0x541B, 0x5411, 0x894B
# struct tcp_info: state .. options, window scales; u32 fields from 8 on
_INFO_HEAD = struct.Struct("=6BB")
_WAITING = struct.Struct("=II")
_WINDOW_FIELDS = ("snd_wl1", "snd_wnd", "max_window", "rcv_wnd", "rcv_wup")
_WINDOW_LAYOUT = struct.Struct("=5I")
_HAS_TIMESTAMPS, _HAS_SACK, _HAS_WSCALE = 1, 2, 4
_OPT_MSS, _OPT_WINDOW, _OPT_SACK, _OPT_TIMESTAMP = 2, 3, 4, 8
_CHUNK = 32 << 10
_GONE = (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN)
_ROOMY = 64 << 20
_SHUT_READ, _SHUT_WRITE = 1, 2
_PATIENCE, _PAUSE = 2.0, 0.001


def tcp_info(sock: _socket.socket) -> tuple[int, int, int]:
    """Return the state and, of a listener, the clients waiting and the backlog (TCP_INFO)."""
    info = sock.getsockopt(TCP, _INFO, 104)
    # tcpi_unacked and tcpi_sacked stand for these in a listener: tcp_get_info().
    return info[0], *_WAITING.unpack_from(info, 24)


def is_connection(sock: socket.socket) -> bool:
    """Say whether this is TCP, connected or on the way to or from it."""
    return sock.type == socket.SOCK_STREAM and tcp_info(sock)[0] not in (CLOSE, LISTEN)


def is_over(sock: _socket.socket) -> bool:
    """Say whether this was connected once: reads and writes are at their end."""
    if sock.type != socket.SOCK_STREAM or tcp_info(sock)[0] != CLOSE:
        return False
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return any(event & select.POLLRDHUP for _, event in poll.poll(0))


def check_over(file: OpenFile, sock: socket.socket) -> None:
    """Refuse one that is over, but not read to its end: there is no such state to restore."""
    if _ioctl(sock, _SIOCINQ):
        raise NotNow(
            f"{file.name}: unread data of a TCP connection that is over",
            hint="try again when it has been read",
        )


def check(file: OpenFile, state: int, options: DumpOptions) -> None:
    """Refuse a connection that is not asked for, or that is not one yet."""
    if options.tcp_close:
        return
    if not options.tcp_established:
        raise Unsupported(f"{file.name}: connected TCP socket", hint="use --tcp-established")
    if state not in (ESTABLISHED, *SHUT):
        raise NotNow(
            f"{file.name}: TCP connection that is being opened (state {state})",
            hint="try again when it is established",
        )


# --- dump


def dump(file: OpenFile, sock: socket.socket, entry: pb.inet_sk_entry, out: Dump) -> None:
    """Write a connection's stream, and leave the socket as it was.

    It goes into repair again only when the target is about to be killed: then it must die without
    a word to its peer, but whatever kills us before, the target's connection works.
    """
    with _under_repair(sock, file, out):
        incoming, outgoing = _queue(sock, _RECEIVE), _queue(sock, _SEND)
        with doing(f"read the TCP state of {file.name}"):
            stream = _stream(sock, incoming, outgoing)
    out.later(lambda: _write(stream, incoming[0] + outgoing[0], entry.ino, out))
    if not (out.options.leave_running or out.options.leave_stopped):
        twin = socket.socket(fileno=os.dup(sock.fileno()))
        out.before_kill(lambda: _silence(twin, file, out))


def _write(stream: pb.tcp_stream_entry, data: bytes, ino: int, out: Dump) -> None:
    with out.image.writer("tcp-stream", ino) as writer:
        writer.append(stream, data)


def _silence(sock: socket.socket, file: OpenFile, out: Dump) -> None:
    out.promise(file, TCP, _REPAIR, -1)
    with sock, doing(f"TCP_REPAIR of {file.name}"):
        sock.setsockopt(TCP, _REPAIR, 1)


@contextmanager
def _under_repair(sock: socket.socket, file: OpenFile, out: Dump) -> Iterator[None]:
    reuse = sock.getsockopt(SOL_SOCKET, SO_REUSEADDR)
    with (
        out.changed(file, TCP, _REPAIR, -1),
        out.changed(file, SOL_SOCKET, SO_REUSEADDR, reuse),
    ):
        with doing(f"TCP_REPAIR of {file.name}"):
            sock.setsockopt(TCP, _REPAIR, 1)
        try:
            yield
        finally:
            sock.setsockopt(TCP, _REPAIR, -1)
            sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, reuse)


def _queue(sock: socket.socket, queue: int) -> tuple[bytes, int]:
    """Return the bytes of a queue and the sequence number after them."""
    with doing("peek at a TCP queue"):
        sock.setsockopt(TCP, _QUEUE, queue)
        end = sock.getsockopt(TCP, _SEQ) & 0xFFFFFFFF
        size = _ioctl(sock, _SIOCINQ if queue == _RECEIVE else _SIOCOUTQ)
        if not size:
            return b"", end
        return sock.recv(size, socket.MSG_PEEK | socket.MSG_DONTWAIT), end


def _ioctl(sock: socket.socket, request: int) -> int:
    return int.from_bytes(fcntl.ioctl(sock, request, bytes(4)), "little")


def _stream(
    sock: socket.socket, incoming: tuple[bytes, int], outgoing: tuple[bytes, int]
) -> pb.tcp_stream_entry:
    *_, options, scales = _INFO_HEAD.unpack_from(sock.getsockopt(TCP, _INFO, 104))
    window: dict[str, Any] = dict(
        zip(_WINDOW_FIELDS, _WINDOW_LAYOUT.unpack(sock.getsockopt(TCP, _WINDOW, 20)), strict=True)
    )
    return pb.tcp_stream_entry(
        inq_len=len(incoming[0]),
        inq_seq=incoming[1],
        outq_len=len(outgoing[0]),
        outq_seq=outgoing[1],
        unsq_len=_unsent(sock),
        opt_mask=options & (_HAS_TIMESTAMPS | _HAS_SACK | _HAS_WSCALE),
        snd_wscale=scales & 15,
        rcv_wscale=scales >> 4,
        mss_clamp=sock.getsockopt(TCP, _MAXSEG),
        timestamp=sock.getsockopt(TCP, _TIMESTAMP) & 0xFFFFFFFF,
        **window,
    )


def _unsent(sock: socket.socket) -> int:
    """Return how many bytes were never sent; our end does not count, if it was not either."""
    unsent = _ioctl(sock, _SIOCOUTQNSD)
    return max(0, unsent - 1) if SHUT.get(tcp_info(sock)[0], 0) & _SHUT_WRITE else unsent


# --- restore


class _Connection(NamedTuple):
    """What a connection is to be: its record, where it is, and its stream."""

    entry: pb.inet_sk_entry
    ends: tuple[Any, Any]
    stream: pb.tcp_stream_entry
    outgoing: bytes

    @property
    def sent(self) -> int:
        """How much of the outgoing bytes was sent."""
        return len(self.outgoing) - min(self.stream.unsq_len, len(self.outgoing))

    @property
    def our_end(self) -> bool:
        """Whether we have said that nothing more will come."""
        return bool(SHUT.get(self.entry.state, 0) & _SHUT_WRITE)

    @property
    def ends_early(self) -> bool:
        """Whether ours can be said under repair: all data before it was sent, and none waits."""
        return self.our_end and self.entry.state != LAST_ACK and self.sent == len(self.outgoing)

    @property
    def peers_end(self) -> bool:
        """Whether the peer has."""
        return bool(SHUT.get(self.entry.state, 0) & _SHUT_READ)

    def say_for_peer(self, flags: int) -> None:
        """Have the peer's next segment come, with what it has acknowledged; or has our end, too."""
        stream = self.stream
        unacknowledged = stream.outq_len + self.our_end if flags & tcpsegment.FIN else 0
        segment = tcpsegment.Segment(
            flags | tcpsegment.ACK,
            stream.inq_seq - (1 if flags & tcpsegment.FIN else 0),
            stream.outq_seq - unacknowledged,
            stream.snd_wnd >> stream.snd_wscale,
        )
        here, there = (tcpsegment.End(*end[:2]) for end in self.ends)
        tcpsegment.send(there, here, segment)


def restore(
    sock: socket.socket, entry: pb.inet_sk_entry, ends: tuple[Any, Any], make: Restore
) -> None:
    """Make the connection between two ends; it comes to life when the restore is done.

    Raises Unsupported for one that was being opened, ImageError, KernelError.
    """
    if entry.state not in (ESTABLISHED, *SHUT):
        raise Unsupported(f"TCP connection {entry.id}: state {entry.state} is not restored")
    [(stream, data)] = make.image.records("tcp-stream", entry.ino)
    incoming, outgoing = data[: stream.inq_len], data[stream.inq_len :]
    one = _Connection(entry, ends, stream, outgoing)
    with doing(f"restore the TCP connection from {ends[0][:2]} to {ends[1][:2]}"):
        sock.setsockopt(TCP, _REPAIR, 1)
        _set_sequence(sock, _RECEIVE, stream.inq_seq - stream.inq_len - one.peers_end)
        _set_sequence(sock, _SEND, stream.outq_seq - stream.outq_len - one.our_end)
        sock.bind(ends[0])
        sock.connect(ends[1])
        sock.setsockopt(TCP, _OPTIONS, _negotiated(stream))
        if stream.opt_mask & _HAS_TIMESTAMPS:
            sock.setsockopt(TCP, _TIMESTAMP, _signed(stream.timestamp))
        # The same bytes may be charged more than they were; _revive puts the right size.
        set_buffer(sock, SO_SNDBUF, SO_SNDBUFFORCE, _ROOMY)
        _fill(sock, _RECEIVE, incoming)
        _fill(sock, _SEND, outgoing[: one.sent])
        if stream.HasField("snd_wnd"):
            sock.setsockopt(TCP, _WINDOW, _window(one))
        if one.ends_early:
            sock.shutdown(socket.SHUT_WR)
    twin = socket.socket(fileno=os.dup(sock.fileno()))
    make.at_end(lambda ok: _revive(twin, one, ok=ok))


def _window(one: _Connection) -> bytes:
    """Return a struct tcp_repair_window; the peer's end is yet to come."""
    values = {field: getattr(one.stream, field) for field in _WINDOW_FIELDS}
    if one.peers_end and values["rcv_wup"] == one.stream.inq_seq:
        values["rcv_wup"] = one.stream.inq_seq - 1 & 0xFFFFFFFF
    return _WINDOW_LAYOUT.pack(*values.values())


def _signed(value: int) -> int:
    """Return 32 bits as setsockopt of the socket module takes them."""
    return (value & 0xFFFFFFFF) - ((value & 0x80000000) << 1)


def _set_sequence(sock: socket.socket, queue: int, start: int) -> None:
    sock.setsockopt(TCP, _QUEUE, queue)
    sock.setsockopt(TCP, _SEQ, _signed(start))


def _negotiated(stream: pb.tcp_stream_entry) -> bytes:
    """Return the struct tcp_repair_opt array of what the two ends agreed on."""
    options = [(_OPT_MSS, stream.mss_clamp)]
    if stream.opt_mask & _HAS_SACK:
        options.append((_OPT_SACK, 0))
    if stream.opt_mask & _HAS_WSCALE:
        options.append((_OPT_WINDOW, stream.snd_wscale | stream.rcv_wscale << 16))
    if stream.opt_mask & _HAS_TIMESTAMPS:
        options.append((_OPT_TIMESTAMP, 0))
    return b"".join(struct.pack("=II", *option) for option in options)


def _fill(sock: socket.socket, queue: int, data: bytes) -> None:
    sock.setsockopt(TCP, _QUEUE, queue)
    view = memoryview(data)
    while view:
        # In chunks: the kernel puts what one call brings into one buffer.
        view = view[sock.send(view[:_CHUNK], socket.MSG_DONTWAIT) :]


def _revive(sock: socket.socket, one: _Connection, *, ok: bool) -> None:
    """End repair and send what never was; on failure close it in repair, without a word."""
    with sock:
        if not ok:
            return
        set_option(sock, TCP, _REPAIR, 0)
        set_option(sock, SOL_SOCKET, SO_REUSEADDR, int(one.entry.opts.reuseaddr))
        with doing("send to a restored TCP connection"):
            _go_on(sock, one)
        restore_buffers(sock, one.entry.opts)


def _go_on(sock: socket.socket, one: _Connection) -> None:
    """Send what never was; if the peer has gone meanwhile, its program is to find out itself."""
    sent = one.sent
    try:
        while sent < len(one.outgoing):
            sent += sock.send(one.outgoing[sent:], socket.MSG_DONTWAIT)
        _half_close(sock, one)
    except OSError as error:
        if error.errno not in _GONE:
            raise


def _half_close(sock: socket.socket, one: _Connection) -> None:
    """Have either end said that was."""
    if one.peers_end:
        one.say_for_peer(tcpsegment.FIN)
        _leave(sock, ESTABLISHED, FIN_WAIT1, FIN_WAIT2)
    if one.our_end and not one.ends_early:
        sock.shutdown(socket.SHUT_WR)
    if one.entry.state == FIN_WAIT2:
        one.say_for_peer(0)
        _leave(sock, FIN_WAIT1)


def _leave(sock: socket.socket, *states: int) -> None:
    """Wait until a connection is in none of these states."""
    deadline = time.monotonic() + _PATIENCE
    while tcp_info(sock)[0] in states:
        if time.monotonic() > deadline:
            raise KernelError(
                errno.ETIMEDOUT,
                "closing one half of a restored TCP connection",
                hint="does a firewall drop what comes from the other end?",
            )
        time.sleep(_PAUSE)
