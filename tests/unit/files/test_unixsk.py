# SPDX-License-Identifier: Apache-2.0
import contextlib
import gc
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt.errors import ImageError, KernelError, Unsupported
from ckpt.files import senders
from ckpt.files.skqueue import packets
from ckpt.files.unixsk import UnixSk
from ckpt.image import pb
from ckpt.kernel import sockdiag
from tests.unit.files.roundtrip import Trip

STREAM, DGRAM, SEQPACKET = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET
KINDS = [STREAM, DGRAM, SEQPACKET]
PEEK_OFF = 42


class Sockets:
    """Makes sockets that the test need not close, and takes them through an image."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.all = contextlib.ExitStack()
        self.trip: Trip | None = None

    def keep(self, *socks: socket.socket) -> list[socket.socket]:
        return [self.all.enter_context(sock) for sock in socks]

    def pair(self, kind: int = STREAM) -> list[socket.socket]:
        return self.keep(*socket.socketpair(socket.AF_UNIX, kind))

    def one(self, kind: int = STREAM, name: str | bytes = "") -> socket.socket:
        [sock] = self.keep(socket.socket(socket.AF_UNIX, kind))
        if name:
            sock.bind(name)
        return sock

    def through(self, *socks: socket.socket, close: bool = True, **options) -> list[socket.socket]:
        """Dump these, close them, make them again."""
        self.trip = Trip(self.place, **options)
        ids = self.trip.dump(UnixSk, *(sock.fileno() for sock in socks))
        if close:
            for sock in socks:
                sock.close()
        made = self.trip.restore(UnixSk, *ids)
        return self.keep(*(socket.socket(fileno=fd) for fd in made))


@pytest.fixture
def sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sockets]:
    monkeypatch.chdir(tmp_path)
    made = Sockets(tmp_path)
    with made.all:
        yield made


def open_count() -> int:
    """How many descriptors we have; what nobody holds any more is closed first."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def drained(sock: socket.socket) -> list[bytes]:
    """All that can be read at once; the end of a stream is b""."""
    got: list[bytes] = []
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while not got or got[-1]:
            got.append(sock.recv(1 << 20))
    return got


@pytest.mark.parametrize("kind", KINDS)
def test_pair_keeps_both_queues(sockets: Sockets, kind: int) -> None:
    a, b = sockets.pair(kind)
    a.send(b"to b")
    a.send(b"more" * 30_000)
    b.send(b"to a")
    c, d = sockets.through(a, b)
    assert c.type == d.type == kind
    want = [b"to b", b"more" * 30_000]
    assert drained(d) == (want if kind != STREAM else [b"".join(want)])
    assert drained(c) == [b"to a"]
    c.send(b"new")
    assert d.recv(10) == b"new"


def test_nothing_is_consumed(sockets: Sockets) -> None:
    a, b = sockets.pair(DGRAM)
    b.setsockopt(socket.SOL_SOCKET, PEEK_OFF, 3)
    a.send(b"one")
    a.send(b"")
    a.send(b"three")
    sockets.through(a, b, close=False)
    assert b.getsockopt(socket.SOL_SOCKET, PEEK_OFF) == 3
    assert [b.recv(9) for _ in range(3)] == [b"one", b"", b"three"]


def test_empty_packets(sockets: Sockets) -> None:
    a, b = sockets.pair(SEQPACKET)
    for packet in (b"", b"x", b"", b""):
        a.send(packet)
    _, d = sockets.through(a, b)
    assert [d.recv(9) for _ in range(4)] == [b"", b"x", b"", b""]


@pytest.mark.parametrize("kind", [STREAM, SEQPACKET])
def test_other_end_closed(sockets: Sockets, kind: int) -> None:
    a, b = sockets.pair(kind)
    a.send(b"last words")
    a.close()
    [d] = sockets.through(b)
    assert d.recv(100) == b"last words"
    assert d.recv(100) == b""
    with pytest.raises(BrokenPipeError):
        d.send(b"x")


def test_reset_is_left_for_the_target(sockets: Sockets) -> None:
    a, b = sockets.pair()
    a.send(b"last words")
    b.send(b"never read")
    a.close()
    [d] = sockets.through(b, close=False)
    assert d.recv(100) == b.recv(100) == b"last words"
    with pytest.raises(ConnectionResetError):
        b.recv(1)


def test_other_end_of_datagrams_closed(sockets: Sockets) -> None:
    a, b = sockets.pair(DGRAM)
    a.send(b"last words")
    a.close()
    [d] = sockets.through(b)
    assert d.recv(100) == b"last words"
    with pytest.raises(ConnectionRefusedError):
        d.send(b"x")


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])
def test_shut_halves(sockets: Sockets, how: int) -> None:
    a, b = sockets.pair()
    a.send(b"before")
    a.shutdown(how)
    before = [state.shutdown for state in diags(a, b)]
    c, d = sockets.through(a, b)
    assert [state.shutdown for state in diags(c, d)] == before
    assert d.recv(10) == b"before"


