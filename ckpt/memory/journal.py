# SPDX-License-Identifier: Apache-2.0
"""What a pager has read and done, in memory that it shares with who takes over from it.

Events are read straight into it: once the kernel has given one away, it is there, whenever the
reader is killed. So a successor that goes through the journal knows all that the dead one knew.
"""

import mmap
import os
from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from ckpt.errors import CkptError
from ckpt.kernel.userfaultfd import Kind

_MAP_NORESERVE = 0x4000
_SIZE = 256 << 20  # of addresses: 8 million records; memory is taken as it is written
_HEAD = 64
AT_ONCE = 64
"""Events that are read by one call, at most."""
_RECORD = Struct("<B3xIQQQ")  # struct uffd_msg, with the descriptor in a reserved field
_FD = Struct("<I")
_TAIL, _READING, _OVERRUN = range(3)
_EVENTS = {int(kind) for kind in Kind}


class Done(IntEnum):
    """What a pager itself writes down: pages [a, b) were filled, c ns after they were asked for.

    LEFT: a process was let go of. GONE: pages of a shared object were discarded for all; SETTLED:
    it is known of all that was discarded which was.
    """

    FAULT = 0x81
    PREFETCH = 0x82
    DRAIN = 0x83
    ZERO = 0x84
    LOST = 0x85
    LEFT = 0x86
    GONE = 0x87
    SETTLED = 0x88


class Record(NamedTuple):
    """An event of the kernel's (a, b, c as in struct uffd_msg), or what was Done; of which fd."""

    kind: int
    fd: int
    a: int
    b: int
    c: int


class Journal:
    """The journal; make it before the fork, so that it is shared."""

    def __init__(self, size: int = _SIZE) -> None:
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._map = mmap.mmap(-1, size, flags)
        self._view = memoryview(self._map)
        self._words = self._view[:_HEAD].cast("Q")  # each written by one instruction
        self._size = size
        self._words[_TAIL] = _HEAD

    def _room(self) -> int:
        """Return where the next records go; without room for them, all before are given up."""
        tail = self._words[_TAIL]
        if tail + AT_ONCE * _RECORD.size > self._size:
            self._words[_OVERRUN] = 1
            tail = _HEAD
            self._words[_TAIL] = tail
        return tail

    def read(self, fd: int, at_once: int = AT_ONCE) -> list[Record]:
        """Read what has happened from a userfaultfd, so many events at most."""
        tail = self._room()
        room = self._view[tail : tail + at_once * _RECORD.size]
        # Clean for a successor; and touched, so that the kernel's copy cannot fail.
        room[:] = bytes(len(room))
        self._words[_READING] = fd
        try:
            got = os.readv(fd, [room])
        except BlockingIOError:
            return []
        return self._adopt(tail, tail + got)

    def _adopt(self, at: int, end: int) -> list[Record]:
        """Take events that were read into the journal for part of it."""
        fd, found = self._words[_READING], []
        while at < end and self._map[at] in _EVENTS:
            _FD.pack_into(self._map, at + 4, fd)
            found.append(Record(*_RECORD.unpack_from(self._map, at)))
            at += _RECORD.size
        self._words[_TAIL] = at
        return found

    def write(self, kind: Done, fd: int, a: int = 0, b: int = 0, c: int = 0) -> Record:
        """Write down what was done."""
        tail = self._room()
        _RECORD.pack_into(self._map, tail, kind, fd, a, b, c)
        self._words[_TAIL] = tail + _RECORD.size
        return Record(kind, fd, a, b, c)

    def __iter__(self) -> Iterator[Record]:
        """Yield all records, those included that the dead reader did not live to look at.

        Raises CkptError if some are lost.
        """
        if self._words[_OVERRUN]:
            raise CkptError("too much has happened for a second pager to go on from it")
        self._adopt(self._words[_TAIL], self._size)
        for at in range(_HEAD, self._words[_TAIL], _RECORD.size):
            yield Record(*_RECORD.unpack_from(self._map, at))
