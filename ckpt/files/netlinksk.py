# SPDX-License-Identifier: Apache-2.0
"""netlink(7) sockets: protocol, port, groups, the port they are connected to.

All of it the socket tells itself. A message in the queue is an answer of the kernel's that cannot
be asked for again: refused. The states are CRIU's: 0 not bound, 7 bound, 1 connected.
"""

import select
import socket
import struct
from typing import Any

from ckpt.files.kind import Dump, FileKind, NotNow, OpenFile, Restore
from ckpt.files.sockopts import (
    borrowed,
    check_options,
    doing,
    dump_options,
    family,
    restore_options,
    set_option,
)
from ckpt.image import pb
from ckpt.options import DumpOptions

_UNBOUND, _CONNECTED, _BOUND = 0, 1, 7
_SOL_NETLINK, _ADD_MEMBERSHIP, _LIST_MEMBERSHIPS = 270, 1, 9
# The kernel has at most 32 words of groups in use (NLGRP numbers up to 1024).
_MOST_GROUPS = 128


class NetlinkSk(FileKind):
    """A netlink socket."""

    type = pb.FD_NETLINKSK
    field = "nlsk"

    @classmethod
    def claims(cls, file: OpenFile) -> bool:
        """Recognise it by its address family."""
        return family(file) == socket.AF_NETLINK

    @classmethod
    def check(cls, file: OpenFile, options: DumpOptions) -> None:
        """Refuse queued messages."""
        check_options(file)
        with borrowed(file.fd) as sock:
            _check_queue(file, sock)

    @classmethod
    def dump(cls, file: OpenFile, out: Dump) -> Any:
        """Ask the socket."""
        with borrowed(file.fd) as sock:
            _check_queue(file, sock)
            port, _ = sock.getsockname()
            to_port, to_group = sock.getpeername()
            state = _BOUND if port else _UNBOUND
            return pb.netlink_sk_entry(
                **file.common(),
                ino=file.stat.st_ino,
                protocol=sock.proto,
                state=_CONNECTED if to_port or to_group else state,
                portid=port,
                groups=_groups(sock),
                dst_portid=to_port,
                dst_group=to_group.bit_length(),  # told as a mask, kept as a number
                opts=dump_options(sock),
            )

    @classmethod
    def create(cls, entry: Any, make: Restore) -> int:
        """Bind it to its port, join its groups, connect it."""
        with doing(f"socket AF_NETLINK {entry.protocol}"):
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, entry.protocol)
        try:
            _place(sock, entry)
            restore_options(sock, entry.opts)
        except BaseException:
            sock.close()
            raise
        return sock.detach()


def _check_queue(file: OpenFile, sock: socket.socket) -> None:
    """Raise Unsupported if there is something to read. Peeking would take a pending error away."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if any(events & select.POLLIN for _, events in poll.poll(0)):
        raise NotNow(
            f"{file.name}: netlink messages in its queue",
            hint="try again when the target has read them",
        )


def _groups(sock: socket.socket) -> list[int]:
    """Return the groups it joined as words of a mask, group 1 being the lowest bit."""
    with doing("getsockopt NETLINK_LIST_MEMBERSHIPS"):
        mask = sock.getsockopt(_SOL_NETLINK, _LIST_MEMBERSHIPS, _MOST_GROUPS)
    words = list(struct.unpack(f"={len(mask) // 4}I", mask[: len(mask) & ~3]))
    while words and not words[-1]:
        words.pop()
    return words


def _place(sock: socket.socket, entry: pb.netlink_sk_entry) -> None:
    if entry.portid:
        with doing(f"bind netlink socket to port {entry.portid}"):
            sock.bind((entry.portid, 0))
    for at, word in enumerate(entry.groups):
        for bit in range(32):
            if word >> bit & 1:
                set_option(sock, _SOL_NETLINK, _ADD_MEMBERSHIP, at * 32 + bit + 1)
    if entry.state == _CONNECTED:
        with doing(f"connect netlink socket to port {entry.dst_portid}"):
            sock.connect((entry.dst_portid, 1 << entry.dst_group >> 1))