def diags(*socks: socket.socket) -> list[sockdiag.UnixDiag]:
    inos = [os.fstat(sock.fileno()).st_ino for sock in socks]
    found = sockdiag.unix(inos)
    return [found[ino] for ino in inos]


@pytest.mark.parametrize("name", ["relative.sock", "{place}/absolute.sock", "\0ckpt-{pid}"])
def test_listener_and_its_connection(sockets: Sockets, tmp_path: Path, name: str) -> None:
    name = name.format(place=tmp_path, pid=os.getpid())
    listener = sockets.one(STREAM, name)
    if name[0] != "\0":
        os.chmod(name, 0o640)
    listener.listen(7)
    client = sockets.one()
    client.connect(name)
    server = sockets.keep(listener.accept()[0])[0]
    client.send(b"request")
    server.send(b"response")
    server, listener, client = sockets.through(server, listener, client)
    shown = os.fsencode(name) if name[0] == "\0" else name
    assert server.getsockname() == listener.getsockname() == client.getpeername() == shown
    assert client.getsockname() == ""
    assert (server.recv(10), client.recv(10)) == (b"request", b"response")
    assert diags(listener)[0].wqueue == 7
    other = sockets.one()
    other.connect(name)
    sockets.keep(listener.accept()[0])
    if name[0] != "\0":
        assert os.stat(name).st_mode & 0o777 == 0o640


def test_accepted_of_a_listener_that_is_gone(sockets: Sockets) -> None:
    listener = sockets.one(STREAM, "gone.sock")
    listener.listen()
    ends = []
    for _ in range(2):
        client = sockets.one()
        client.connect("gone.sock")
        ends += [client, *sockets.keep(listener.accept()[0])]
    listener.close()
    ends = sockets.through(*ends)
    assert [end.getsockname() for end in ends] == ["", "gone.sock"] * 2
    ends[0].send(b"first")
    ends[2].send(b"second")
    assert (ends[1].recv(9), ends[3].recv(9)) == (b"first", b"second")


def test_waiting_client(sockets: Sockets) -> None:
    name = b"\0ckpt-wait-%d" % os.getpid()
    listener = sockets.one(STREAM, name)
    listener.listen(3)
    client = sockets.one(STREAM, b"\0ckpt-client-%d" % os.getpid())
    client.connect(name)
    client, listener = sockets.through(client, listener)
    server, address = listener.accept()
    sockets.keep(server)
    assert address == b"\0ckpt-client-%d" % os.getpid()
    client.send(b"x")
    assert server.recv(1) == b"x"


def test_waiting_client_that_sent(sockets: Sockets) -> None:
    listener = sockets.one(STREAM, "l.sock")
    listener.listen(3)
    client = sockets.one()
    client.connect("l.sock")
    client.send(b"early")
    with pytest.raises(Unsupported, match="before it was accepted"):
        sockets.through(listener, client)


@pytest.mark.parametrize("kind", [STREAM, SEQPACKET])
def test_waiting_clients_are_accepted_in_their_order(sockets: Sockets, kind: int) -> None:
    listener = sockets.one(kind, "l.sock")
    listener.listen(3)
    clients = [sockets.one(kind, f"{n}.sock") for n in range(3)]
    for n in (2, 0, 1):
        clients[n].connect("l.sock")
    *clients, listener = sockets.through(*clients, listener)
    assert [sockets.keep(listener.accept()[0])[0].getpeername() for _ in clients] == [
        "2.sock", "0.sock", "1.sock",
    ]  # fmt: skip


def test_a_waiting_client_that_has_closed_again(sockets: Sockets) -> None:
    listener = sockets.one(STREAM, "l.sock")
    listener.listen(3)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("l.sock")
        client.send(b"request")
    with pytest.raises(Unsupported, match="has closed again"):
        sockets.through(listener)
    assert sockets.keep(listener.accept()[0])[0].recv(99) == b"request"


def test_a_waiting_client_that_has_ended_both_halves(sockets: Sockets) -> None:
    listener = sockets.one(STREAM, "l.sock")
    listener.listen(3)
    listener.setblocking(False)
    client = sockets.one()
    client.connect("l.sock")
    client.shutdown(socket.SHUT_RDWR)
    listener, client = sockets.through(listener, client)
    assert sockets.keep(listener.accept()[0])[0].recv(9) == b""


