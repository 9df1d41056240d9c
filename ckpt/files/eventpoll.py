# SPDX-License-Identifier: Apache-2.0
"""epoll(7): a set of files to wait for.

A member is a file *and* the number it had at EPOLL_CTL_ADD, which may be closed by now, or another
file's, while the member lives on by a second descriptor. So a set is filled inside the task; where
the number has moved on, the file is put there for the moment of adding. The image then has the
number that leads to the file in `tfd`, as CRIU does, and the other one in a field of ours.

A member that is ready is reported once more after a restore, even if edge-triggered: that an edge
was seen is not to be known, and an edge too few would be a hang.
"""

import fcntl
import os
import select
from collections import Counter, deque
from collections.abc import Hashable, Iterator
from struct import Struct
from typing import Any

from ckpt.errors import Unsupported
from ckpt.files.kind import Dump, FileKind, OpenFile, Placed, Restore, anon_inode
from ckpt.image import pb
from ckpt.kernel import files, procfs
from ckpt.kernel.arch import NR
from ckpt.kernel.fdinfo import EpollTarget
from ckpt.kernel.glance import Glance
from ckpt.kernel.remote import Batch, BatchFull
from ckpt.options import DumpOptions

_ADD = 1
_EVENT = Struct("<IQ")  # struct epoll_event, packed on x86-64 alone
# EPOLLWAKEUP, ONESHOT, ET, EXCLUSIVE: all that stays of a ONESHOT member's events once reported
# (EP_PRIVATE_BITS in fs/eventpoll.c).
_PRIVATE = 0xF0000000
_CALLS, _BYTES = 9, 128  # at most, to add one member


class EventPoll(FileKind):
    """A set of files to wait for."""

    type = pb.FD_EVENTPOLL
    field = "epfd"
    looks_around = True

    @classmethod
    def claims(cls, file: OpenFile) -> bool:
        """Recognise it by its anonymous inode."""
        return anon_inode(file, "[eventpoll]")

    @classmethod
    def check(cls, file: OpenFile, options: DumpOptions) -> None:
        """Refuse a set with a file that its process has no descriptor of."""
        for target, offset, number in _members(file):
            if number is None and not _is_passing(file, target, offset):
                raise _closed(file, target)

    @classmethod
    def state(cls, file: OpenFile) -> Hashable | None:
        """All is in fdinfo."""
        return ()

    @classmethod
    def glimpse(cls, file: OpenFile, glance: Glance) -> bool:
        """There is nothing else to see."""
        return True

    @classmethod
    def dump(cls, file: OpenFile, out: Dump) -> Any:
        """List the members, as fdinfo does."""
        entry = pb.eventpoll_file_entry(**file.common())
        for target, _, number in _members(file):
            if number is None:
                raise _closed(file, target)
            entry.tfd.append(_member_entry(file.id, target, number))
        return entry

    @classmethod
    def create(cls, entry: Any, make: Restore) -> int:
        """Make it empty."""
        with select.epoll() as made:
            return os.dup(made.fileno())

    @classmethod
    def connect(cls, entry: Any, placed: Placed, make: Restore, batch: Batch) -> None:
        """Fill it, in the first of the tasks that have it."""
        left = make.once(("epoll", entry.id), lambda: deque(sorted(entry.tfd, key=_is_armed)))
        while left:
            if not batch.fits(_CALLS, _BYTES):
                raise BatchFull(f"epoll set {entry.id}: {len(left)} members to go")
            _add(placed.number, left.popleft(), batch)


def _members(file: OpenFile) -> Iterator[tuple[EpollTarget, int, int | None]]:
    """Yield the members, which one it is of those of its number, and a descriptor of its file."""
    alike: Counter[int] = Counter()
    for target in file.info.epoll:
        offset = alike[target.fd]
        alike[target.fd] += 1
        yield target, offset, _holder(file, target, offset)


def _closed(file: OpenFile, target: EpollTarget) -> Unsupported:
    return Unsupported(
        f"{file.name}: watches what was fd {target.fd}, now closed here but not elsewhere",
        hint="remove a file from the set (EPOLL_CTL_DEL) before closing it",
    )


def _is_passing(file: OpenFile, target: EpollTarget, offset: int) -> bool:
    """Say whether a member is gone by now, or there for as long as we have a copy of its file."""
    member = (file.proc, file.number, target.fd, offset)
    if files.watches(*member, file.number) is None:
        return True
    ours = os.getpid()
    return any(files.watches(*member, number, of=ours) for number in procfs.fds(ours))


def _holder(file: OpenFile, target: EpollTarget, offset: int) -> int | None:
    """Return the number of a descriptor that has a member's file: if possible, its own."""
    member = (file.proc, file.number, target.fd, offset)
    if files.watches(*member, target.fd):
        return target.fd
    numbers = procfs.fds(file.proc)
    return next((number for number in numbers if files.watches(*member, number)), None)


def _member_entry(file_id: int, target: EpollTarget, number: int) -> Any:
    entry = pb.eventpoll_tfd_entry(
        id=file_id,
        tfd=number,
        events=target.events,
        data=target.data,
        dev=target.sdev,
        inode=target.ino,
        pos=target.pos,
    )
    if number != target.fd:
        entry.added_as = target.fd
    return entry


# --- restore


def _is_armed(member: Any) -> bool:
    return bool(member.events & ~_PRIVATE)


def _add(epoll: int, member: Any, batch: Batch) -> None:
    """Add a member; those that are not armed come first, while nothing else can be reported."""
    event = batch.data(_EVENT.pack(member.events, member.data))
    if member.HasField("added_as"):
        _add_as(member.added_as, epoll, member.tfd, event, batch)
    else:
        batch.call(NR.epoll_ctl, epoll, _ADD, member.tfd, event, must=True)
    if not _is_armed(member):
        # Adding arms it for errors and hang-ups. Those of now are reported to us and so disarm it.
        batch.call(NR.epoll_wait, epoll, batch.room(_EVENT.size), 1, 0)


def _add_as(number: int, epoll: int, tfd: int, event: Any, batch: Batch) -> None:
    """Add the file of tfd as another number, which is lent to it.

    Where that number is free, each call on `lent` fails and the number stays free.
    """
    lent = batch.call(NR.fcntl, number, fcntl.F_DUPFD_CLOEXEC, 0)
    flags = batch.call(NR.fcntl, number, fcntl.F_GETFD)
    batch.call(NR.dup3, tfd, number, os.O_CLOEXEC, must=True)
    # The number may even be the set's own.
    batch.call(NR.epoll_ctl, lent if number == epoll else epoll, _ADD, number, event, must=True)
    batch.call(NR.close, number)
    batch.call(NR.dup3, lent, number, 0)
    batch.call(NR.fcntl, number, fcntl.F_SETFD, flags)
    batch.call(NR.close, lent)
