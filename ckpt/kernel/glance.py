# SPDX-License-Identifier: Apache-2.0
"""All that is read in a freeze without the target's help, in one call of C, as often as one likes.

That is files of /proc, opened beforehand, as to open them by their paths takes longest; and system
calls about descriptors of ours, whose answers tell whether something is as it was.
"""

import os
from contextlib import suppress
from typing import NamedTuple, Self

from ckpt.kernel import procfs
from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import allocate, check, ffi, lib

_ROOM = 64 << 10
_WHOLE = -1
_WORD = 0xFFFF_FFFF_FFFF_FFFF


class Out(NamedTuple):
    """Room that a call writes to, as an argument of it: its offset in the glance's answers."""

    offset: int


class Part(NamedTuple):
    """Some calls of a glance, one after the other, and the room for their answers."""

    calls: slice
    room: slice


NOTHING = Part(slice(0, 0), slice(0, 0))


class Glance:
    """What is to be read together; a context manager that closes the files.

    Calls come before files, in their order: what they bring up to date is read after them.
    """

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}
        self._calls: list[tuple[NR, tuple[int | Out, ...]]] = []
        self._answers = bytearray()
        self._ready: _Ready | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def add(self, *paths: str) -> None:
        """Open files; one that cannot be opened is left out."""
        for path in paths:
            if path not in self._fds:
                with suppress(OSError):
                    self._fds[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def call(self, nr: NR, *args: int | Out) -> None:
        """Add a system call; what it does must be nothing but to answer."""
        self._calls.append((nr, args))

    def out(self, size: int = 0, content: bytes = b"") -> Out:
        """Set room aside for a call to write to: content, and zeros up to size bytes."""
        at = len(self._answers)
        self._answers += content.ljust(size, b"\0")
        self._answers += bytes(-len(self._answers) % 8)
        return Out(at)

    def mark(self) -> Part:
        """Return an empty part that begins here."""
        calls, room = len(self._calls), len(self._answers)
        return Part(slice(calls, calls), slice(room, room))

    def since(self, begin: Part) -> Part:
        """Return all that was added since a mark."""
        calls, room = slice(begin.calls.start, len(self._calls)), len(self._answers)
        return Part(calls, slice(begin.room.start, room))

    def look(self) -> "Seen":
        """Return what all says now; files that are no more are left out.

        The first time after something was added takes longer.
        """
        if not self._ready or self._ready.counts != (len(self._fds), len(self._calls)):
            self._ready = _Ready(self._fds, self._calls, self._answers)
        return self._ready.look()


class _Ready:
    """A glance as C takes it."""

    def __init__(
        self,
        fds: dict[str, int],
        calls: list[tuple[NR, tuple[int | Out, ...]]],
        answers: bytearray,
    ) -> None:
        self.counts = len(fds), len(calls)
        self._paths, self._fresh, self._size = list(fds), bytes(answers), _ROOM
        self._answers = ffi.new("char[]", max(len(answers), 1))
        base = int(ffi.cast("uintptr_t", self._answers))
        looks = [
            (int(nr), [base + arg.offset if isinstance(arg, Out) else arg & _WORD for arg in args])
            for nr, args in calls
        ]
        looks += [(_WHOLE, [fd]) for fd in fds.values()]
        self._looks = ffi.new("struct core_look[]", looks)
        self._rets = ffi.new("int64_t[]", len(looks))

    def look(self) -> "Seen":
        """Look; where the files do not fit, once more with more room."""
        while True:
            ffi.memmove(self._answers, self._fresh, len(self._fresh))
            room = allocate("char[]", self._size)
            count = sum(self.counts)
            done = lib.core_look(self._looks, count, self._rets, room, self._size)
            if check(done, "reading of /proc") == count:
                break
            self._size *= 2
        rets = ffi.unpack(self._rets, count)
        files, calls = self._cut(ffi.buffer(room), rets[self.counts[1] :]), rets[: self.counts[1]]
        return Seen(files, calls, ffi.buffer(self._answers)[: len(self._fresh)])

    def _cut(self, room: "ffi.buffer", lengths: list[int]) -> dict[str, bytes]:
        found, start = {}, 0
        for path, length in zip(self._paths, lengths, strict=True):
            if length >= 0:
                found[path] = room[start : start + length]
                start += length
        return found


class Seen:
    """What a glance has seen at one moment: what files said, by path, and the calls' answers."""

    def __init__(
        self, files: dict[str, bytes], rets: list[int] | None = None, answers: bytes = b""
    ) -> None:
        self.files, self._rets, self._answers = files, rets or [], answers

    def read(self, pid: int, name: str) -> bytes:
        """Return /proc/PID/NAME as it was seen; what was not is read now, and kept."""
        path = f"/proc/{pid}/{name}"
        if path not in self.files:
            self.files[path] = procfs.read_path(path)
        return self.files[path]

    def answers(self, part: Part) -> tuple[list[int], bytes]:
        """Return the results of the calls of a part, and what they wrote."""
        return self._rets[part.calls], self._answers[part.room]

    def same_answers(self, other: "Seen") -> bool:
        """Say whether all calls have answered the same."""
        return self._rets == other._rets and self._answers == other._answers
