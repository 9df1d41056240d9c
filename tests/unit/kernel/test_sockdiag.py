# SPDX-License-Identifier: Apache-2.0
"""Socket queries, on sockets made here."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ckpt.errors import KernelError
from ckpt.kernel import sockdiag

ESTABLISHED, CLOSE_WAIT, CLOSED, LISTEN = 1, 8, 7, 10
LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def _ino(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def test_unix_pair(stack: ExitStack) -> None:
    a, b = (stack.enter_context(end) for end in socket.socketpair())
    a.send(b"hello")
    a.shutdown(socket.SHUT_WR)
    found = sockdiag.unix([_ino(a), _ino(b)])
    assert found[_ino(a)].peer == _ino(b) and found[_ino(b)].peer == _ino(a)
    assert (found[_ino(b)].rqueue, found[_ino(a)].wqueue > 0) == (5, True)
    assert (found[_ino(a)].shutdown, found[_ino(b)].shutdown) == (2, 1)
    assert (found[_ino(a)].type, found[_ino(a)].state) == (socket.SOCK_STREAM, ESTABLISHED)


def test_unix_listener_and_its_pending_clients(stack: ExitStack) -> None:
    name = f"\0ckpt-test-{os.getpid()}"
    listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    listener.bind(name)
    listener.listen(7)
    clients = [
        stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) for _ in "abc"
    ]
    for client in clients:
        client.connect(name)
    diag = sockdiag.unix([_ino(listener)])[_ino(listener)]
    assert (diag.state, diag.name, diag.peer) == (LISTEN, name.encode(), 0)
    assert diag.icons == tuple(map(_ino, clients))
    assert (diag.rqueue, diag.wqueue) == (3, 7)


def test_unix_bound_to_a_file(stack: ExitStack, tmp_path: Path) -> None:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    path = tmp_path / "s"
    sock.bind(str(path))
    diag = sockdiag.unix([_ino(sock)])[_ino(sock)]
    assert (diag.name, diag.vfs_ino) == (bytes(path) + b"\0", path.stat().st_ino)


def test_unix_all_and_many_say_the_same_as_one(stack: ExitStack) -> None:
    pairs = [socket.socketpair() for _ in range(40)]
    inos = [_ino(stack.enter_context(end)) for pair in pairs for end in pair]
    many, everything = sockdiag.unix(inos), sockdiag.unix()
    assert set(many) == set(inos) and set(inos) <= set(everything)
    assert sockdiag.unix(inos[:1])[inos[0]] == many[inos[0]] == everything[inos[0]]


def test_unix_that_is_not_there() -> None:
    assert sockdiag.unix([2**32 - 1]) == {}


@pytest.mark.parametrize("family", LOOPBACK)
def test_tcp(stack: ExitStack, family: socket.AddressFamily) -> None:
    listener = stack.enter_context(socket.create_server((LOOPBACK[family], 0), family=family))
    client = stack.enter_context(socket.socket(family))
    client.connect(listener.getsockname())
    server = stack.enter_context(listener.accept()[0])
    client.sendall(b"abc")
    client.shutdown(socket.SHUT_WR)
    found = sockdiag.inet(family, socket.IPPROTO_TCP)
    ends = {sock: found[_ino(sock)] for sock in (listener, client, server)}
    assert (ends[listener].state, ends[server].state) == (LISTEN, CLOSE_WAIT)
    assert (ends[client].src, ends[client].src_port) == client.getsockname()[:2]
    assert (ends[client].dst, ends[client].dst_port) == listener.getsockname()[:2]
    assert (ends[server].rqueue, ends[client].shutdown, ends[server].shutdown) == (4, 2, 1)
    for sock, diag in ends.items():
        assert sockdiag.inet_of(sock.fileno()) == diag


@pytest.mark.parametrize("family", LOOPBACK)
def test_udp(stack: ExitStack, family: socket.AddressFamily) -> None:
    bound = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
    bound.bind((LOOPBACK[family], 0))
    connected = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
    connected.connect(bound.getsockname())
    found = sockdiag.inet(family, socket.IPPROTO_UDP)
    assert (found[_ino(bound)].state, found[_ino(connected)].state) == (CLOSED, ESTABLISHED)
    assert (found[_ino(connected)].protocol, found[_ino(connected)].ifindex) == (17, 0)
    for sock in (bound, connected):
        assert sockdiag.inet_of(sock.fileno()) == found[_ino(sock)]


def test_ipv4_through_an_ipv6_socket(stack: ExitStack) -> None:
    listener = stack.enter_context(
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    )
    client = stack.enter_context(socket.create_connection(("127.0.0.1", listener.getsockname()[1])))
    server = stack.enter_context(listener.accept()[0])
    diag = sockdiag.inet_of(server.fileno())
    assert diag is not None and (diag.ino, diag.dst) == (_ino(server), "::ffff:127.0.0.1")
    assert not sockdiag.inet(socket.AF_INET6, socket.IPPROTO_TCP)[_ino(listener)].v6only
    assert client.fileno() >= 0


def test_tcp_in_no_table(stack: ExitStack) -> None:
    sock = stack.enter_context(socket.socket())
    assert sockdiag.inet_of(sock.fileno()) is None
    assert sock.fileno() >= 0


def test_reuseport_never_answers_with_another_socket(stack: ExitStack) -> None:
    first = stack.enter_context(socket.create_server(("127.0.0.1", 0), reuse_port=True))
    address = first.getsockname()
    others = [stack.enter_context(socket.create_server(address, reuse_port=True)) for _ in "abc"]
    for sock in (first, *others):
        diag = sockdiag.inet_of(sock.fileno())
        assert diag is None or diag.ino == _ino(sock)


def test_a_protocol_the_kernel_cannot_tell_of() -> None:
    with pytest.raises(KernelError) as raised:
        sockdiag.inet(socket.AF_INET, 99)
    assert "CONFIG_INET_DIAG" in str(raised.value.hint)
