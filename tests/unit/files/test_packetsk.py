# SPDX-License-Identifier: Apache-2.0
import os
import socket
import struct

import pytest

from ckpt.errors import ImageError, Unsupported
from ckpt.files.packetsk import PacketSk
from ckpt.kernel import sockdiag

SOL_PACKET, ADD_MEMBERSHIP, VNET_HDR, FANOUT, IGNORE_OUTGOING, TX_RING = 263, 1, 15, 18, 23, 13
ALL_MULTICAST = 2


@pytest.fixture
def packet(round_trip):
    def make(protocol=0):
        try:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
        except OSError as error:
            pytest.skip(f"no packet sockets: {error}")
        round_trip.keep(os.dup(sock.fileno()))
        return sock

    return make


def told(fd):
    return sockdiag.packet(os.fstat(fd).st_ino)


def test_all_of_it(round_trip, packet):
    with packet() as sock:
        sock.bind(("lo", 0x60))
        sock.setsockopt(SOL_PACKET, VNET_HDR, 1)
        sock.setsockopt(SOL_PACKET, IGNORE_OUTGOING, 1)
        group = struct.pack("=iHH8s", 1, ALL_MULTICAST, 0, b"")
        for _ in range(2):
            sock.setsockopt(SOL_PACKET, ADD_MEMBERSHIP, group)
        sock.setsockopt(SOL_PACKET, FANOUT, os.getpid() & 0xFFFF | 1 << 16)
        copy = round_trip.trip(PacketSk, sock.fileno())
        assert told(copy) == told(sock.fileno())
        assert told(copy).groups == ((1, 2, ALL_MULTICAST, b""),)
        with socket.socket(fileno=os.dup(copy)) as made:
            assert made.getsockname()[:2] == ("lo", 0x60)
            assert made.getsockopt(SOL_PACKET, IGNORE_OUTGOING) == 1


def test_a_ring_is_refused(round_trip, packet):
    with packet() as sock:
        sock.setsockopt(SOL_PACKET, TX_RING, struct.pack("=4I", 4096, 1, 2048, 2))
        with pytest.raises(Unsupported, match="packet socket with a ring"):
            round_trip.dump(PacketSk, sock.fileno())


def test_a_damaged_group(round_trip, packet):
    with packet() as sock:
        file_id = round_trip.dump(PacketSk, sock.fileno())
    round_trip.message(file_id).mclist.add(index=1, type=0, addr=bytes(9))
    with pytest.raises(ImageError, match="address of 9 bytes"):
        round_trip.create(file_id)
