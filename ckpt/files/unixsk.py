# SPDX-License-Identifier: Apache-2.0
"""unix(7) sockets: streams, datagrams, sequences of packets; what is queued goes to skqueue.

A peer is named by its inode, which only sock_diag(7) tells. It tells less than it seems:

- state is kept for datagrams too: connecting marks both ends as established;
- a client that waits to be accepted has no peer yet; its inode is among its listener's icons;
- wqueue is a listener's backlog.
"""

import socket
from collections.abc import Hashable, Iterable
from functools import lru_cache
from typing import Any

from ckpt.errors import Unsupported
from ckpt.files.kind import Dump, FileKind, NotNow, OpenFile, Restore
from ckpt.files.moreopts import MORE
from ckpt.files.skqueue import dump_queue, first_carries, queued
from ckpt.files.sockopts import State, borrowed, check_options, dump_options, family
from ckpt.files.unixmake import ESTABLISHED, EXTERNAL, LISTEN, make_all
from ckpt.files.unixname import dump_place
from ckpt.image import pb
from ckpt.image.text import set_text
from ckpt.kernel import sockdiag
from ckpt.kernel.glance import Glance
from ckpt.kernel.sockdiag import UnixDiag
from ckpt.options import DumpOptions

_BOTH = 3
_OPTIONS = State(*MORE[socket.AF_UNIX])
Table = dict[int, UnixDiag]


class UnixSk(FileKind):
    """A unix socket."""

    type = pb.FD_UNIXSK
    field = "usk"
    looks_around = True

    @classmethod
    def claims(cls, file: OpenFile) -> bool:
        """Recognise it by its address family."""
        return family(file) == socket.AF_UNIX

    @classmethod
    def check(cls, file: OpenFile, options: DumpOptions) -> None:
        """Refuse a peer outside, and what travels in queues besides bytes."""
        diag = _find(file, sockdiag.unix({file.stat.st_ino}))
        # All sockets are asked for only if it takes to find the other end.
        outside = diag.peer and _outside(file, diag.peer)
        table = sockdiag.unix() if outside or _is_alone(diag) else {}
        if not (outside and _may_be_in_flight(file, table)):
            _check_peer(file, diag, table, options)
        check_options(file)

    @classmethod
    def carried(cls, file: OpenFile, out: Dump | None) -> Iterable[int]:
        """Look into its queue."""
        diag = _find(file, sockdiag.unix({file.stat.st_ino}))
        if not _may_have_queue(diag) or _is_alone(diag):
            return ()
        with borrowed(file.fd) as sock:
            if out is None:
                return first_carries(sock, file.name) if diag.rqueue else ()
            return [fd for one in queued(file, sock, diag.shutdown, out) for fd in one.files]

    @classmethod
    def state(cls, file: OpenFile) -> Hashable | None:
        """What sock_diag tells, and options; nothing may be queued, nor may somebody wait."""
        found = sockdiag.unix_raw(file.stat.st_ino)
        options = _OPTIONS.read(file.fd) if _is_settled(found) else None
        return None if options is None else (found, options)

    @classmethod
    def glimpse(cls, file: OpenFile, glance: Glance) -> bool:
        """The same."""
        sockdiag.glimpse_unix(file.stat.st_ino, glance)
        _OPTIONS.glimpse(file.fd, glance)
        return True

    @classmethod
    def dump(cls, file: OpenFile, out: Dump) -> Any:
        """Write its queue, and the socket; the table of all sockets is asked for once a dump."""
        table = out.memo_now("unix sockets", sockdiag.unix)
        diag = _find(file, table)
        listener = _check_peer(file, diag, table, out.options)
        if listener:
            out.passing()
        if diag.peer and _outside(file, diag.peer):
            _dump_outside(table[diag.peer], out)
        place = dump_place(file, diag.name)
        directory = place.pop("name_dir", "")
        entry = pb.unix_sk_entry(
            **file.common(),
            ino=diag.ino,
            type=diag.type,
            state=diag.state,
            uflags=0,
            backlog=diag.wqueue,
            peer=listener or diag.peer,
            name=diag.name,
            **place,
        )
        if directory:
            set_text(entry, "name_dir", directory)
        if diag.shutdown:
            entry.shutdown = diag.shutdown
        entry.waiting.extend(diag.icons)
        with borrowed(file.fd) as sock:
            entry.opts.CopyFrom(dump_options(sock))
            if _may_have_queue(diag) and not listener:
                dump_queue(file, sock, diag.shutdown, out)
        return entry

    @classmethod
    def create(cls, entry: Any, make: Restore) -> int:
        """Make all unix sockets of the image at first, and hand them out one by one."""
        made: dict[int, socket.socket] = make.once("unix sockets", lambda: make_all(make))
        return made.pop(entry.id).detach()


