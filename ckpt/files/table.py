# SPDX-License-Identifier: Apache-2.0
"""The descriptor tables of restored tasks: from files.img and fdinfo-ID.img.

Each file is made here, once, and moved out of the way of all numbers to be; the tasks, forks of
ours or of each other, inherit the lot, dup3() every one to its place, and then the kinds `connect`.
"""

import fcntl
import os
from collections.abc import Callable, Iterable
from typing import Any

from ckpt.errors import ImageError
from ckpt.files import KINDS, locks
from ckpt.files.kind import INSIDE, FileKind, Placed, Restore
from ckpt.files.sockopts import doing
from ckpt.image import pb
from ckpt.kernel.arch import NR
from ckpt.kernel.files import as_many_as_we_may
from ckpt.kernel.remote import Batch, Call

FD_CLOEXEC = fcntl.FD_CLOEXEC
_STATUS_FLAGS = os.O_APPEND | os.O_ASYNC | os.O_NONBLOCK | os.O_DIRECT | os.O_NOATIME
_SETOWN_EX = 15

BY_TYPE: dict[int, type[FileKind]] = {kind.type: kind for kind in KINDS}


class Opened:
    """The files of a restore, made here, as descriptors of ours.

    tables are what the fdinfo-ID.img hold.
    """

    def __init__(self, tables: Iterable[Iterable[pb.fdinfo_entry]], make: Restore) -> None:
        as_many_as_we_may()
        entries = [entry for table in tables for entry in table]
        self.shared = make
        self.floor = max((entry.fd for entry in entries), default=-1) + 1
        """Above every number that a task is to have."""
        self.connected: set[int] = set()
        """The files that have been connected: by the first task that has them."""
        self.inside: dict[int, tuple[int, int]] = {}
        """Where the first task has what only a task can open: its pid, and the number there."""
        self._ids = [entry.id for entry in entries]
        self._plugged: dict[str, type[FileKind]] = {kind.name: kind for kind in make.options.kinds}
        self._local: dict[int, int] = {}
        make.make = self.local

    def close(self) -> None:
        """Close our copies."""
        for fd in self._local.values():
            if fd != INSIDE:
                os.close(fd)
        self._local.clear()

    def create(self) -> None:
        """Make every file that a table names."""
        for file_id in self._ids:
            self.local(file_id)

    def local(self, file_id: int) -> int:
        """Return our descriptor for a file id, above every number of a task's own, or INSIDE."""
        if file_id not in self._local:
            kind, entry = self.kind(file_id)
            with doing(f"make file {file_id} of the image"):
                fd = kind.create(entry, self.shared)
                self._local[file_id] = fd if fd == INSIDE else self.raise_fd(fd)
            if fd != INSIDE:
                _set_status(self._local[file_id], self.flagged(entry))
        return self._local[file_id]

    def raise_fd(self, fd: int) -> int:
        """Move a descriptor of ours above every number that a task is to have."""
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, self.floor)
        os.close(fd)
        return high

    def kind(self, file_id: int) -> tuple[type[FileKind], Any]:
        """Return the kind of a file and its message."""
        record = self.shared.entry(file_id)
        plugged = record.ext.plugin if record.HasField("ext") else ""
        kind = self._plugged.get(plugged) if plugged else BY_TYPE.get(record.type)
        if plugged and kind is None:
            raise ImageError(
                f"files.img: file {file_id} is for a plugin ({plugged!r}) that is not here",
                hint="install it, for the Python that ckpt runs with",
            )
        if kind is None or not record.HasField(kind.field):
            name = pb.fd_types.Name(record.type)
            raise ImageError(f"files.img: file {file_id} is of a kind ({name}) not restored here")
        return kind, getattr(record, kind.field)

    def flagged(self, entry: Any) -> Any:
        """Return the message with flags and owner: a fifo's are in the entry of its path."""
        if hasattr(entry, "flags") or not hasattr(entry, "regf_id"):
            return entry
        return self.shared.entry(entry.regf_id).reg


