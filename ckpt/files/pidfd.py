# SPDX-License-Identifier: Apache-2.0
"""pidfd_open(2): a process or thread, of the target's own or one that has ended.

Facts that bite:

- It is opened by pid, so a restored task has to open it itself, once it and its threads are there.
- A process outside is another one, or none, by the time of a restore: refused.
- Of one that has ended nothing is left but that: its pidfd is readable, and a signal to it says
  ESRCH. So any other process that has ended will do. That two pidfds are of the same one shows in
  their inode (Linux 6.9). How it ended (PIDFD_GET_INFO) is not kept.
"""

import os
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ckpt.errors import CkptError, ImageError, Unsupported
from ckpt.files.kind import INSIDE, Dump, FileKind, OpenFile, Restore, anon_inode
from ckpt.image import pb
from ckpt.kernel import procfs
from ckpt.kernel.arch import NR
from ckpt.kernel.pidfd import ended
from ckpt.kernel.remote import Batch, Call
from ckpt.options import DumpOptions

_ENDED = -1
_OPEN_FLAGS = os.O_NONBLOCK | os.O_EXCL  # PIDFD_NONBLOCK, PIDFD_THREAD
_INO = 0xFFFF_FFFF


class PidFd(FileKind):
    """A process that cannot be mistaken for another."""

    type = pb.FD_PIDFD
    field = "pidfd"

    @classmethod
    def claims(cls, file: OpenFile) -> bool:
        """Recognise it by its link, which is that of an anonymous inode, though it has its own."""
        return anon_inode(file, "[pidfd]")

    @classmethod
    def check(cls, file: OpenFile, options: DumpOptions) -> None:
        """Refuse that of a process which is not dumped with it."""
        _nspid(file)

    @classmethod
    def dump(cls, file: OpenFile, out: Dump) -> Any:
        """Take the pid from fdinfo. The flags are those of pidfd_open(2), as CRIU has it."""
        return pb.pidfd_entry(
            id=file.id,
            ino=file.stat.st_ino & _INO,
            flags=file.flags & _OPEN_FLAGS,
            nspid=_nspid(file),
            fown=file.owner(),
        )

    @classmethod
    def create(cls, entry: Any, make: Restore) -> int:
        """Make that of an ended process; the others are for the task to open."""
        if entry.nspid != _ENDED:
            return INSIDE
        made: deque[int] = make.once(("ended", entry.ino), lambda: _ended(entry.ino, make))
        return made.popleft()

    @classmethod
    def open_inside(cls, entry: Any, make: Restore, batch: Batch) -> Call:
        """Open it by pid, which must be one of the image's."""
        if entry.nspid not in make.once("tids", lambda: set(_tids(make))):
            raise ImageError(f"pidfd {entry.id}: pid {entry.nspid} is not in the image")
        return batch.call(NR.pidfd_open, entry.nspid, entry.flags & _OPEN_FLAGS, must=True)


def _nspid(file: OpenFile) -> int:
    """Return the pid as the target knows it, -1 if it has ended; raises Unsupported."""
    pid = file.info.pidfd
    if pid == _ENDED:
        return _ENDED
    if not _is_inside(pid, file.tree):
        raise Unsupported(
            f"{file.name}: pid {pid} is outside of what is dumped",
            hint="have the target close it before the dump",
        )
    return file.info.pidfd_ns[-1]


def _is_inside(pid: int | None, tree: tuple[int, ...]) -> bool:
    """Say whether a process, or a thread, is one of the tree, or a child of one."""
    if pid is None or pid in tree:
        return pid is not None
    with suppress(CkptError):
        return procfs.status(pid).tgid in tree or procfs.stat(pid).ppid in tree
    return False


def _ended(ino: int, make: Restore) -> deque[int]:
    """Return a pidfd for each of the image's that are of the same ended process, in their order."""
    entries = [entry.pidfd for entry in make.entries.values() if entry.HasField("pidfd")]
    alike = [entry for entry in entries if (entry.nspid, entry.ino) == (_ENDED, ino)]
    made = deque(ended(len(alike)))

    def close_rest(ok: bool) -> None:
        while made:
            os.close(made.popleft())

    make.at_end(close_rest)
    return made


def _tids(make: Restore) -> Iterator[int]:
    for tree, _ in make.image.records("pstree"):
        yield from (tree.pid, *tree.threads)  # of who has ended, CRIU's threads are no tids
