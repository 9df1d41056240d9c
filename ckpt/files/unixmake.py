# SPDX-License-Identifier: Apache-2.0
"""Make the unix sockets of an image: all at once, since they are each other's peers.

The order is what makes it simple: listeners first, then the connections that go by their names,
then clients still waiting; datagram sockets are filled before they connect, since a connected one
takes from its peer alone. Options come last: SO_PASSCRED would bind a socket that connects.
"""

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from ckpt.errors import ImageError
from ckpt.files.kind import Restore
from ckpt.files.skqueue import queue_of, send_all
from ckpt.files.sockopts import doing, restore_options
from ckpt.files.unixname import bind, connect, connect_outside
from ckpt.image import pb

ESTABLISHED, CLOSE, LISTEN = 1, 7, 10
"""TCP's states, which unix sockets use too (net/tcp_states.h)."""
EXTERNAL = 1
"""In uflags: the record stands for a socket outside the dump."""

Entry = pb.unix_sk_entry
Made = dict[int, socket.socket]


class _Plan(NamedTuple):
    """The records of an image, by inode; the sockets made so far, by file id; what fills them."""

    entries: dict[int, Entry]
    made: Made
    make: Restore
    fills: list[Callable[[], None]]

    def peer(self, entry: Entry) -> Entry | None:
        """Return the record of the other end, if there is one."""
        return self.entries.get(entry.peer)

    def is_pair(self, entry: Entry) -> bool:
        """Say whether two sockets are connected to each other."""
        peer = self.peer(entry)
        return peer is not None and peer is not entry and peer.peer == entry.ino

    def inside(self) -> list[Entry]:
        """Return the records of sockets that are to be made."""
        return [e for e in self.entries.values() if not e.uflags & EXTERNAL]

    def fill(self, entry: Entry, sender: socket.socket) -> None:
        """Have a queue filled by its other end, when all are there that may travel in it."""
        queue = queue_of(entry.id, self.make)
        self.fills.append(lambda: send_all(sender, queue, self.descriptor))

    def descriptor(self, file_id: int) -> int:
        """Return our descriptor of a file that is in flight."""
        if file_id in self.made:
            return self.made[file_id].fileno()
        is_socket = self.make.entry(file_id).type == pb.FD_UNIXSK
        fd = -1 if is_socket else self.make.make(file_id)
        if fd < 0:
            raise ImageError(f"sk-queues.img: file {file_id} cannot be in flight")
        return fd

    def left(self, *types: int) -> list[Entry]:
        """Return the records still to be made, of these types."""
        return [e for e in self.inside() if e.type in types and e.id not in self.made]


def make_all(make: Restore) -> Made:
    """Return every unix socket of the image by file id. Raises ImageError, KernelError."""
    records = (r.usk for r in make.entries.values() if r.type == pb.FD_UNIXSK)
    plan = _Plan({entry.ino: entry for entry in records}, {}, make, [])
    for entry in plan.inside():
        if entry.peer and plan.peer(entry) is None:
            raise ImageError(f"files.img: unix socket {entry.id}: its peer is not in the image")
    _make_listeners(plan)
    _make_connections(plan)
    _make_datagrams(plan)
    for fill in plan.fills:
        fill()
    _connect_datagrams(plan)
    make.at_end(lambda ok: _let_go(plan))
    for entry in plan.inside():
        sock = plan.made[entry.id]
        restore_options(sock, entry.opts)
        if entry.shutdown:
            with doing("shutdown unix socket"):
                sock.shutdown(entry.shutdown - 1)  # READ, WRITE, BOTH are SHUT_RD .. + 1
    return plan.made


def _let_go(plan: _Plan) -> None:
    """Close those that nobody has but who receives them."""
    for file_id, sock in plan.made.items():
        with suppress(OSError):
            sock.setblocking(not plan.make.entry(file_id).usk.flags & os.O_NONBLOCK)
        sock.close()
    plan.made.clear()


def _socket(entry: Entry) -> socket.socket:
    with doing("socket AF_UNIX"):
        return socket.socket(socket.AF_UNIX, entry.type)


def _listener(plan: _Plan, entry: Entry, backlog: int) -> socket.socket:
    sock = _socket(entry)
    bind(sock, entry, plan.make)
    with doing("listen on a unix socket"):
        sock.listen(backlog)
    return sock


def _make_listeners(plan: _Plan) -> None:
    for entry in plan.inside():
        if entry.state == LISTEN:
            plan.made[entry.id] = _listener(plan, entry, entry.backlog)


# --- streams and sequences of packets