def test_waiting_client_outside(sockets: Sockets) -> None:
    listener = sockets.one(STREAM, "l.sock")
    listener.listen(3)
    client = sockets.one()
    client.connect("l.sock")
    with pytest.raises(Unsupported, match="outside the dump waits"):
        sockets.through(listener)
    sockets.place /= "again"
    sockets.place.mkdir()
    with pytest.raises(Unsupported, match="outside the dump to accept"):
        sockets.through(client)


@pytest.mark.parametrize("kind", KINDS)
def test_bound_and_unbound(sockets: Sockets, kind: int) -> None:
    bound = sockets.one(kind, "bound.sock")
    unbound = sockets.one(kind)
    auto = sockets.one(kind)
    auto.bind("")
    name = auto.getsockname()
    bound, unbound, auto = sockets.through(bound, unbound, auto)
    assert (bound.getsockname(), unbound.getsockname()) == ("bound.sock", "")
    assert auto.getsockname() == name
    assert bound.type == unbound.type == kind


def test_datagrams_to_a_name(sockets: Sockets) -> None:
    server = sockets.one(DGRAM, "server.sock")
    client = sockets.one(DGRAM, "client.sock")
    client.connect("server.sock")
    client.send(b"one")
    client.send(b"two")
    client, server = sockets.through(client, server)
    assert client.getpeername() == "server.sock"
    assert drained(server) == [b"one", b"two"]
    client.send(b"three")
    assert server.recvfrom(10) == (b"three", "client.sock")


def test_deleted_path(sockets: Sockets) -> None:
    server = sockets.one(DGRAM, "server.sock")
    client = sockets.one(DGRAM)
    client.connect("server.sock")
    os.unlink("server.sock")
    Path("server.sock").write_text("another file now")
    client.send(b"one")
    client, server = sockets.through(client, server)
    assert sockets.trip.entries[2].usk.deleted
    assert Path("server.sock").read_text() == "another file now"
    assert (client.getpeername(), server.recv(9)) == ("server.sock", b"one")
    client.send(b"two")
    assert server.recv(9) == b"two"


def test_stale_file_is_replaced_but_nothing_else(sockets: Sockets) -> None:
    server = sockets.one(STREAM, "s.sock")
    server.listen()
    with pytest.raises(KernelError, match="in use"):
        sockets.through(server, close=False)
    server.close()
    Path("s.sock").unlink()
    Path("s.sock").write_text("precious")
    with pytest.raises(KernelError, match="in use"):
        sockets.trip.restore(UnixSk, 1)
    assert Path("s.sock").read_text() == "precious"


def test_peer_outside(sockets: Sockets, tmp_path: Path) -> None:
    a, _ = sockets.pair()
    with pytest.raises(Unsupported, match="outside the dump"):
        sockets.through(a)


def test_datagram_peer_outside(sockets: Sockets, tmp_path: Path) -> None:
    outside = sockets.one(DGRAM, str(tmp_path / "out.sock"))
    client = sockets.one(DGRAM)
    client.connect(str(tmp_path / "out.sock"))
    with pytest.raises(Unsupported, match="outside the dump") as refused:
        sockets.through(client)
    assert refused.value.hint == "use --ext-unix-sk"
    sockets.place = tmp_path / "again"
    sockets.place.mkdir()
    [client] = sockets.through(client, ext_unix_sk=True)
    client.send(b"hello")
    assert outside.recv(9) == b"hello"
    [record] = [e.usk for e in sockets.trip.entries.values() if e.usk.uflags]
    assert (record.uflags, record.state, record.type) == (1, 10, DGRAM)


