# SPDX-License-Identifier: Apache-2.0
"""What the kernel knows of a socket and no descriptor tells: sock_diag(7) over netlink.

Each call asks in the network namespace the caller is in at that moment; setns(2) first. Reads
nothing but sockets of that namespace, so a socket that was made elsewhere and passed on is not
found (SIOCGSKNS on a copy of it leads to its namespace).

A dozen lines of our own rather than pyroute2, whose import alone takes 170 ms. Layouts and
numbers: linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h, linux/inet_diag.h.
"""

import errno
import socket
import struct
import sys
from collections.abc import Collection, Iterator
from functools import cache
from itertools import count
from typing import NamedTuple

from ckpt.errors import KernelError, NotPermitted
from ckpt.kernel.arch import NR
from ckpt.kernel.glance import Glance

# linux/netlink.h, and SOCK_DIAG_BY_FAMILY of linux/sock_diag.h.
_NETLINK_SOCK_DIAG = 4
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLA_TYPE_MASK = 0x3FFF
_BY_FAMILY = 20
_ALL_STATES = 0xFFFFFFFF
_NO_COOKIE = b"\xff" * 8

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # length, type
# More than one message of a dump: netlink_dump() in net/netlink/af_netlink.c fills 32 KiB at most.
_RECEIVE = 1 << 16
_ANSWER = 1 << 10  # of a single socket

_SO_COOKIE = 57  # asm-generic/socket.h

# linux/unix_diag.h
_UNIX_REQUEST = struct.Struct("=BBHIII8s")  # family, protocol, pad, states, ino, show, cookie
_UNIX_MESSAGE = struct.Struct("=BBBBI8s")  # family, type, state, pad, ino, cookie
_UNIX_NAME, _UNIX_VFS, _UNIX_PEER, _UNIX_ICONS, _UNIX_RQLEN, _, _UNIX_SHUTDOWN = range(7)
_UNIX_SHOW = 0x1F  # name, vfs, peer, icons, rqlen

# linux/packet_diag.h: family, protocol, pad, ino, show, cookie; family, type, protocol, ino,
# cookie; index, version, reserve, copy_thresh, tstamp, flags; index, count, type, size, address
_PACKET_REQUEST, _PACKET_MESSAGE = struct.Struct("=BBHII8s"), struct.Struct("=BBHI8s")
_PACKET_INFO, _PACKET_GROUP = struct.Struct("=6I"), struct.Struct("=IIHH32s")
_PACKET_GROUPS, _PACKET_RX_RING, _PACKET_TX_RING, _PACKET_FANOUT = 1, 2, 3, 4
_PACKET_SHOW = 0xF  # info, groups, rings, fan-out

# linux/inet_diag.h; ports and addresses are in network order.
_INET_REQUEST = struct.Struct("=BBBBI")  # family, protocol, extensions, pad, states
_INET_MESSAGE = struct.Struct("=BBBB48sIIIII")  # family .. id, expires, rqueue, wqueue, uid, inode
_SOCKET_ID = struct.Struct("!2H16s16s4s8s")  # ports, addresses, interface (host order), cookie
_INET_SHUTDOWN, _INET_SKV6ONLY = 8, 11

# An exact look-up of a unix socket walks all of them, at 25 ns each; a dump of all costs 1 to 2 us
# each. So beyond this many look-ups one dump is cheaper, however many sockets there are.
_FEW = 64


class UnixDiag(NamedTuple):
    """A unix socket.

    `type` is a SOCK_ number, `state` one of TCP's (1 established, 7 closed, 10 listening; 2 while
    it waits to be accepted). `peer` is the inode of the other end, 0 for none. `name` is as bound
    or b"": a path with its NUL, or a NUL and an abstract name. `vfs_dev` (major << 20 | minor)
    and `vfs_ino` are of the file it is bound to, 0 for none. `icons` are the inodes of clients
    not yet accepted, in their order. `rqueue` is bytes to read and `wqueue` the memory of what
    is sent but not read (headers too: only 0 is exact); of a listener, clients waiting and the
    backlog. `shutdown` is 1 for the receiving side, plus 2 for the sending side.
    """

    type: int
    state: int
    ino: int
    peer: int
    name: bytes
    vfs_dev: int
    vfs_ino: int
    icons: tuple[int, ...]
    rqueue: int
    wqueue: int
    shutdown: int


