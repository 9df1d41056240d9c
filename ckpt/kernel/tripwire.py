# SPDX-License-Identifier: Apache-2.0
"""Two processes with one table of descriptors, and what goes off when both have died.

A pipe tells the owner of its reading end (F_SETOWN, O_ASYNC) when the last writer is gone, by any
signal (F_SETSIG), SIGKILL included. So no process of ours has to be alive to kill another one.
"""

import fcntl
import os
import signal
from collections.abc import Iterable
from contextlib import suppress

from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import check, ffi, syscall

_CLONE_FILES = 0x400
_F_SETSIG = 10
_HIGHEST = 1 << 14


def fork_with_files() -> int:
    """Fork a child that shares our table of descriptors; as os.fork, for one thread only.

    What one of the two opens or is given by the kernel, the other has at once, and keeps.
    """
    args = ffi.new("uint64_t[]", [_CLONE_FILES, 0, 0, 0, signal.SIGCHLD, 0, 0, 0])
    return check(syscall(NR.clone3, int(ffi.cast("uintptr_t", args)), 64), "clone3")


class Tripwire:
    """Kills processes, or groups if negative, when the last of our processes has died.

    It does so before any descriptor but these is closed: a dying process closes its descriptors
    in the order of their numbers, up or down. So there are two pipes: the writing end of one takes
    the place of standard input, the lowest number, that of the other is higher than all in use.
    """

    def __init__(self, owners: Iterable[int]) -> None:
        self._readers: list[int] = []
        high = min(os.sysconf("SC_OPEN_MAX"), _HIGHEST) - 1
        for place in (0, high):
            reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            os.dup2(writer, place, inheritable=False)
            os.close(writer)
            for owner in owners:
                self._readers.append(_opened_again(reader))
                _tell(self._readers[-1], owner)
            os.close(reader)

    def disarm(self) -> None:
        """Nobody is to be killed any more; may be called again."""
        for reader in self._readers:
            fcntl.fcntl(reader, fcntl.F_SETOWN, 0)


def _opened_again(fd: int) -> int:
    """Open a pipe once more: who is told is of each open file."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _tell(reader: int, owner: int) -> None:
    with suppress(ProcessLookupError):  # it has been killed already
        fcntl.fcntl(reader, fcntl.F_SETOWN, owner)
    fcntl.fcntl(reader, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