def told(sock: socket.socket) -> list[tuple[bytes, tuple[int, ...]]]:
    """Read all, and who it is from."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            data, control, *_ = sock.recvmsg(100, 100, socket.MSG_DONTWAIT)
            [from_ids] = [value for _, kind, value in control if kind == socket.SCM_CREDENTIALS]
            found.append((data, struct.unpack("iII", from_ids)))
    return found


def send_as(sock: socket.socket, data: bytes, *ids: int) -> None:
    control = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("iII", *ids))]
    sock.sendmsg([data], control)


@pytest.mark.parametrize("kind", KINDS)
def test_senders(sockets: Sockets, kind: int) -> None:
    """Told or not, here or gone; and nothing is left of who stood in for them."""
    a, b = sockets.pair(kind)
    us, odd = (os.getpid(), os.getuid(), os.getgid()), (os.getppid(), 7, 8)
    a.send(b"nobody")
    a.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    a.send(b"us")
    send_as(a, b"odd", *odd)
    if not (gone := os.fork()):
        send_as(a, b"gone", os.getpid(), 0, 0)
        os._exit(0)
    os.waitpid(gone, 0)
    sockets.trip = Trip(sockets.place)
    ids = sockets.trip.dump(UnixSk, a.fileno(), b.fileno())
    expected = [(b"nobody", (0, 65534, 65534)), (b"us", us), (b"odd", odd), (b"gone", (gone, 0, 0))]
    assert b.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED) == 0
    assert told(b) == expected
    a.close()
    b.close()
    _, d = sockets.keep(*(socket.socket(fileno=fd) for fd in sockets.trip.restore(UnixSk, *ids)))
    assert told(d) == expected
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, 0)


def test_what_tells_of_a_sender_and_cannot_be_sent() -> None:
    credentials = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("iII", 0, 1000, 1000))
    assert "another pid namespace" in senders.hindrance([credentials])
    assert "security label" in senders.hindrance([(socket.SOL_SOCKET, 3, b"label")])


def test_a_pidfd_of_a_sender(sockets: Sockets) -> None:
    a, b = sockets.pair(DGRAM)
    try:
        b.setsockopt(socket.SOL_SOCKET, 76, 1)  # SO_PASSPIDFD
    except OSError:
        pytest.skip("no SO_PASSPIDFD")
    a.send(b"x")
    before = open_count()
    with pytest.raises(Unsupported, match="a pidfd of a sender"):
        packets(b, "it")
    assert open_count() == before


def test_a_damaged_sender(sockets: Sockets) -> None:
    a, b = sockets.pair()
    sockets.trip = Trip(sockets.place)
    ids = sockets.trip.dump(UnixSk, a.fileno(), b.fileno())
    with sockets.trip.image.writer("sk-queues") as writer:
        nobody = pb.sk_sender_entry(pid=-1, uid=0, gid=0)
        writer.append(pb.sk_packet_entry(id_for=ids[0], length=1, sender=nobody), b"x")
    with pytest.raises(ImageError, match="a sender of pid -1"):
        sockets.trip.restore(UnixSk, *ids)


@pytest.mark.parametrize("kind", KINDS)
def test_in_flight(sockets: Sockets, kind: int) -> None:
    """Pieces end where descriptors travel, and nothing is taken away."""
    a, b = sockets.pair(kind)
    before = open_count()
    a.send(b"plain")
    socket.send_fds(a, [b"x" * 100_000], [0, 0])
    a.send(b"behind")
    socket.send_fds(a, [b"y"], [1])
    for _ in range(2):
        found = packets(b, "it")
        plain = [one.data for one in found if not one.files]
        assert plain[0] == b"plain" and b"".join(plain[1:]).endswith(b"behind")
        assert [len(one.files) for one in found if one.files] == [2, 1]
        for fd in (fd for one in found for fd in one.files):
            assert not os.get_inheritable(fd)
            os.close(fd)
    assert b.getsockopt(socket.SOL_SOCKET, PEEK_OFF) == -1
    assert open_count() == before
    assert socket.recv_fds(b, 5, 10)[:2] == (b"plain", [])
    assert len(socket.recv_fds(b, 1 << 20, 10)[1]) == 2


def test_descriptors_that_are_refused_are_closed(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = sockets.pair(DGRAM)
    socket.send_fds(a, [b"x"], [0, 1])
    b.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    socket.send_fds(a, [b"x"], [0, 1])
    before = open_count()
    monkeypatch.setattr(senders, "hindrance", lambda it: "something" * bool(senders.sender(it)))
    with pytest.raises(Unsupported, match="something in flight"):
        packets(b, "it")
    assert open_count() == before


def test_damaged_rights(sockets: Sockets) -> None:
    a, b = sockets.pair()
    sockets.trip = Trip(sockets.place)
    ids = sockets.trip.dump(UnixSk, a.fileno(), b.fileno())
    with sockets.trip.image.writer("sk-queues") as writer:
        entry = pb.sk_packet_entry(id_for=ids[0], length=1)
        entry.scm.add(type=socket.SCM_RIGHTS, rights=[ids[0]] * 254)
        writer.append(entry, b"x")
    with pytest.raises(ImageError, match="254 files in one packet"):
        sockets.trip.restore(UnixSk, *ids)


def test_options_and_flags(sockets: Sockets) -> None:
    a, b = sockets.pair()
    a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 50_000)
    a.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    b.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 9))
    b.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 3, 252_000))
    a.send(b"queued")
    c, d = sockets.through(a, b)
    assert c.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 100_000
    assert c.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED) == 1
    assert c.getsockopt(socket.SOL_SOCKET, 72) == 1
    assert d.getsockopt(socket.SOL_SOCKET, 72) == 0
    assert d.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == struct.pack("ii", 1, 9)
    timeout = d.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)
    assert timeout == struct.pack("ll", 3, 252_000)
    assert c.getsockname() == ""


def test_missing_peer_in_image(sockets: Sockets) -> None:
    sockets.through(*sockets.pair())
    del sockets.trip.entries[2]
    with pytest.raises(ImageError, match="peer is not in the image"):
        sockets.trip.restore(UnixSk, 1)
