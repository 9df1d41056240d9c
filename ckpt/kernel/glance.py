# SPDX-License-Identifier: Apache-2.0
"""All that is read in a freeze without the target's help, in one call of C, as often as one likes.

That is files of /proc, opened beforehand, as to open them by their paths takes longest; and system
calls about descriptors of ours, whose answers tell whether something is as it was.
"""

import errno
import os
from contextlib import suppress
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple, Self

from ckpt.kernel import procfs
from ckpt.kernel.arch import NR
from ckpt.kernel.aside import Aside
from ckpt.kernel.ffi import check, ffi, lib

_ROOM = 64 << 10
_AT_FDCWD, _STAT, _PATH_MAX = -100, 144, 4096
_WHOLE = -1
_WORD = 0xFFFF_FFFF_FFFF_FFFF


class Out(NamedTuple):
    """Room that a call writes to, as an argument of it: its offset in the glance's answers."""

    offset: int


class Part(NamedTuple):
    """Some calls of a glance, one after the other, the room for their answers, and some files."""

    calls: slice
    room: slice
    files: slice = slice(0, 0)


NOTHING = Part(slice(0, 0), slice(0, 0))


class Glance:
    """What is to be read together; a context manager that closes the files.

    Calls come before files, in their order: what they bring up to date is read after them.
    With aside, a look can be begun, and what it has seen be asked for later.
    """

    def __init__(self, *, aside: bool = False) -> None:
        self._aside = Aside() if aside else None
        self._begun = False
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
        if self._aside:
            self._end()
            self._aside.close()
            self._aside = None
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

    def link(self, path: str) -> None:
        """Add what a link of /proc leads to: its stat(2), and the path that it shows."""
        name = self.out(content=os.fsencode(path) + b"\0")
        self.call(NR.newfstatat, _AT_FDCWD, name, self.out(_STAT), 0)
        self.call(NR.readlinkat, _AT_FDCWD, name, self.out(_PATH_MAX), _PATH_MAX)

    def out(self, size: int = 0, content: bytes = b"") -> Out:
        """Set room aside for a call to write to: content, and zeros up to size bytes."""
        at = len(self._answers)
        self._answers += content.ljust(size, b"\0")
        self._answers += bytes(-len(self._answers) % 8)
        return Out(at)

    def mark(self) -> Part:
        """Return an empty part that begins here."""
        calls, room, files = len(self._calls), len(self._answers), len(self._fds)
        return Part(slice(calls, calls), slice(room, room), slice(files, files))

    def since(self, begin: Part) -> Part:
        """Return all that was added since a mark."""
        ends = self.mark()
        return Part(*(slice(a.start, b.stop) for a, b in zip(begin, ends, strict=True)))

    def look(self) -> "Seen":
        """Return what all says now; files that are no more are left out.

        The first time after something was added takes longer.
        """
        return self._prepared().look()

    def begin(self) -> None:
        """Begin to look, anew if it was begun before: what is seen is as of now, or later."""
        self._end()
        if self._aside:
            self._prepared().begin(self._aside)
            self._begun = True

    def seen(self) -> "Seen":
        """Return what the look that was begun last has seen; if none was, what a look sees."""
        end = self._end()
        return self.look() if end < 0 else self._prepared().seen(end)

    def _end(self) -> int:
        if not self._begun or not self._aside:
            return -errno.EAGAIN
        self._begun = False
        return self._aside.end()

    def _prepared(self) -> "_Ready":
        if not self._ready or self._ready.counts != (len(self._fds), len(self._calls)):
            self._ready = _Ready(self._fds, self._calls, self._answers)
        return self._ready