class InetDiag(NamedTuple):
    """An internet socket.

    `state` is TCP's (1 established, 7 closed or unconnected UDP, 10 listening); addresses are
    text, all zeros for any; `ifindex` 0 means no device. `rqueue` and `wqueue` are bytes to
    read and bytes not yet acknowledged, where a FIN counts as one; of a TCP listener, connections
    waiting and the backlog; of UDP, memory rather than bytes.
    `shutdown` is as in UnixDiag. `v6only` is shown for IPv6 listeners and closed sockets only.
    """

    family: int
    protocol: int
    state: int
    ino: int
    src: str
    src_port: int
    dst: str
    dst_port: int
    ifindex: int
    rqueue: int
    wqueue: int
    uid: int
    shutdown: int
    v6only: bool
    cookie: bytes


class PacketDiag(NamedTuple):
    """A packet socket; `groups` are (device, how often, type, address), `fanout` None for none."""

    protocol: int
    ifindex: int
    version: int
    reserve: int
    copy_thresh: int
    timestamp: int
    aux_data: bool
    orig_dev: bool
    vnet_hdr: bool
    loss: bool
    groups: tuple[tuple[int, int, int, bytes], ...]
    fanout: int | None
    has_ring: bool


def unix(inos: Collection[int] | None = None) -> dict[int, UnixDiag]:
    """The unix sockets with these inodes, or all, by inode; what is not there is left out.

    Raises KernelError if the kernel has no unix_diag.
    """
    if inos is None:
        found = list(_unix_query(0, _NLM_F_DUMP))
    elif len(inos) > _FEW:
        wanted = frozenset(inos)
        found = [body for body in _unix_query(0, _NLM_F_DUMP) if _unix_ino(body) in wanted]
    else:
        found = [body for ino in inos for body in _unix_query(ino, 0)]
    return {_unix_ino(body): parse_unix(body) for body in found}


def unix_raw(ino: int) -> bytes:
    """What the kernel says of one unix socket, for parse_unix; b"" if it is not there."""
    return _ask(_unix_request(ino))


def packet(ino: int) -> PacketDiag | None:
    """The packet socket with this inode, None if it is not there."""
    request = _PACKET_REQUEST.pack(socket.AF_PACKET, 0, 0, ino, _PACKET_SHOW, _NO_COOKIE)
    for body in list(_query(request, _NLM_F_DUMP)):
        _, _, protocol, found, _ = _PACKET_MESSAGE.unpack_from(body)
        if found == ino:
            return _packet_diag(protocol, dict(_attributes(body, _PACKET_MESSAGE.size)))
    return None


def _packet_diag(protocol: int, known: dict[int, bytes]) -> PacketDiag:
    index, version, reserve, copy_thresh, timestamp, flags = _PACKET_INFO.unpack(known[0])
    groups = _PACKET_GROUP.iter_unpack(known.get(_PACKET_GROUPS, b""))
    fanout = known.get(_PACKET_FANOUT)
    return PacketDiag(
        protocol=protocol,
        ifindex=index,
        version=version,
        reserve=reserve,
        copy_thresh=copy_thresh,
        timestamp=timestamp,
        aux_data=bool(flags & 2),
        orig_dev=bool(flags & 4),
        vnet_hdr=bool(flags & 8),
        loss=bool(flags & 16),
        groups=tuple((one[0], one[1], one[2], one[4][: one[3]]) for one in groups),
        fanout=None if fanout is None else int.from_bytes(fanout, sys.byteorder),
        has_ring=bool({_PACKET_RX_RING, _PACKET_TX_RING} & known.keys()),
    )


