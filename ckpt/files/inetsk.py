# SPDX-License-Identifier: Apache-2.0
"""TCP, UDP and raw sockets, IPv4 and IPv6, on their own; connections are in tcpstream.

What the socket itself tells is asked of it, which works in any network namespace: of TCP all,
by TCP_INFO. sock_diag(7) is asked for the shut-down halves of UDP. Datagrams in a queue are not
saved, as CRIU does: UDP may lose any. Options: ip(7), ipv6(7), tcp(7).
"""

import _socket
import errno
import os
import socket
import struct
from collections.abc import Hashable
from typing import Any

from ckpt.errors import Unsupported
from ckpt.files import rawsk, tcpstream
from ckpt.files.kind import Dump, FileKind, NotNow, OpenFile, Restore
from ckpt.files.moreopts import MORE
from ckpt.files.sockopts import (
    SO_REUSEADDR,
    SOL_SOCKET,
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
from ckpt.files.tcpstream import CLOSE, ESTABLISHED, LISTEN, tcp_info
from ckpt.image import pb
from ckpt.kernel import sockdiag
from ckpt.kernel.arch import NR
from ckpt.kernel.glance import Glance
from ckpt.options import DumpOptions

_KNOWN = {
    (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
}
_IPV6_V6ONLY, _IPV6_TCLASS = 26, 67
_IP_TOS, _IP_TTL = 1, 2
_BOTH = 3
_UDP, _UDP_CORK = socket.IPPROTO_UDP, 1
# Field: level and option, of IPv4 and of IPv6.
_IP_FLAGS = {
    "freebind": {socket.AF_INET: (0, 15), socket.AF_INET6: (41, 78)},
    "pktinfo": {socket.AF_INET: (0, 8), socket.AF_INET6: (41, 49)},
}
_TCP_FLAGS = {"nodelay": 1, "cork": 3}
_TCP_NUMBERS = {"keepcnt": 6, "keepidle": 4, "keepintvl": 5}
_TCP_STATE = [(socket.IPPROTO_TCP, n) for n in (*_TCP_FLAGS.values(), *_TCP_NUMBERS.values())]
_STATE: dict[int, State] = {
    socket.AF_INET: State(
        *((0, _IP_TOS), (0, _IP_TTL), (0, 15), (0, 8)), *_TCP_STATE, *MORE[socket.AF_INET]
    ),
    socket.AF_INET6: State(
        *((41, _IPV6_V6ONLY), (41, _IPV6_TCLASS), (41, 78), (41, 49)),
        *_TCP_STATE,
        *MORE[socket.AF_INET6],
    ),
}
_TOLD = 32  # bytes of a struct tcp_info with what tcp_info tells, or of an address


class InetSk(FileKind):
    """A TCP, UDP or raw socket."""

    type = pb.FD_INETSK
    field = "isk"

    @classmethod
    def claims(cls, file: OpenFile) -> bool:
        """Recognise it by its address family."""
        return family(file) in (socket.AF_INET, socket.AF_INET6)

    @classmethod
    def check(cls, file: OpenFile, options: DumpOptions) -> None:
        """Refuse other protocols, connections without leave, clients not accepted yet."""
        with borrowed(file.fd) as sock:
            if (sock.type, sock.proto) not in _KNOWN and sock.type != socket.SOCK_RAW:
                raise Unsupported(
                    f"{file.name}: internet socket of type {sock.type}, protocol {sock.proto}",
                    hint="TCP, UDP and raw sockets can be dumped",
                )
            if sock.type == socket.SOCK_STREAM:
                _check_tcp(file, sock, options)
            elif sock.type == socket.SOCK_DGRAM and sock.getsockopt(_UDP, _UDP_CORK):
                raise NotNow(
                    f"{file.name}: a corked UDP socket", hint="try again when it is not (UDP_CORK)"
                )
        check_options(file)

    @classmethod
    def state(cls, file: OpenFile) -> Hashable | None:
        """Where it is, and options; a connection has to stand still."""
        sock = _socket.socket(fileno=file.fd)  # the family a plain number: that is quicker
        try:
            if sock.type == socket.SOCK_RAW:
                return None
            told = tcp_info(sock) if sock.proto == socket.IPPROTO_TCP else (CLOSE,)
            if told[0] not in (CLOSE, LISTEN) or tcpstream.is_over(sock):
                return None
            udp = sockdiag.inet_raw(file.fd) if sock.proto != socket.IPPROTO_TCP else b""
            options = _STATE[sock.family].read(file.fd)
            return None if options is None else (told, udp, sock.getsockname(), options)
        finally:
            sock.detach()

    @classmethod
    def glimpse(cls, file: OpenFile, glance: Glance) -> bool:
        """The same, of what stands still."""
        with borrowed(file.fd) as sock:
            if sock.proto != socket.IPPROTO_TCP:
                sockdiag.glimpse_inet(file.fd, glance)
            length = glance.out(content=_TOLD.to_bytes(4, "little"))
            glance.call(
                NR.getsockopt,
                file.fd,
                socket.IPPROTO_TCP,
                socket.TCP_INFO,
                glance.out(_TOLD),
                length,
            )
            length = glance.out(content=_TOLD.to_bytes(4, "little"))
            glance.call(NR.getsockname, file.fd, glance.out(_TOLD), length)
            _STATE[sock.family].glimpse(file.fd, glance)
        return True

    @classmethod
    def dump(cls, file: OpenFile, out: Dump) -> Any:
        """Ask the socket, and its connection if it has one."""
        with borrowed(file.fd) as sock:
            if sock.type == socket.SOCK_STREAM:
                _check_tcp(file, sock, out.options)
            state, backlog, shutdown = _state(sock, out)
            entry = pb.inet_sk_entry(
                **file.common(),
                ino=file.stat.st_ino,
                family=sock.family,
                type=sock.type,
                proto=sock.proto,
                state=state,
                backlog=backlog,
                **_addresses(sock),
                opts=dump_options(sock),
                ip_opts=_ip_options(sock),
                tcp_opts=_tcp_options(sock),
            )
            if shutdown:
                entry.shutdown = shutdown
            if sock.family == socket.AF_INET6:
                entry.v6only = bool(sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_V6ONLY))
            if sock.type != socket.SOCK_STREAM:
                out.later(lambda: warn_of_packets(file, out))
            if tcpstream.is_connection(sock) and not out.options.tcp_close:
                tcpstream.dump(file, sock, entry, out)
        return entry

    @classmethod
    def create(cls, entry: Any, make: Restore) -> int:
        """Make it, with its options first: several bear on what bind(2) allows."""
        with doing(f"socket {entry.family} {entry.type} {entry.proto}"):
            sock = socket.socket(entry.family, entry.type, entry.proto)
        try:
            _set_ip_options(sock, entry)
            restore_options(sock, entry.opts)
            _set_tcp_options(sock, entry)
            if sock.type == socket.SOCK_RAW:
                ends = address(sock, entry, "src"), address(sock, entry, "dst")
                rawsk.place(sock, entry.ip_opts.raw, *ends)
            elif entry.proto == socket.IPPROTO_TCP and entry.state == CLOSE and entry.shutdown:
                _shut(sock, _BOTH)
            elif entry.proto == socket.IPPROTO_TCP and entry.state not in (CLOSE, LISTEN):
                _connect(sock, entry, make)
            else:
                _place(sock, entry)
        except BaseException:
            sock.close()
            raise
        return sock.detach()


# --- dump


def _check_tcp(file: OpenFile, sock: socket.socket, options: DumpOptions) -> None:
    state, waiting, _ = tcp_info(sock)
    if state == LISTEN and waiting and not options.skip_in_flight:
        raise NotNow(
            f"{file.name}: {waiting} TCP connections wait to be accepted",
            hint="try again once the server has accepted them, or lose them: --skip-in-flight",
        )
    if tcpstream.is_over(sock):
        tcpstream.check_over(file, sock)
    if tcpstream.is_connection(sock):
        tcpstream.check(file, state, options)


def _state(sock: socket.socket, out: Dump) -> tuple[int, int, int]:
    """Return TCP's state, which UDP has too, the backlog, and the shut halves (1 read, 2 write)."""
    if sock.type == socket.SOCK_RAW:
        return CLOSE, 0, 0
    if sock.proto == socket.IPPROTO_TCP:
        state, _, backlog = tcp_info(sock)
        if tcpstream.is_over(sock):
            return CLOSE, 0, _BOTH
        return state, backlog if state == LISTEN else 0, tcpstream.SHUT.get(state, 0)
    if not sock.getsockname()[1]:
        return CLOSE, 0, 0
    state = ESTABLISHED if _peer(sock) else CLOSE
    family = sock.family
    table = out.memo_now(("udp", family), lambda: sockdiag.inet(family, socket.IPPROTO_UDP))
    diag = table.get(os.fstat(sock.fileno()).st_ino)
    return state, 0, diag.shutdown if diag else 0


def _peer(sock: socket.socket) -> Any:
    try:
        return sock.getpeername()
    except OSError:
        return None


def _words(sock: socket.socket, address: str) -> list[int]:
    """Return an address as the image has it: 32-bit words of its bytes, in our byte order."""
    packed = socket.inet_pton(sock.family, address.partition("%")[0])
    return list(struct.unpack(f"={len(packed) // 4}I", packed))


def _addresses(sock: socket.socket) -> dict[str, Any]:
    """Return both ends; ifname is the device that a link-local address belongs to."""
    nowhere = ("0.0.0.0" if sock.family == socket.AF_INET else "::", 0)
    source: tuple[Any, ...] = nowhere if tcpstream.is_over(sock) else sock.getsockname()
    target: tuple[Any, ...] = _peer(sock) or nowhere
    fields: dict[str, Any] = {
        "src_addr": _words(sock, source[0]),
        "src_port": source[1],
        "dst_addr": _words(sock, target[0]),
        "dst_port": target[1],
    }
    if sock.type == socket.SOCK_RAW and (words := rawsk.peer(sock)):
        fields["dst_addr"] = words
    scopes = [end[3] for end in (source, target) if len(end) == 4 and end[3]]
    if scopes:
        fields["ifname"] = socket.if_indextoname(scopes[0])
    return fields


def _ip_options(sock: socket.socket) -> pb.ip_opts_entry:
    """Return what is on. The time to live of IPv6 is not kept, as with CRIU."""
    fields: dict[str, Any] = {}
    for field, options in _IP_FLAGS.items():
        if sock.getsockopt(*options[socket.AddressFamily(sock.family)]):
            fields[field] = True
    if sock.family == socket.AF_INET:
        fields["ttl"] = sock.getsockopt(socket.IPPROTO_IP, _IP_TTL)
    if tos := sock.getsockopt(*_tos(sock)):
        fields["tos"] = tos
    if sock.type == socket.SOCK_RAW:
        fields["raw"] = rawsk.dump_options(sock)
    return pb.ip_opts_entry(**fields)


def _tos(sock: socket.socket) -> tuple[int, int]:
    if sock.family == socket.AF_INET:
        return socket.IPPROTO_IP, _IP_TOS
    return socket.IPPROTO_IPV6, _IPV6_TCLASS


def _tcp_options(sock: socket.socket) -> pb.tcp_opts_entry:
    if sock.type != socket.SOCK_STREAM:
        return pb.tcp_opts_entry()
    numbers = {f: sock.getsockopt(socket.IPPROTO_TCP, o) for f, o in _TCP_NUMBERS.items()}
    flags = {f: True for f, o in _TCP_FLAGS.items() if sock.getsockopt(socket.IPPROTO_TCP, o)}
    fields: dict[str, Any] = numbers | flags
    return pb.tcp_opts_entry(**fields)


# --- restore


def address(sock: socket.socket, entry: pb.inet_sk_entry, end: str) -> tuple[Any, ...]:
    """Return an end ("src", "dst") as bind(2) and connect(2) want it."""
    words = list(getattr(entry, f"{end}_addr"))
    size = 1 if sock.family == socket.AF_INET else 4
    text = socket.inet_ntop(sock.family, struct.pack(f"={size}I", *words[:size]))
    port = getattr(entry, f"{end}_port")
    if size == 1:
        return text, port
    local = text.startswith(("fe80:", "ff"))
    with doing(f"look for network device {entry.ifname}"):
        scope = socket.if_nametoindex(entry.ifname) if entry.ifname and local else 0
    return text, port, 0, scope


def _set_ip_options(sock: socket.socket, entry: pb.inet_sk_entry) -> None:
    if entry.HasField("v6only") and sock.family == socket.AF_INET6:
        only = int(entry.v6only)
        if sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_V6ONLY) != only:  # a raw one is bound already
            set_option(sock, socket.IPPROTO_IPV6, _IPV6_V6ONLY, only)
    for field, options in _IP_FLAGS.items():
        if getattr(entry.ip_opts, field):
            set_option(sock, *options[socket.AddressFamily(sock.family)], 1)
    if entry.ip_opts.tos:
        set_option(sock, *_tos(sock), entry.ip_opts.tos)
    ttl = entry.ip_opts.ttl
    if ttl and sock.family == socket.AF_INET:
        set_option(sock, socket.IPPROTO_IP, _IP_TTL, ttl)


