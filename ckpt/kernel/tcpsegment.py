# SPDX-License-Identifier: Apache-2.0
"""A TCP segment in the name of another host, sent to a socket of this one by a raw socket.

It takes CAP_NET_RAW. The kernel delivers what is for an address of its own by the loopback, and
asks no questions about where it comes from. Layouts: RFC 791, 8200, 9293; raw(7).
"""

import socket
import struct
from typing import NamedTuple

FIN, ACK = 0x01, 0x10

_TCP = struct.Struct("!HHIIBBHHH")  # ports, sequence, acknowledgment, offset, flags, window, sum
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_OFFSET = 5 << 4  # five words, no options
_TTL = 64
_MAPPED = bytes(10) + b"\xff\xff"


class End(NamedTuple):
    """An address as text, without its scope, and a port."""

    address: str
    port: int

    @property
    def packed(self) -> bytes:
        """The address in bytes; of IPv4 that is mapped into IPv6, that."""
        text = self.address.partition("%")[0]
        found = socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
        return found.removeprefix(_MAPPED)


class Segment(NamedTuple):
    """What a segment without data says."""

    flags: int
    sequence: int
    acknowledgment: int
    window: int


def send(source: End, target: End, segment: Segment) -> None:
    """Send it to target as if source had. Raises OSError."""
    ends = source.packed, target.packed
    tcp = _tcp(source.port, target.port, segment, ends)
    if len(ends[0]) == 4:
        family = socket.AF_INET
        length = _IPV4.size + len(tcp)
        # The kernel fills in the checksum.
        head = _IPV4.pack(0x45, 0, length, 0, 0, _TTL, socket.IPPROTO_TCP, 0, *ends)
    else:
        family = socket.AF_INET6
        head = _IPV6.pack(6 << 28, len(tcp), socket.IPPROTO_TCP, _TTL, *ends)
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(head + tcp, (socket.inet_ntop(family, ends[1]), 0))


def _tcp(source: int, target: int, segment: Segment, ends: tuple[bytes, bytes]) -> bytes:
    numbers = segment.sequence & 0xFFFFFFFF, segment.acknowledgment & 0xFFFFFFFF
    start = source, target, *numbers, _OFFSET, segment.flags, min(segment.window, 0xFFFF)
    pseudo = b"".join(ends) + struct.pack("!II", _TCP.size, socket.IPPROTO_TCP)
    return _TCP.pack(*start, _checksum(pseudo + _TCP.pack(*start, 0, 0)), 0)


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