def inet(family: int, protocol: int) -> dict[int, InetDiag]:
    """All sockets of AF_INET or AF_INET6 and a protocol (IPPROTO_TCP, IPPROTO_UDP), by inode.

    Sockets without a descriptor (waiting to be accepted, TIME_WAIT) have no inode: left out, as
    are TCP sockets neither bound nor connected, which the kernel has in no table. Costs time by
    the number of sockets of the namespace; prefer `inet_of` where there is a descriptor.
    """
    request = _INET_REQUEST.pack(family, protocol, 0, 0, _ALL_STATES) + bytes(_SOCKET_ID.size)
    found = (_inet_diag(protocol, body) for body in _query(request, _NLM_F_DUMP))
    return {diag.ino: diag for diag in found if diag.ino}


def inet_of(fd: int) -> InetDiag | None:
    """The TCP or UDP socket behind a local descriptor, however many others there are.

    Asks by its addresses and cookie. None if the kernel has it in no table (see `inet`), or has
    another with the same addresses before it (SO_REUSEPORT): look for its inode in `inet` then.
    """
    body, protocol = _inet_raw(fd)
    return _inet_diag(protocol, body) if body else None


def glimpse_unix(ino: int, glance: Glance) -> None:
    """Add the calls that ask what unix_raw does to a glance."""
    _glimpse(_unix_request(ino), glance)


def glimpse_inet(fd: int, glance: Glance) -> None:
    """Add the calls that ask what inet_raw does to a glance."""
    _glimpse(_inet_request(fd)[0], glance)


def inet_raw(fd: int) -> bytes:
    """What the kernel says of the socket behind a local descriptor, unread: see inet_of."""
    return _inet_raw(fd)[0]


def _inet_raw(fd: int) -> tuple[bytes, int]:
    request, protocol = _inet_request(fd)
    return _ask(request), protocol


def _inet_request(fd: int) -> tuple[bytes, int]:
    sock = socket.socket(fileno=fd)
    try:
        family, protocol = sock.family, sock.proto
        request = _INET_REQUEST.pack(family, protocol, 0, 0, _ALL_STATES) + _socket_id(sock)
    finally:
        sock.detach()
    return request, protocol


def _unix_query(ino: int, flags: int) -> Iterator[bytes]:
    return _query(_unix_request(ino), flags)


def _unix_request(ino: int) -> bytes:
    return _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, _ALL_STATES, ino, _UNIX_SHOW, _NO_COOKIE)


def _unix_ino(body: bytes) -> int:
    return int.from_bytes(body[4:8], sys.byteorder)


def parse_unix(body: bytes) -> UnixDiag:
    """Parse what unix_raw returns."""
    _, kind, state, _, ino, _ = _UNIX_MESSAGE.unpack_from(body)
    known = dict(_attributes(body, _UNIX_MESSAGE.size))
    icons = known.get(_UNIX_ICONS, b"")
    vfs_ino, vfs_dev = struct.unpack("=II", known.get(_UNIX_VFS, bytes(8)))
    rqueue, wqueue = struct.unpack("=II", known.get(_UNIX_RQLEN, bytes(8)))
    return UnixDiag(
        type=kind,
        state=state,
        ino=ino,
        peer=int.from_bytes(known.get(_UNIX_PEER, b""), sys.byteorder),
        name=known.get(_UNIX_NAME, b""),
        vfs_dev=vfs_dev,
        vfs_ino=vfs_ino,
        icons=struct.unpack(f"={len(icons) // 4}I", icons),
        rqueue=rqueue,
        wqueue=wqueue,
        shutdown=known.get(_UNIX_SHUTDOWN, b"\0")[0],
    )


def _inet_diag(protocol: int, body: bytes) -> InetDiag:
    family, state, _, _, where, _, rqueue, wqueue, uid, ino = _INET_MESSAGE.unpack_from(body)
    src_port, dst_port, src, dst, interface, cookie = _SOCKET_ID.unpack(where)
    known = dict(_attributes(body, _INET_MESSAGE.size))
    size = 4 if family == socket.AF_INET else 16
    return InetDiag(
        family=family,
        protocol=protocol,
        state=state,
        ino=ino,
        src=socket.inet_ntop(family, src[:size]),
        src_port=src_port,
        dst=socket.inet_ntop(family, dst[:size]),
        dst_port=dst_port,
        ifindex=int.from_bytes(interface, sys.byteorder),
        rqueue=rqueue,
        wqueue=wqueue,
        uid=uid,
        shutdown=known.get(_INET_SHUTDOWN, b"\0")[0],
        v6only=known.get(_INET_SKV6ONLY, b"\0")[0] != 0,
        cookie=cookie,
    )


