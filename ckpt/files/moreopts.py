# SPDX-License-Identifier: Apache-2.0
"""Socket options that CRIU's image has no field for: what differs from a new socket of the kind.

They are kept as the kernel tells them, by level and number, and set as they were told; only those
below, that can be. Others follow from the socket's life (TCP_MAXSEG) or cannot be asked for: the
multicast groups that it is in. Numbers: linux/in.h, in6.h, tcp.h, udp.h, netlink.h, socket(7).
"""

import errno
import socket
import struct
from collections.abc import Iterator
from functools import lru_cache

from ckpt.errors import ImageError
from ckpt.image import pb
from ckpt.kernel.files import SocketOptions

_SOCKET, _IP, _IPV6, _TCP, _UDP, _NETLINK, _PACKET = socket.SOL_SOCKET, 0, 41, 6, 17, 270, 263

# SO_TIMESTAMP, TIMESTAMPNS and their 64-bit twins, RXQ_OVFL, BUSY_POLL, ZEROCOPY, PASSPIDFD
_ANY = [(_SOCKET, n) for n in (29, 35, 63, 64, 40, 46, 60, 76)]
_INET = [
    # SYNCNT, LINGER2, DEFER_ACCEPT, CONGESTION, USER_TIMEOUT, FASTOPEN, NOTSENT_LOWAT, SAVE_SYN,
    # FASTOPEN_CONNECT, FASTOPEN_NO_COOKIE, INQ, TX_DELAY
    *((_TCP, n) for n in (7, 8, 9, 13, 18, 23, 25, 27, 30, 34, 36, 37)),
    # ENCAP, NO_CHECK6_TX, NO_CHECK6_RX, SEGMENT, GRO
    *((_UDP, n) for n in (100, 101, 102, 103, 104)),
]
# RECVOPTS, RETOPTS, MTU_DISCOVER, RECVERR, RECVTTL, RECVTOS, TRANSPARENT, RECVORIGDSTADDR, MINTTL,
# CHECKSUM, BIND_ADDRESS_NO_PORT, MULTICAST_IF, MULTICAST_TTL, MULTICAST_LOOP, MULTICAST_ALL,
# UNICAST_IF
_V4 = [(_IP, n) for n in (6, 7, 10, 11, 12, 13, 19, 20, 21, 23, 24, 32, 33, 34, 49, 50)]
# UNICAST_HOPS, MULTICAST_IF, MULTICAST_HOPS, MULTICAST_LOOP, MTU_DISCOVER, RECVERR, MULTICAST_ALL,
# RECVHOPLIMIT, RECVHOPOPTS, RECVRTHDR, RECVDSTOPTS, DONTFRAG, RECVTCLASS, AUTOFLOWLABEL,
# MINHOPCOUNT, RECVORIGDSTADDR, TRANSPARENT, UNICAST_IF
_V6 = [(_IPV6, n) for n in (16, 17, 18, 19, 23, 25, 29, 51, 53, 56, 58, 62, 66, 70, 73, 74, 75, 76)]

MORE: dict[int, list[tuple[int, int]]] = {
    socket.AF_UNIX: _ANY,
    socket.AF_INET: [*_ANY, *_INET, *_V4],
    socket.AF_INET6: [*_ANY, *_INET, *_V4, *_V6],
    # PKTINFO, BROADCAST_ERROR, NO_ENOBUFS, LISTEN_ALL_NSID, CAP_ACK, EXT_ACK, GET_STRICT_CHK
    socket.AF_NETLINK: [*_ANY, *((_NETLINK, n) for n in (3, 4, 5, 8, 10, 11, 12))],
    # TX_HAS_OFF, QDISC_BYPASS, IGNORE_OUTGOING
    socket.AF_PACKET: [*_ANY, *((_PACKET, n) for n in (19, 20, 23))],
}
"""Level and number of each, by address family, in the order to set them in."""

_NOT_OF_STREAMS = {(_IP, 32), (_IP, 33), (_IPV6, 17), (_IPV6, 18)}
"""Those of multicast, which a connection is told to have, but must not be given."""

_ONE = struct.Struct("=i16s")


@lru_cache
def _options(family: int) -> SocketOptions:
    return SocketOptions(MORE.get(family, []))


@lru_cache
def _of_new(family: int, kind: int, protocol: int) -> bytes:
    """Return what a new socket has."""
    with socket.socket(family, kind, protocol) as sock:
        return _options(family).read(sock.fileno())


def dump(sock: socket.socket) -> Iterator[pb.sk_option_entry]:
    """Yield what differs from a new socket."""
    now = _options(sock.family).read(sock.fileno())
    before = _of_new(sock.family, sock.type, sock.proto)
    if now == before:
        return
    options = zip(
        MORE.get(sock.family, ()), _ONE.iter_unpack(now), _ONE.iter_unpack(before), strict=True
    )
    for (level, number), (length, value), old in options:
        if (length, value) == old or length <= 0:
            continue
        if sock.type != socket.SOCK_STREAM or (level, number) not in _NOT_OF_STREAMS:
            yield pb.sk_option_entry(level=level, number=number, value=value[:length])


def restore(sock: socket.socket, opts: pb.sk_opts_entry) -> None:
    """Set them. Raises ImageError for one that is not ours to set, OSError."""
    known = MORE.get(sock.family, ())
    for one in opts.more:
        if (one.level, one.number) not in known or len(one.value) > _ONE.size - 4:
            raise ImageError(f"files.img: socket option {one.level}, {one.number}: none of ours")
        try:
            sock.setsockopt(one.level, one.number, one.value)
        except OSError as error:
            what = f"socket option {one.level}, {one.number}"
            raise OSError(error.errno or errno.EIO, f"{what}: {error.strerror}") from error
