# SPDX-License-Identifier: Apache-2.0
import os
import socket
import struct
from pathlib import Path

import pytest

from ckpt.errors import Unsupported
from ckpt.files.netlinksk import NetlinkSk
from tests.unit.files.roundtrip import Trip

SOL_NETLINK, ADD, LIST = 270, 1, 9


def netlink(protocol: int = 0) -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)


def through(place: Path, *socks: socket.socket) -> list[socket.socket]:
    """Dump these, close them, make them again."""
    trip = Trip(place)
    ids = trip.dump(NetlinkSk, *(sock.fileno() for sock in socks))
    for sock in socks:
        sock.close()
    return [socket.socket(fileno=fd) for fd in trip.restore(NetlinkSk, *ids)]


def test_ports_and_protocols(tmp_path: Path) -> None:
    unbound, bound, uevents = netlink(4), netlink(), netlink(15)
    bound.bind((0, 0))
    uevents.bind((4242, 1))
    names = [sock.getsockname() for sock in (unbound, bound, uevents)]
    again = through(tmp_path, unbound, bound, uevents)
    assert [sock.getsockname() for sock in again] == names
    assert [sock.proto for sock in again] == [4, 0, 15]
    for sock in again:
        sock.close()


def test_many_groups(tmp_path: Path) -> None:
    one = netlink()
    for group in (1, 3, 35):
        one.setsockopt(SOL_NETLINK, ADD, group)
    [again] = through(tmp_path, one)
    with again:
        assert struct.unpack("=2I", again.getsockopt(SOL_NETLINK, LIST, 128)) == (5, 4)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes CAP_NET_ADMIN")
def test_connected(tmp_path: Path) -> None:
    one = netlink()
    one.connect((77, 4))
    trip = Trip(tmp_path)
    ids = trip.dump(NetlinkSk, one.fileno())
    entry = trip.entries[1].nlsk
    assert (entry.state, entry.dst_portid, entry.dst_group) == (1, 77, 3)
    name = one.getsockname()
    one.close()
    with socket.socket(fileno=trip.restore(NetlinkSk, *ids)[0]) as again:
        assert (again.getpeername(), again.getsockname()) == ((77, 4), name)


def test_queued_message(tmp_path: Path) -> None:
    with netlink() as one:
        one.send(struct.pack("=IHHIIBxHiII", 32, 18, 0x301, 1, 0, 0, 0, 0, 0, 0))
        with pytest.raises(Unsupported, match="netlink messages in its queue"):
            through(tmp_path, one)