@lru_cache
def _is_settled(found: bytes) -> bool:
    """Say of what sock_diag tells whether nothing is queued there and nobody waits."""
    diag = sockdiag.parse_unix(found)
    queue = diag.icons if diag.state == LISTEN else _may_have_queue(diag)
    return not queue and not _is_alone(diag)


def _find(file: OpenFile, table: Table) -> UnixDiag:
    try:
        return table[file.stat.st_ino]
    except KeyError:
        raise Unsupported(
            f"{file.name}: a unix socket of another network namespace",
            hint="dump the tree that the namespace belongs to",
        ) from None


def _may_have_queue(diag: UnixDiag) -> bool:
    """Say whether to look: of datagrams, rqueue is the first one's size, and that may be empty."""
    return diag.state != LISTEN and (diag.type != socket.SOCK_STREAM or diag.rqueue > 0)


def _is_alone(diag: UnixDiag) -> bool:
    """Say whether a connection has no peer though none hung up: it waits to be accepted."""
    connected = diag.type != socket.SOCK_DGRAM and diag.state == ESTABLISHED
    return connected and not diag.peer and diag.shutdown != _BOTH


def _outside(file: OpenFile, ino: int) -> bool:
    return f"socket:[{ino}]" not in file.links


def _may_be_in_flight(file: OpenFile, table: Table) -> bool:
    """Say whether a peer could be in a queue: only the freeze tells for sure."""
    ours = (one for one in table.values() if not _outside(file, one.ino))
    return any(one.rqueue for one in ours if one.state != LISTEN)


def _check_peer(file: OpenFile, diag: UnixDiag, table: Table, options: DumpOptions) -> int:
    """Refuse a peer outside the tree; return the inode of the listener it waits at, or 0."""
    for client in diag.icons:
        if not client:  # what it has sent is still to be read, and nobody tells if that is any
            what = "a client that has closed again waits to be accepted"
            _refuse_now(file, what, "accept it first")
        if _outside(file, client):
            _refuse_now(file, "a process outside the dump waits to be accepted", "accept it first")
    if diag.peer and _outside(file, diag.peer):
        _check_outside(file, diag, table, options)
    if diag.peer or diag.type == socket.SOCK_DGRAM or diag.state != ESTABLISHED:
        return 0
    listener = next((one.ino for one in table.values() if diag.ino in one.icons), 0)
    if listener and _outside(file, listener):
        _refuse_now(
            file, "it waits for a process outside the dump to accept it", "dump that one too"
        )
    if listener and diag.wqueue:
        _refuse_now(file, "data sent before it was accepted", "wait until the server accepts it")
    return listener


def _check_outside(file: OpenFile, diag: UnixDiag, table: Table, options: DumpOptions) -> None:
    """Refuse a peer outside, unless it is a datagram socket that can be found by name again."""
    if diag.type != socket.SOCK_DGRAM:
        _refuse(file, "connected to a process outside the dump", "dump that process too")
    if not options.ext_unix_sk:
        _refuse(file, "connected to a socket of a process outside the dump", "use --ext-unix-sk")
    if diag.peer not in table or not table[diag.peer].name:
        _refuse(file, "its peer outside the dump has no name", "dump that process too")


def _refuse(file: OpenFile, what: str, hint: str) -> None:
    raise Unsupported(f"{file.name}: unix socket: {what}", hint=hint)


def _refuse_now(file: OpenFile, what: str, hint: str) -> None:
    raise NotNow(f"{file.name}: unix socket: {what}", hint=hint)


def _dump_outside(peer: UnixDiag, out: Dump) -> None:
    """Add a record that stands for a socket outside, to connect to by name; once for each."""
    if not out.first("unix socket outside", peer.ino):
        return
    nobody = pb.fown_entry(uid=0, euid=0, signum=0, pid_type=0, pid=0)
    no_options = pb.sk_opts_entry(
        so_sndbuf=0,
        so_rcvbuf=0,
        so_snd_tmo_sec=0,
        so_snd_tmo_usec=0,
        so_rcv_tmo_sec=0,
        so_rcv_tmo_usec=0,
    )
    entry = pb.unix_sk_entry(
        id=out.next_id(),
        ino=peer.ino,
        type=peer.type,
        state=LISTEN,
        flags=0,
        uflags=EXTERNAL,
        backlog=0,
        peer=0,
        fown=nobody,
        opts=no_options,
        name=peer.name,
    )
    out.add_entry(pb.file_entry(type=pb.FD_UNIXSK, id=entry.id, usk=entry))
