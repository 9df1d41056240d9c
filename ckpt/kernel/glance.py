# SPDX-License-Identifier: Apache-2.0
"""All that is read in a freeze without the target's help, in one call of C, as often as one likes.

That is files of /proc, opened beforehand, as to open them by their paths takes longest; and system
calls about descriptors of ours, whose answers tell whether something is as it was.
"""

import errno
import os
from collections.abc import Callable
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

    Calls come before files, in their order: what they bring up to date is read after them. Before
    all are the files that are needed first. With aside, a look can be begun, and what it has seen
    be asked for later.
    """

    def __init__(self, *, aside: bool = False) -> None:
        self._aside = Aside() if aside else None
        self._begun = False
        self._first: dict[str, int] = {}
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
        for fd in (*self._first.values(), *self._fds.values()):
            os.close(fd)
        self._first.clear()
        self._fds.clear()

    def add(self, *paths: str, first: bool = False) -> None:
        """Open files; one that cannot be opened is left out."""
        files = self._first if first else self._fds
        for path in paths:
            if path not in self._first and path not in self._fds:
                with suppress(OSError):
                    files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def call(self, nr: NR, *args: int | Out) -> None:
        """Add a system call; what it does must be nothing but to answer."""
        self._calls.append((nr, args))

    def link(self, path: str, *, stat: bool = True) -> None:
        """Add what a link of /proc leads to: the path that it shows, and what stat(2) says.

        Of a path that is longer by then there is just enough to see that.
        """
        name = self.out(content=os.fsencode(path) + b"\0")
        room = _PATH_MAX  # of one that cannot be read just now, either look may tell an error
        with suppress(OSError):
            room = len(os.fsencode(os.readlink(path))) + 1
        if stat:
            self.call(NR.newfstatat, _AT_FDCWD, name, self.out(_STAT), 0)
        self.call(NR.readlinkat, _AT_FDCWD, name, self.out(room), room)

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
        self._end()
        return self._prepared().look()

    def begin(self) -> None:
        """Begin to look, anew if it was begun before: what is seen is as of now, or later."""
        if self._aside:
            lib.core_aside_begin(self.ready())
            self.begun()

    def ready(self) -> "ffi.CData":
        """Return what core_aside_begin() takes, as others are to begin the look; NULL if none.

        `begun` is to be told if they have.
        """
        self._end()
        return self._prepared().ready(self._aside) if self._aside else ffi.NULL

    def begun(self) -> None:
        """Take note that the look which was ready has been begun."""
        self._begun = self._aside is not None

    def seen(self) -> "Seen":
        """Return what the look that was begun last has seen; if none was, what a look sees.

        It waits for what is needed first; for the rest, who asks for it waits.
        """
        if not self._begun or not self._aside:
            return self.look()
        end = self._aside.reach()
        return self._prepared().seen_first(end, self._rest) if end >= 0 else self.look()

    def _rest(self, first: "Seen") -> "Seen":
        """Return all of the look that has seen these first; or what there was no room for now."""
        end = self._end()
        if end >= 0:
            return self._prepared().seen(end)
        return self.look().but_for(first, [*self._first])

    def _end(self) -> int:
        if not self._begun or not self._aside:
            return -errno.EAGAIN
        self._begun = False
        return self._aside.end()

    def _prepared(self) -> "_Ready":
        counts = len(self._first), len(self._fds), len(self._calls)
        if not self._ready or self._ready.counts != counts:
            room = max(_ROOM, 2 * self._ready.filled if self._ready else 0)
            self._ready = _Ready(self._first, self._fds, self._calls, self._answers, room)
        return self._ready


class _Ready:
    """A glance as C takes it."""

    def __init__(
        self,
        first: dict[str, int],
        fds: dict[str, int],
        calls: list[tuple[NR, tuple[int | Out, ...]]],
        answers: bytearray,
        room: int,
    ) -> None:
        self.filled = 0
        """How much there was to be read at most."""
        self.counts = len(first), len(fds), len(calls)
        self._places = _Places([*first], len(calls), [*fds])
        self._fresh = bytes(answers)
        self._answers = ffi.new("char[]", max(len(answers), 1))
        base = int(ffi.cast("uintptr_t", self._answers))
        looks: list[tuple[int, list[int]]] = [(_WHOLE, [fd]) for fd in first.values()]
        looks += [
            (int(nr), [base + arg.offset if isinstance(arg, Out) else arg & _WORD for arg in args])
            for nr, args in calls
        ]
        looks += [(_WHOLE, [fd]) for fd in fds.values()]
        self._looks = ffi.new("struct core_look[]", looks)
        self._rets = ffi.new("int64_t[]", len(looks))
        self._room = ffi.new("char[]", room)  # touched by now

    def ready(self, aside: Aside) -> "ffi.CData":
        """Have all ready for another thread to look."""
        ffi.memmove(self._answers, self._fresh, len(self._fresh))
        return aside.ready(self._looks, self.counts[0], self._rets, self._room)

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
        self.filled = max(self.filled, end)
        answers = ffi.buffer(self._answers, len(self._fresh))[:]
        return Seen(self._places, ffi.buffer(self._rets)[:], answers, ffi.buffer(self._room)[:end])

    def seen_first(self, end: int, rest: "Callable[[Seen], Seen]") -> "Seen":
        """Return what there is of the files that are needed first, which have filled so much."""
        rets = ffi.buffer(self._rets, 8 * self.counts[0])[:]
        return Seen(self._places, rets, b"", ffi.buffer(self._room)[:end], rest)


class _Places:
    """Which result of a look is whose: of the first files, then of calls, then of other files."""

    def __init__(self, first: list[str], calls: int, files: list[str]) -> None:
        self.first, self.calls, self.files = len(first), len(first) + calls, files
        self.of = {path: at for at, path in enumerate(first)}
        self.of |= {path: self.calls + at for at, path in enumerate(files)}


_NOWHERE = _Places([], 0, [])


class Seen:
    """What a glance has seen at one moment: what files said, and the calls' answers.

    Kept as it came, to be compared as a whole: in the freeze there is no time to look at each.
    places says of paths which result is theirs; a result is a call's, or the length of a file.
    With rest this is only what is needed first, and rest waits for all.
    """

    def __init__(
        self,
        places: _Places = _NOWHERE,
        rets: bytes = b"",
        answers: bytes = b"",
        content: bytes = b"",
        rest: "Callable[[Seen], Seen] | None" = None,
    ) -> None:
        self._places, self._rest = places, rest
        self._rets, self._answers, self._content = rets, answers, content
        self._late: dict[str, bytes] = {}

    def whole(self) -> Self:
        """Wait for all there is."""
        if self._rest:
            whole, self._rest = self._rest(self), None
            self._places, self._late = whole._places, whole._late | self._late
            self._rets, self._answers, self._content = whole._rets, whole._answers, whole._content
            vars(self).pop("_numbers", None)
            vars(self).pop("_starts", None)
        return self

    def but_for(self, other: "Seen", paths: list[str]) -> Self:
        """Have these files have said what another look has seen."""
        self._late |= {path: said for path in paths if (said := other.find(path)) is not None}
        return self

    @cached_property
    def _numbers(self) -> memoryview:
        return memoryview(self._rets).cast("q")

    @cached_property
    def _starts(self) -> list[int]:
        """Where the content of each file begins, and where it all ends."""
        lengths = [*self._numbers[: self._places.first], *self._numbers[self._places.calls :]]
        if lengths and min(lengths) < 0:
            lengths = [max(length, 0) for length in lengths]
        return [*accumulate(lengths, initial=0)]

    def _start(self, place: int) -> int:
        """Return where the content of a file begins."""
        first, calls = self._places.first, self._places.calls
        return self._starts[place if place < first else place - calls + first]

    def _lengths(self, part: Part) -> bytes:
        calls = self._places.calls
        return self._rets[8 * (calls + part.files.start) : 8 * (calls + part.files.stop)]

    def find(self, path: str) -> bytes | None:
        """Return a file's content; None if it was not seen."""
        if path in self._late:
            return self._late[path]
        place = self._places.of.get(path)
        if place is None:
            return None
        if place >= self._places.first and self._rest:
            return self.whole().find(path)
        length = self._numbers[place]
        start = self._start(place)
        return None if length < 0 else self._content[start : start + length]

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

    def _results(self, part: Part) -> slice:
        first = self._places.first
        return slice(first + part.calls.start, first + part.calls.stop)

    def answers(self, part: Part) -> tuple[list[int], bytes]:
        """Return the results of the calls of a part, and what they wrote."""
        self.whole()
        return [*self._numbers[self._results(part)]], self._answers[part.room]

    def same_answers(self, other: "Seen", part: Part) -> bool:
        """Say whether the calls of a part have answered the same."""
        self.whole()
        other.whole()
        mine, its = self._results(part), other._results(part)
        return (
            self._answers[part.room] == other._answers[part.room]
            and self._rets[8 * mine.start : 8 * mine.stop]
            == other._rets[8 * its.start : 8 * its.stop]
        )

    def same_file(self, other: "Seen", path: str) -> bool:
        """Say whether a file said the same."""
        return self.find(path) == other.find(path)

    def differing(self, other: "Seen", part: Part) -> list[str]:
        """Return those files of a part that did not say the same; as quick as can be."""
        (lengths, mine), (its_lengths, its) = (one.whole()._said(part) for one in (self, other))
        if (lengths, mine) == (its_lengths, its):
            return []
        count = part.files.stop - part.files.start
        same = ffi.new("uint8_t[]", count)
        numbers = [ffi.from_buffer("int64_t[]", one) for one in (lengths, its_lengths)]
        lib.core_same_said(numbers[0], mine, numbers[1], its, count, same)
        paths = self._places.files[part.files]
        return [path for path, one in zip(paths, same, strict=True) if not one]

    def _said(self, part: Part) -> tuple[bytes, bytes]:
        calls = self._places.calls
        start, stop = (self._start(calls + at) for at in (part.files.start, part.files.stop))
        return self._lengths(part), self._content[start:stop]