def _make_connections(plan: _Plan) -> None:
    for entry in plan.left(socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        if entry.id in plan.made or _waits(plan, entry):
            continue
        if plan.is_pair(entry):
            _make_pair(plan, entry)
        elif entry.state == ESTABLISHED:
            _make_widow(plan, entry)
        else:
            plan.made[entry.id] = _socket(entry)
            bind(plan.made[entry.id], entry, plan.make)
    waiting = plan.left(socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
    for entry in sorted(waiting, key=partial(_turn, plan)):
        _make_waiting(plan, entry)


def _waits(plan: _Plan, entry: Entry) -> bool:
    """Say whether a client is not accepted yet: its peer is the listener itself."""
    peer = plan.peer(entry)
    return peer is not None and peer.state == LISTEN and not peer.uflags & EXTERNAL


def _make_pair(plan: _Plan, entry: Entry) -> None:
    peer = plan.peer(entry)
    assert peer is not None
    if peer.name and (not entry.name or _shares_name(plan, peer)):
        entry, peer = peer, entry
    server, client = _connection(plan, entry, peer)
    plan.made.update({entry.id: server, peer.id: client})
    plan.fill(entry, client)
    plan.fill(peer, server)


def _make_widow(plan: _Plan, entry: Entry) -> None:
    """Make a connection whose other end is closed already."""
    server, client = _connection(plan, entry, None)
    plan.fill(entry, client)
    plan.fills.append(client.close)
    plan.made[entry.id] = server


def _connection(
    plan: _Plan, entry: Entry, peer: Entry | None
) -> tuple[socket.socket, socket.socket]:
    """Make a connection; one end with a name was accepted by a listener of that name."""
    if not entry.name:
        with doing("socketpair AF_UNIX"):
            return socket.socketpair(socket.AF_UNIX, entry.type)
    client = _socket(entry)
    if peer is not None:
        bind(client, peer, plan.make)
    if (known := _find_listener(plan, entry)) is not None:
        return _accepted(known, client, entry), client
    with _listener(plan, entry, 1) as listener:
        return _accepted(listener, client, entry), client


def _accepted(listener: socket.socket, client: socket.socket, entry: Entry) -> socket.socket:
    connect(client, listener, entry.name)
    with doing("accept on a unix socket"):
        return listener.accept()[0]


def _same_name(a: Entry, b: Entry) -> bool:
    return (a.type, a.name, a.name_dir) == (b.type, b.name, b.name_dir)


def _find_listener(plan: _Plan, entry: Entry) -> socket.socket | None:
    """Return the listener of the image that accepted this socket, if it is still there."""
    for other in plan.entries.values():
        if other.state == LISTEN and other.id in plan.made and _same_name(other, entry):
            return plan.made[other.id]
    return None


def _shares_name(plan: _Plan, entry: Entry) -> bool:
    return any(e.id != entry.id and _same_name(e, entry) for e in plan.entries.values())


def _turn(plan: _Plan, entry: Entry) -> int:
    """Return how many came to the same listener before it: they are accepted in that order."""
    listener = plan.peer(entry)
    assert listener is not None
    known = list(listener.waiting)
    return known.index(entry.ino) if entry.ino in known else len(known)


def _make_waiting(plan: _Plan, entry: Entry) -> None:
    listener = plan.peer(entry)
    assert listener is not None
    sock = plan.made[entry.id] = _socket(entry)
    bind(sock, entry, plan.make)
    connect(sock, plan.made[listener.id], listener.name)


# --- datagrams


def _make_datagrams(plan: _Plan) -> None:
    entries = plan.left(socket.SOCK_DGRAM)
    for entry in entries:
        if entry.id not in plan.made:
            _make_datagram(plan, entry)


def _connect_datagrams(plan: _Plan) -> None:
    for entry in plan.inside():
        peer = plan.peer(entry)
        if entry.type == socket.SOCK_DGRAM and peer is not None and not plan.is_pair(entry):
            _connect_datagram(plan, entry, peer)


def _make_datagram(plan: _Plan, entry: Entry) -> None:
    """Make it, with its pair if it has one, bound and filled."""
    if plan.is_pair(entry):
        _make_datagram_pair(plan, entry)
    elif entry.state == ESTABLISHED and not entry.name and not entry.peer:
        _make_widow(plan, entry)
    else:
        sock = plan.made[entry.id] = _socket(entry)
        bind(sock, entry, plan.make)
        _fill(sock, entry, plan)


def _make_datagram_pair(plan: _Plan, entry: Entry) -> None:
    peer = plan.peer(entry)
    assert peer is not None
    with doing("socketpair AF_UNIX"):
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    plan.made.update({entry.id: one, peer.id: other})
    bind(one, entry, plan.make)
    bind(other, peer, plan.make)
    plan.fill(entry, other)
    plan.fill(peer, one)


def _fill(sock: socket.socket, entry: Entry, plan: _Plan) -> None:
    """Send it what was queued, from nobody: the image does not know the senders."""
    if not queue_of(entry.id, plan.make):
        return
    if not entry.name:
        raise ImageError(f"sk-queues.img: nobody can have sent to unix socket {entry.id}")
    sender = _socket(entry)
    connect(sender, sock, entry.name)
    plan.fill(entry, sender)
    plan.fills.append(sender.close)


def _connect_datagram(plan: _Plan, entry: Entry, peer: Entry) -> None:
    sock = plan.made[entry.id]
    if peer.uflags & EXTERNAL:
        connect_outside(sock, peer)
    else:
        connect(sock, plan.made[peer.id], peer.name)
