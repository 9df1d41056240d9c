# SPDX-License-Identifier: Apache-2.0
"""packet(7) sockets: frames of a device, as they come.

Groups, fan-out and rings only sock_diag(7) tells. A ring is memory that the kernel shares with the
process: refused. Frames in the queue are lost, as they may be at any time.
"""

import socket
import struct
from collections.abc import Hashable
from typing import Any

from ckpt.errors import ImageError, Unsupported
from ckpt.files.kind import Dump, FileKind, OpenFile, Restore
from ckpt.files.moreopts import MORE
from ckpt.files.sockopts import (
    State,
    borrowed,
    check_options,
    doing,
    dump_options,
    family,
    restore_options,
    set_option,
    warn_of_packets,
)
from ckpt.image import pb
from ckpt.kernel import files, sockdiag
from ckpt.kernel.sockdiag import PacketDiag
from ckpt.options import DumpOptions

_SOL_PACKET = 263
_ADD_MEMBERSHIP, _FANOUT = 1, 18
# Field and option, in the order to set them in.
_NUMBERS = (("version", 10), ("reserve", 12), ("timestamp", 17), ("copy_thresh", 7))
_FLAGS = (("aux_data", 8), ("orig_dev", 9), ("vnet_hdr", 15), ("loss", 14))
_NO_FANOUT, _FANOUT_BY_PROGRAM = 0xFFFFFFFF, (6, 7)
_ADDRESS = struct.Struct("=HHi12x")  # struct sockaddr_ll: family, protocol, device
_MREQ = struct.Struct("=iHH8s")
_OPTIONS = State(*MORE[socket.AF_PACKET])


class PacketSk(FileKind):
    """A packet socket."""

    type = pb.FD_PACKETSK
    field = "psk"

    @classmethod
    def claims(cls, file: OpenFile) -> bool:
        """Recognise it by its address family."""
        return family(file) == socket.AF_PACKET

    @classmethod
    def check(cls, file: OpenFile, options: DumpOptions) -> None:
        """Refuse rings, and frames dealt out by a program."""
        check_options(file)
        diag = _find(file)
        if diag.has_ring:
            raise Unsupported(
                f"{file.name}: packet socket with a ring", hint="have it use recv(2) instead"
            )
        if diag.fanout is not None and diag.fanout >> 16 & 0xFF in _FANOUT_BY_PROGRAM:
            raise Unsupported(f"{file.name}: packet socket whose fan-out is a program's")

    @classmethod
    def state(cls, file: OpenFile) -> Hashable | None:
        """What sock_diag tells, and options."""
        options = _OPTIONS.read(file.fd)
        return None if options is None else (_find(file), options)

    @classmethod
    def dump(cls, file: OpenFile, out: Dump) -> Any:
        """Ask sock_diag, and the socket for its options."""
        cls.check(file, out.options)
        diag = _find(file)
        with borrowed(file.fd) as sock:
            entry = pb.packet_sock_entry(
                **file.common(),
                type=sock.type,
                protocol=socket.htons(diag.protocol),
                ifindex=diag.ifindex,
                opts=dump_options(sock),
                version=diag.version,
                reserve=diag.reserve,
                timestamp=diag.timestamp,
                copy_thresh=diag.copy_thresh,
                aux_data=diag.aux_data,
                orig_dev=diag.orig_dev,
                vnet_hdr=diag.vnet_hdr,
                loss=diag.loss,
            )
        out.later(lambda: warn_of_packets(file, out))
        if diag.fanout is not None:
            entry.fanout = diag.fanout
        for index, count, kind, address in diag.groups:
            for _ in range(count):
                entry.mclist.add(index=index, type=kind, addr=address)
        return entry

    @classmethod
    def create(cls, entry: Any, make: Restore) -> int:
        """Make it deaf, and bind it when it is as it was."""
        if entry.HasField("rx_ring") or entry.HasField("tx_ring"):
            raise Unsupported(f"packet socket {entry.id}: its ring is not restored")
        with doing("socket AF_PACKET"):
            sock = socket.socket(socket.AF_PACKET, entry.type, 0)
        try:
            for field, option in (*_NUMBERS, *_FLAGS):
                if value := int(getattr(entry, field)):
                    set_option(sock, _SOL_PACKET, option, value)
            for group in entry.mclist:
                set_option(sock, _SOL_PACKET, _ADD_MEMBERSHIP, _membership(group))
            restore_options(sock, entry.opts)
            _bind(sock, entry)
            if entry.fanout != _NO_FANOUT:
                set_option(sock, _SOL_PACKET, _FANOUT, struct.pack("=I", entry.fanout))
        except BaseException:
            sock.close()
            raise
        return sock.detach()


def _find(file: OpenFile) -> PacketDiag:
    found = sockdiag.packet(file.stat.st_ino)
    if found is None:
        raise Unsupported(
            f"{file.name}: a packet socket of another network namespace",
            hint="dump the tree that the namespace belongs to",
        )
    return found


def _membership(group: pb.packet_mclist) -> bytes:
    if len(group.addr) > 8:
        raise ImageError(f"packet socket: a group's address of {len(group.addr)} bytes")
    return _MREQ.pack(group.index, group.type, len(group.addr), group.addr)


def _bind(sock: socket.socket, entry: Any) -> None:
    if not entry.protocol and not entry.ifindex:
        return
    address = _ADDRESS.pack(socket.AF_PACKET, entry.protocol, entry.ifindex)
    files.bind(sock.fileno(), address, f"a packet socket to device {entry.ifindex}")