def _socket_id(sock: socket.socket) -> bytes:
    """The inet_diag_sockid of an open socket."""
    local = sock.getsockname()
    try:
        remote = sock.getpeername()
    except OSError:
        remote = ("0.0.0.0" if sock.family == socket.AF_INET else "::", 0)
    if sock.proto == socket.IPPROTO_UDP:
        # "src and dst are swapped for historical reasons": udp_dump_one() in net/ipv4/udp_diag.c.
        local, remote = remote, local
    src, dst = (socket.inet_pton(sock.family, end[0].partition("%")[0]) for end in (local, remote))
    device = sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0")
    index = socket.if_nametoindex(device.decode()) if device else 0
    cookie = sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)
    return _SOCKET_ID.pack(local[1], remote[1], src, dst, index.to_bytes(4, sys.byteorder), cookie)


# --- netlink(7)


def _query(request: bytes, flags: int) -> Iterator[bytes]:
    """The bodies of the answers to one sock_diag request; none if there is no such socket."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        length = _HEADER.size + len(request)
        netlink.send(_HEADER.pack(length, _BY_FAMILY, flags | _NLM_F_REQUEST, 0, 0) + request)
        while True:
            for kind, body in _messages(netlink.recv(_RECEIVE)):
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    _check(body, dump=bool(flags & _NLM_F_DUMP))
                    return
                yield body
                if not flags & _NLM_F_DUMP:
                    return


@cache
def _asking() -> tuple[socket.socket, Iterator[int]]:
    """One socket for all questions about single sockets, of our own network namespace."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG), count(1)


def _ask(request: bytes) -> bytes:
    """The body of the one answer to a request; b"" if there is no such socket."""
    netlink, numbers = _asking()
    length, number = _HEADER.size + len(request), next(numbers)
    netlink.send(_HEADER.pack(length, _BY_FAMILY, _NLM_F_REQUEST, number, 0) + request)
    while True:
        answer = netlink.recv(_RECEIVE)
        length, kind, _, answered, _ = _HEADER.unpack_from(answer)
        if answered != number:  # what an interrupted question has left
            continue
        body = answer[_HEADER.size : length]
        if kind != _NLMSG_ERROR:
            return body
        _check(body, dump=False)
        return b""


def _glimpse(request: bytes, glance: Glance) -> None:
    length = _HEADER.size + len(request)
    header = _HEADER.pack(length, _BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    fd, answer = _glancing().fileno(), glance.out(_ANSWER)
    glance.call(NR.sendto, fd, glance.out(content=header + request), length)
    glance.call(NR.recvfrom, fd, answer, _ANSWER, socket.MSG_DONTWAIT)


@cache
def _glancing() -> socket.socket:
    """One socket for what is asked with others at a glance."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)


def _messages(buffer: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(buffer):
        length, kind, *_ = _HEADER.unpack_from(buffer, offset)
        yield kind, buffer[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _attributes(body: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        yield kind & _NLA_TYPE_MASK, body[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def _check(body: bytes, *, dump: bool) -> None:
    """Raise what an error or the end of a dump reports; an exact look-up may find nothing."""
    error = -int.from_bytes(body[:4], sys.byteorder, signed=True)
    if not error or (not dump and error in (errno.ENOENT, errno.ESTALE)):
        return
    cls = NotPermitted if error in (errno.EACCES, errno.EPERM) else KernelError
    hint = "the kernel needs CONFIG_UNIX_DIAG, CONFIG_INET_DIAG, CONFIG_INET_UDP_DIAG"
    raise cls(error, "SOCK_DIAG_BY_FAMILY", hint=hint if error == errno.ENOENT else None)
