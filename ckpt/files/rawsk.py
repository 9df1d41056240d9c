# SPDX-License-Identifier: Apache-2.0
"""What raw internet sockets have of their own: headers, checksums, filters of ICMP (raw(7)).

To the kernel the protocol is their port. The peer of a connected one is in /proc/net/raw; CRIU
leaves it out. What lies in the queue is lost, as with UDP.
"""

import os
import socket
import struct
from typing import Any

from ckpt.files.sockopts import doing, set_option
from ckpt.image import pb
from ckpt.kernel import procfs

_IP, _IPV6, _SOL_RAW = 0, 41, 255
_HDRINCL = {socket.AF_INET: (_IP, 3), socket.AF_INET6: (_IPV6, 36)}
_NODEFRAG = (_IP, 22)
_CHECKSUM = (_IPV6, 7)
# Of IPv4 one word, of IPv6 eight.
_FILTERS = {
    (socket.AF_INET, socket.IPPROTO_ICMP): (_SOL_RAW, 1, 4),
    (socket.AF_INET6, socket.IPPROTO_ICMPV6): (socket.IPPROTO_ICMPV6, 1, 32),
}
_REMOTE, _INODE = 2, 9  # columns of /proc/net/raw
_OWN_CHECKSUM = socket.IPPROTO_ICMPV6  # whose offset is fixed


def dump_options(sock: socket.socket) -> pb.ip_opts_raw_entry:
    """Return what is on."""
    entry = pb.ip_opts_raw_entry()
    if sock.getsockopt(*_HDRINCL[sock.family]):
        entry.hdrincl = True
    if sock.family == socket.AF_INET and sock.getsockopt(*_NODEFRAG):
        entry.nodefrag = True
    if sock.family == socket.AF_INET6 and sock.proto != _OWN_CHECKSUM:
        offset = sock.getsockopt(*_CHECKSUM)
        if offset >= 0:
            entry.checksum_offset = offset
    if known := _FILTERS.get((sock.family, sock.proto)):
        level, option, size = known
        entry.icmpv_filter.extend(
            struct.unpack(f"={size // 4}I", sock.getsockopt(level, option, size))
        )
    return entry


def peer(sock: socket.socket) -> list[int] | None:
    """Return the address it is connected to, as the image has it, which getpeername(2) keeps."""
    name = "raw" if sock.family == socket.AF_INET else "raw6"
    inode = str(os.fstat(sock.fileno()).st_ino).encode()
    for line in procfs.read("self", f"net/{name}").split(b"\n")[1:]:
        words = line.split()
        if len(words) > _INODE and words[_INODE] == inode:
            address = words[_REMOTE].partition(b":")[0]
            return [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    return None


def place(sock: socket.socket, raw: pb.ip_opts_raw_entry, source: Any, target: Any) -> None:
    """Set its options, bind and connect it, as far as it was. Raises KernelError."""
    if raw.hdrincl:
        set_option(sock, *_HDRINCL[sock.family], 1)
    if raw.nodefrag:
        set_option(sock, *_NODEFRAG, 1)
    if raw.HasField("checksum_offset"):
        set_option(sock, *_CHECKSUM, raw.checksum_offset)
    known = _FILTERS.get((sock.family, sock.proto))
    if raw.icmpv_filter and known:
        level, option, size = known
        words = list(raw.icmpv_filter)[: size // 4]
        set_option(sock, level, option, struct.pack(f"={len(words)}I", *words))
    nowhere = "0.0.0.0" if sock.family == socket.AF_INET else "::"
    if source[0] != nowhere:
        with doing(f"bind a raw socket to {source[0]}"):
            sock.bind((source[0], 0, *source[2:]))
    if target[0] != nowhere:
        with doing(f"connect a raw socket to {target[0]}"):
            sock.connect(target)
