# SPDX-License-Identifier: Apache-2.0
import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt.errors import ImageError, KernelError, Unsupported
from ckpt.files.inetsk import InetSk
from ckpt.files.tcpstream import CLOSE_WAIT, FIN_WAIT1, FIN_WAIT2, LAST_ACK, tcp_info
from ckpt.log import Log
from tests.unit.files.roundtrip import Trip

V4, V6 = socket.AF_INET, socket.AF_INET6
STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
SOL, TCP, IP, IPV6 = socket.SOL_SOCKET, socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.IPPROTO_IPV6


class Sockets:
    """Makes sockets that the test need not close, and takes them through an image."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.all = contextlib.ExitStack()

    def one(self, family: int = V4, kind: int = STREAM, *bind: object) -> socket.socket:
        sock = self.all.enter_context(socket.socket(family, kind))
        if bind:
            sock.bind(bind)
        return sock

    def through(self, *socks: socket.socket, **options: object) -> list[socket.socket]:
        """Dump these, close them (without a word, if connected), make them again."""
        self.trip = Trip(self.place, **options)
        ids = self.trip.dump(InetSk, *(sock.fileno() for sock in socks))
        self.trip.out.about_to_kill()
        for sock in socks:
            sock.close()
        made = self.trip.restore(InetSk, *ids)
        self.trip.make.close(ok=True)
        return [self.all.enter_context(socket.socket(fileno=fd)) for fd in made]


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[Sockets]:
    made = Sockets(tmp_path)
    with made.all:
        yield made


@pytest.mark.parametrize(
    ("family", "address"), [(V4, "127.0.0.1"), (V4, "0.0.0.0"), (V6, "::1"), (V6, "::")]
)
def test_listener(sockets: Sockets, family: int, address: str) -> None:
    one = sockets.one(family, STREAM, address, 0)
    one.listen(11)
    where = one.getsockname()
    [again] = sockets.through(one)
    assert again.getsockname() == where
    assert tcp_info(again) == (10, 0, 11)
    client = sockets.one(family)
    client.connect(where)
    with again.accept()[0] as server:
        client.send(b"x")
        assert server.recv(1) == b"x"


def test_unconnected_tcp(sockets: Sockets) -> None:
    bound = sockets.one(V4, STREAM, "127.0.0.1", 0)
    where = bound.getsockname()
    bound, unbound, six = sockets.through(bound, sockets.one(), sockets.one(V6))
    assert (bound.getsockname(), unbound.getsockname()) == (where, ("0.0.0.0", 0))
    assert six.family == V6
    bound.listen()


OPTIONS = [
    (SOL, socket.SO_REUSEADDR, 1),
    (SOL, socket.SO_REUSEPORT, 1),
    (SOL, socket.SO_KEEPALIVE, 1),
    (SOL, socket.SO_OOBINLINE, 1),
    (SOL, socket.SO_PRIORITY, 4),
    (SOL, socket.SO_RCVLOWAT, 7),
    (SOL, socket.SO_MARK, 9),
    (SOL, socket.SO_RCVBUF, 70_000),
    (IP, socket.IP_TOS, 16),
    (IP, socket.IP_TTL, 33),
    (IP, 15, 1),
    (TCP, socket.TCP_NODELAY, 1),
    (TCP, socket.TCP_KEEPIDLE, 77),
    (TCP, socket.TCP_KEEPINTVL, 7),
    (TCP, socket.TCP_KEEPCNT, 5),
]


def test_tcp_options(sockets: Sockets) -> None:
    one = sockets.one()
    for option in OPTIONS:
        one.setsockopt(*option)
    one.bind(("10.9.8.7", 0))
    one.listen(3)
    wanted = [one.getsockopt(*option[:2]) for option in OPTIONS]
    [again] = sockets.through(one)
    assert [again.getsockopt(*option[:2]) for option in OPTIONS] == wanted
    assert again.getsockname()[0] == "10.9.8.7"


def test_options_stay_off(sockets: Sockets) -> None:
    one = sockets.one(V4, STREAM, "127.0.0.1", 0)
    one.listen()
    [again] = sockets.through(one)
    assert again.getsockopt(SOL, socket.SO_REUSEADDR) == 0
    assert again.getsockopt(SOL, 72) == 0


@pytest.mark.parametrize("only", [0, 1])
def test_ipv6_only(sockets: Sockets, only: int) -> None:
    one = sockets.one(V6)
    one.setsockopt(IPV6, socket.IPV6_V6ONLY, only)
    one.setsockopt(IPV6, socket.IPV6_TCLASS, 8)
    one.setsockopt(IPV6, socket.IPV6_RECVPKTINFO, 1)
    one.bind(("::", 0))
    [again] = sockets.through(one)
    assert again.getsockopt(IPV6, socket.IPV6_V6ONLY) == only
    assert again.getsockopt(IPV6, socket.IPV6_TCLASS) == 8
    assert again.getsockopt(IPV6, socket.IPV6_RECVPKTINFO) == 1


def test_udp(sockets: Sockets) -> None:
    server = sockets.one(V4, DGRAM, "127.0.0.1", 0)
    client = sockets.one(V4, DGRAM)
    client.setsockopt(SOL, socket.SO_BROADCAST, 1)
    client.setsockopt(IP, 8, 1)
    client.connect(server.getsockname())
    where = client.getsockname()
    client.send(b"dropped")
    server, client, unbound = sockets.through(server, client, sockets.one(V4, DGRAM))
    assert (client.getsockname(), client.getpeername()) == (where, server.getsockname())
    assert unbound.getsockname() == ("0.0.0.0", 0)
    assert client.getsockopt(SOL, socket.SO_BROADCAST) == client.getsockopt(IP, 8) == 1
    client.send(b"new")
    assert server.recvfrom(10) == (b"new", where)


def test_udp_mapped_and_shut(sockets: Sockets) -> None:
    server = sockets.one(V4, DGRAM, "127.0.0.1", 0)
    client = sockets.one(V6, DGRAM, "::ffff:127.0.0.1", 0)
    client.connect(("::ffff:127.0.0.1", server.getsockname()[1]))
    client.shutdown(socket.SHUT_RD)
    where = client.getsockname()
    server, client = sockets.through(server, client)
    assert client.getsockname() == where
    assert client.recv(1) == b""
    client.send(b"x")
    assert server.recvfrom(9) == (b"x", ("127.0.0.1", where[1]))
    assert sockets.trip.entries[2].isk.shutdown == 1


def test_bound_to_device(sockets: Sockets) -> None:
    one = sockets.one(V4, DGRAM)
    one.setsockopt(SOL, socket.SO_BINDTODEVICE, b"lo\0")
    one.bind(("0.0.0.0", 0))
    [again] = sockets.through(one)
    assert again.getsockopt(SOL, socket.SO_BINDTODEVICE, 16) == b"lo\0"


def test_filter(sockets: Sockets) -> None:
    from ckpt.kernel.sockfilter import attach_filter, get_filter

    program = struct.pack("HBBI", 0x28, 0, 0, 0) + struct.pack("HBBI", 6, 1, 2, 65535)
    one = sockets.one(V4, DGRAM, "127.0.0.1", 0)
    attach_filter(one.fileno(), program)
    [again] = sockets.through(one)
    assert get_filter(again.fileno()) == program
    words = list(sockets.trip.entries[1].isk.opts.so_filter)
    assert words == [0x28 << 48, 6 << 48 | 1 << 40 | 2 << 32 | 65535]


def test_refused(sockets: Sockets, tmp_path: Path) -> None:
    with contextlib.suppress(OSError):  # not every kernel has it
        mptcp = sockets.all.enter_context(socket.socket(V4, STREAM, socket.IPPROTO_MPTCP))
        with pytest.raises(Unsupported, match="type 1, protocol 262"):
            sockets.through(mptcp)
    listener = sockets.one(V4, STREAM, "127.0.0.1", 0)
    listener.listen()
    client = sockets.one()
    client.connect(listener.getsockname())
    for sock, match in ((listener, "wait to be accepted"), (client, "connected TCP")):
        sockets.place = tmp_path / match.replace(" ", "")
        sockets.place.mkdir()
        with pytest.raises(Unsupported, match=match):
            sockets.through(sock)


def test_port_in_use(sockets: Sockets) -> None:
    one = sockets.one(V4, STREAM, "127.0.0.1", 0)
    one.listen()
    trip = Trip(sockets.place)
    ids = trip.dump(InetSk, one.fileno())
    with pytest.raises(KernelError, match=r"127\.0\.0\.1 port \d+: Address already in use"):
        trip.restore(InetSk, *ids)


def connection(sockets: Sockets, family: int = V4) -> list[socket.socket]:
    listener = sockets.one(family, STREAM, "::1" if family == V6 else "127.0.0.1", 0)
    listener.listen()
    client = sockets.one(family)
    client.connect(listener.getsockname())
    return [listener, client, sockets.all.enter_context(listener.accept()[0])]


@pytest.mark.skipif(os.geteuid() != 0, reason="TCP_REPAIR needs CAP_NET_ADMIN")
@pytest.mark.parametrize("family", [V4, V6])
@pytest.mark.parametrize("size", [0, 5, 60_000])
def test_connection(sockets: Sockets, family: int, size: int) -> None:
    listener, client, server = connection(sockets, family)
    client.send(b"a" * size)
    server.send(b"b" * size)
    server.setsockopt(SOL, socket.SO_REUSEADDR, 1)
    ends = client.getsockname(), client.getpeername()
    listener, client, server = sockets.through(listener, client, server, tcp_established=True)
    assert (client.getsockname(), client.getpeername()) == ends
    assert server.getsockopt(SOL, socket.SO_REUSEADDR) == 1
    for sock in (client, server):
        sock.settimeout(5)
    client.send(b"!")
    server.send(b"?")
    assert received(server, size + 1) == b"a" * size + b"!"
    assert received(client, size + 1) == b"b" * size + b"?"
    client.close()
    assert server.recv(1) == b""


@pytest.mark.skipif(os.geteuid() != 0, reason="TCP_REPAIR needs CAP_NET_ADMIN")
def test_full_connection(sockets: Sockets) -> None:
    listener, client, server = connection(sockets)
    sent = fill(client)
    listener, client, server = sockets.through(listener, client, server, tcp_established=True)
    server.settimeout(20)
    data = received(server, sent)
    assert data == bytes(range(256)) * (sent // 256)


def fill(sock: socket.socket) -> int:
    """Send until no more fits; returns how much."""
    sock.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += sock.send(bytes(range(256)) * 100)
    return sent


@pytest.mark.skipif(os.geteuid() != 0, reason="TCP_REPAIR needs CAP_NET_ADMIN")
@pytest.mark.parametrize("last", [False, True])
def test_an_end_behind_data_that_was_never_sent(sockets: Sockets, last: bool) -> None:
    """FIN_WAIT1, and LAST_ACK if the other side has said its end before."""
    listener, client, server = connection(sockets)
    if last:
        server.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    sent = fill(client)
    client.shutdown(socket.SHUT_WR)
    assert tcp_info(client)[0] == (LAST_ACK if last else FIN_WAIT1)
    listener, client, server = sockets.through(listener, client, server, tcp_established=True)
    assert tcp_info(client)[0] == (LAST_ACK if last else FIN_WAIT1)
    server.settimeout(20)
    assert received(server, sent) == bytes(range(256)) * (sent // 256)
    assert server.recv(1) == b""
    if last:
        assert client.recv(1) == b""
    else:
        server.send(b"answer")
        client.settimeout(20)
        assert client.recv(9) == b"answer"


@pytest.mark.skipif(os.geteuid() != 0, reason="TCP_REPAIR needs CAP_NET_ADMIN")
def test_a_half_closed_connection_of_a_mapped_address(sockets: Sockets) -> None:
    listener = sockets.one(V6, STREAM, "::", 0)
    listener.listen()
    client = sockets.one(V4)
    client.connect(("127.0.0.1", listener.getsockname()[1]))
    server = sockets.all.enter_context(listener.accept()[0])
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    while tcp_info(client)[0] != FIN_WAIT2:
        pass
    listener, client, server = sockets.through(listener, client, server, tcp_established=True)
    assert server.getpeername()[0] == "::ffff:127.0.0.1"
    assert (tcp_info(client)[0], tcp_info(server)[0]) == (FIN_WAIT2, CLOSE_WAIT)
    assert server.recv(1) == b""
    server.send(b"answer")
    client.settimeout(20)
    assert client.recv(9) == b"answer"


@pytest.mark.skipif(os.geteuid() != 0, reason="TCP_REPAIR needs CAP_NET_ADMIN")
def test_connection_runs_on_after_its_dump(sockets: Sockets) -> None:
    _, client, server = connection(sockets)
    client.send(b"queued")
    client.setsockopt(SOL, socket.SO_REUSEADDR, 1)
    Trip(sockets.place, tcp_established=True).dump(InetSk, client.fileno(), server.fileno())
    assert client.getsockopt(SOL, socket.SO_REUSEADDR) == 1
    client.send(b" more")
    server.settimeout(5)
    assert received(server, 11) == b"queued more"


def received(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += sock.recv(size)
    return data


@pytest.mark.parametrize(("family", "kind"), [(V4, STREAM), (V6, STREAM), (V4, DGRAM), (V6, DGRAM)])
def test_a_new_socket_has_no_more_options(sockets: Sockets, family: int, kind: int) -> None:
    trip = Trip(sockets.place)
    [file_id] = trip.dump(InetSk, sockets.one(family, kind).fileno())
    assert not trip.entries[file_id].isk.opts.more


def test_more_options_are_those_that_we_know(sockets: Sockets) -> None:
    trip = Trip(sockets.place)
    [file_id] = trip.dump(InetSk, sockets.one().fileno())
    trip.entries[file_id].isk.opts.more.add(level=TCP, number=19, value=b"\1\0\0\0")
    with pytest.raises(ImageError, match="socket option 6, 19: none of ours"):
        trip.restore(InetSk, file_id)


def test_datagrams_that_are_lost_are_told_of(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Log, "warning", lambda self, where, text: said.append(text))
    one, other = (sockets.one(V4, DGRAM, "127.0.0.1", 0) for _ in range(2))
    one.sendto(b"unread", other.getsockname())
    sockets.through(one, other)
    assert len(said) == 1 and "were not read" in said[0]


def test_a_connection_that_is_over(sockets: Sockets, tmp_path: Path) -> None:
    listener, client, server = connection(sockets)
    server.send(b"unread")
    server.setsockopt(SOL, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()
    with pytest.raises(Unsupported, match="unread data of a TCP connection that is over"):
        sockets.through(listener, client)
    assert client.recv(9) == b"unread"
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    sockets.place = tmp_path / "second"
    sockets.place.mkdir()
    listener, client = sockets.through(listener, client)
    assert client.recv(1) == b""
    with pytest.raises(BrokenPipeError):
        client.send(b"x")