def _set_tcp_options(sock: socket.socket, entry: pb.inet_sk_entry) -> None:
    if sock.type != socket.SOCK_STREAM:
        return
    for field, option in (_TCP_NUMBERS | _TCP_FLAGS).items():
        value = int(getattr(entry.tcp_opts, field))
        known = entry.tcp_opts.HasField(field)
        if known and sock.getsockopt(socket.IPPROTO_TCP, option) != value:
            set_option(sock, socket.IPPROTO_TCP, option, value)


def _connect(sock: socket.socket, entry: pb.inet_sk_entry, make: Restore) -> None:
    """Make a connection again, or have it be one that has ended."""
    if make.options.tcp_close:
        _shut(sock, _BOTH)
        return
    ends = address(sock, entry, "src"), address(sock, entry, "dst")
    tcpstream.restore(sock, entry, ends, make)


def _place(sock: socket.socket, entry: pb.inet_sk_entry) -> None:
    """Bind, connect, listen, shut, as far as it was."""
    # Old connections that linger in TIME_WAIT must not keep a server from its port.
    if sock.proto == socket.IPPROTO_TCP:
        set_option(sock, SOL_SOCKET, SO_REUSEADDR, 1)
    source, target = (address(sock, entry, end) for end in ("src", "dst"))
    if entry.src_port:
        with doing(f"bind {source[0]} port {source[1]}"):
            sock.bind(source)
    if entry.dst_port:
        with doing(f"connect to {target[0]} port {target[1]}"):
            sock.connect(target)
    if entry.state == LISTEN and sock.proto == socket.IPPROTO_TCP:
        with doing(f"listen on {source[0]} port {source[1]}"):
            sock.listen(entry.backlog)
    set_option(sock, SOL_SOCKET, SO_REUSEADDR, int(entry.opts.reuseaddr))
    if entry.shutdown:
        _shut(sock, entry.shutdown)


def _shut(sock: socket.socket, halves: int) -> None:
    try:
        sock.shutdown(halves - 1)
    except OSError as error:
        if error.errno != errno.ENOTCONN:  # said of one without a peer, though it is done
            raise