class FileTable:
    """The descriptors of a restored task, or of several that share them: put in place over there.

    fdinfo is what its fdinfo-ID.img holds.
    """

    def __init__(self, fdinfo: Iterable[pb.fdinfo_entry], opened: Opened) -> None:
        self._fdinfo = sorted(fdinfo, key=lambda entry: entry.fd)
        self._opened = opened

    @property
    def opens_inside(self) -> bool:
        """Say whether the task opens some files itself, or has them from one that did."""
        return any(self._opened.local(entry.id) == INSIDE for entry in self._fdinfo)

    def place(self, pid: int, batch: Batch) -> None:
        """Put every descriptor in its place. Runs in the task `pid`, one call each.

        For one after the other: what only a task can open, the next has from it.
        """
        local = {entry.id: self._opened.local(entry.id) for entry in self._fdinfo}
        inside = {
            file_id: self._open_inside(file_id, batch)
            for file_id, fd in local.items()
            if fd == INSIDE
        }
        for entry in self._fdinfo:
            cloexec = os.O_CLOEXEC if entry.flags & FD_CLOEXEC else 0
            source = inside.get(entry.id, local[entry.id])
            batch.call(NR.dup3, source, entry.fd, cloexec, must=True)
            if entry.id in inside:
                self._opened.inside.setdefault(entry.id, (pid, entry.fd))

    def _open_inside(self, file_id: int, batch: Batch) -> Call:
        """Have the task open a file, above every number that it is to have."""
        if holder := self._opened.inside.get(file_id):
            pid, number = holder
            pidfd = batch.call(NR.pidfd_open, pid, 0, must=True)
            low = batch.call(NR.pidfd_getfd, pidfd, number, 0, must=True)
            batch.call(NR.close, pidfd)
        else:
            kind, entry = self._opened.kind(file_id)
            low = kind.open_inside(entry, self._opened.shared, batch)
        floor = self._opened.floor
        high = batch.call(NR.fcntl, low, fcntl.F_DUPFD_CLOEXEC, floor, must=True)
        batch.call(NR.close, low)
        return high

    def connect(self, batch: Batch) -> None:
        """Have the kinds say what takes final numbers.

        Raises BatchFull: to be called again with a new batch, when that one has run.
        """
        opened = self._opened
        for entry in self._fdinfo:
            if entry.id in opened.connected:
                continue
            kind, message = opened.kind(entry.id)
            kind.connect(message, Placed(entry.fd, entry.id), opened.shared, batch)
            _set_owner(entry.fd, opened.flagged(message), batch)
            opened.connected.add(entry.id)

    def lock(self, pid: int, begin: Callable[[], Batch], run: Callable[[Batch], None]) -> None:
        """Have the task take its file locks; from now on it is to close nothing."""
        image, numbers = self._opened.shared.image, (entry.fd for entry in self._fdinfo)
        locks.restore(image, pid, numbers, begin, run)

    def close_rest(self, batch: Batch) -> None:
        """Close every other descriptor that the task has from us."""
        below = -1
        for number in [entry.fd for entry in self._fdinfo] + [1 << 31]:
            if number > below + 1:
                batch.call(NR.close_range, below + 1, number - 1, 0, must=True)
            below = number


def _set_status(fd: int, entry: Any) -> None:
    """Set the status flags that opening or making a file does not (fcntl(2) F_SETFL)."""
    wanted = getattr(entry, "flags", 0) & _STATUS_FLAGS & ~os.O_ASYNC
    now = fcntl.fcntl(fd, fcntl.F_GETFL)
    if now & os.O_PATH or now & _STATUS_FLAGS == wanted:
        return
    fcntl.fcntl(fd, fcntl.F_SETFL, now & ~_STATUS_FLAGS | wanted)


def _set_owner(number: int, entry: Any, batch: Batch) -> None:
    """Say who gets SIGIO: only now are there the pids that it may name."""
    owner = getattr(entry, "fown", None)
    if owner is None:
        return
    if owner.signum:
        batch.call(NR.fcntl, number, fcntl.F_SETSIG, owner.signum, must=True)
    if owner.pid:
        who = owner.pid_type.to_bytes(4, "little") + owner.pid.to_bytes(4, "little", signed=True)
        batch.call(NR.fcntl, number, _SETOWN_EX, batch.data(who), must=True)
    if entry.flags & os.O_ASYNC:
        # FASYNC takes effect at the file of this number, so it is set where the owner is known.
        batch.call(NR.fcntl, number, fcntl.F_SETFL, entry.flags & _STATUS_FLAGS, must=True)