class _Ready:
    """A glance as C takes it."""

    def __init__(
        self,
        fds: dict[str, int],
        calls: list[tuple[NR, tuple[int | Out, ...]]],
        answers: bytearray,
    ) -> None:
        self.counts = len(fds), len(calls)
        self._places = {path: len(calls) + at for at, path in enumerate(fds)}
        self._fresh = bytes(answers)
        self._answers = ffi.new("char[]", max(len(answers), 1))
        base = int(ffi.cast("uintptr_t", self._answers))
        looks = [
            (int(nr), [base + arg.offset if isinstance(arg, Out) else arg & _WORD for arg in args])
            for nr, args in calls
        ]
        looks += [(_WHOLE, [fd]) for fd in fds.values()]
        self._looks = ffi.new("struct core_look[]", looks)
        self._rets = ffi.new("int64_t[]", len(looks))
        self._room = ffi.new("char[]", _ROOM)  # touched by now

    def begin(self, aside: Aside) -> None:
        """Have another thread look."""
        ffi.memmove(self._answers, self._fresh, len(self._fresh))
        aside.begin(self._looks, self._rets, self._room)

    def look(self) -> "Seen":
        """Look; where the files do not fit, once more with more room."""
        while True:
            ffi.memmove(self._answers, self._fresh, len(self._fresh))
            size = len(self._room)
            end = lib.core_look(self._looks, len(self._rets), self._rets, self._room, size)
            if end != -errno.E2BIG:
                return self.seen(check(end, "reading of /proc"))
            self._room = ffi.new("char[]", 2 * size)

    def seen(self, end: int) -> "Seen":
        """Return what there is after a look that has filled so much of the room."""
        answers = ffi.buffer(self._answers, len(self._fresh))[:]
        return Seen(self._places, ffi.buffer(self._rets)[:], answers, ffi.buffer(self._room)[:end])


class Seen:
    """What a glance has seen at one moment: what files said, and the calls' answers.

    Kept as it came, to be compared as a whole: in the freeze there is no time to look at each.
    places says of paths which result is theirs; a result is a call's, or the length of a file.
    """

    def __init__(
        self,
        places: dict[str, int] | None = None,
        rets: bytes = b"",
        answers: bytes = b"",
        content: bytes = b"",
    ) -> None:
        self._places = places or {}
        self._rets, self._answers, self._content = rets, answers, content
        self._numbers = memoryview(rets).cast("q")
        self._calls = len(self._numbers) - len(self._places)
        self._late: dict[str, bytes] = {}

    @cached_property
    def _starts(self) -> list[int]:
        """Where the content of each file begins, and where it all ends."""
        lengths = (max(length, 0) for length in self._numbers[self._calls :])
        return [*accumulate(lengths, initial=0)]

    def _lengths(self, part: Part) -> bytes:
        return self._rets[
            8 * (self._calls + part.files.start) : 8 * (self._calls + part.files.stop)
        ]

    def find(self, path: str) -> bytes | None:
        """Return a file's content; None if it was not seen."""
        if path in self._late:
            return self._late[path]
        place = self._places.get(path)
        if place is None or self._numbers[place] < 0:
            return None
        start, end = self._starts[place - self._calls : place - self._calls + 2]
        return self._content[start:end]

    def read(self, pid: int, name: str) -> bytes:
        """Return /proc/PID/NAME as it was seen; what was not is read now, and kept."""
        path = f"/proc/{pid}/{name}"
        found = self.find(path)
        if found is None:
            found = self._late[path] = procfs.read_path(path)
        return found

    def look_again(self, pid: int, name: str) -> None:
        """Have what was seen of /proc/PID/NAME be what it says now."""
        self._late[f"/proc/{pid}/{name}"] = procfs.read(pid, name)

    def answers(self, part: Part) -> tuple[list[int], bytes]:
        """Return the results of the calls of a part, and what they wrote."""
        return [*self._numbers[part.calls]], self._answers[part.room]

    def same_answers(self, other: "Seen", part: Part) -> bool:
        """Say whether the calls of a part have answered the same."""
        rets = slice(8 * part.calls.start, 8 * part.calls.stop)
        return (
            self._rets[rets] == other._rets[rets]
            and self._answers[part.room] == other._answers[part.room]
        )

    def same_file(self, other: "Seen", path: str) -> bool:
        """Say whether a file said the same."""
        return self.find(path) == other.find(path)

    def same_files(self, other: "Seen", part: Part) -> bool:
        """Say whether the files of a part said the same; as quick as can be."""
        first, last = part.files.start, part.files.stop
        now, before = (seen._lengths(part) for seen in (self, other))
        if now != before:
            return False
        mine, its = (seen._starts[first] for seen in (self, other))
        length = self._starts[last] - mine
        return self._content[mine : mine + length] == other._content[its : its + length]
