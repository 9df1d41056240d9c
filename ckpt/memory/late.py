# SPDX-License-Identifier: Apache-2.0
"""What of a process's memory has still to come: plain data, changed by one record at a time.

A pager's every step is a record of its journal, so whoever replays them is where it was.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import NamedTuple

from ckpt.kernel.userfaultfd import Kind, Userfaultfd
from ckpt.memory.journal import Done, Record

PAGE = 4096
AROUND = 64 << 10
"""What a fault brings along, and the unit of the order kept for the next restore."""

OBJECTS = 0xFFFFFFFF
"""In a record, instead of a userfaultfd: addresses are the image's, of a shared object."""

_start = attrgetter("start")


class Part(NamedTuple):
    """Addresses [start, end) of a process, or of an object; the image has them `moved` below."""

    start: int
    end: int
    moved: int


class Parts:
    """Parts in order of address, none overlapping."""

    def __init__(self, parts: Iterable[Part] = ()) -> None:
        self._parts = sorted(parts)

    def __iter__(self) -> Iterator[Part]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def _first(self, address: int) -> int:
        """Return the index of the first part that ends behind an address."""
        index = bisect_right(self._parts, address, key=_start) - 1
        return index if index >= 0 and address < self._parts[index].end else index + 1

    def first(self) -> Part | None:
        """Return the first part, if there is any."""
        return self._parts[0] if self._parts else None

    def at(self, address: int) -> Part | None:
        """Return the part that an address is in."""
        index = self._first(address)
        part = self._parts[index] if index < len(self._parts) else None
        return part if part and part.start <= address else None

    def within(self, start: int, end: int) -> list[Part]:
        """Return what there is in [start, end), cut to it."""
        if start >= end:
            return []
        first, last = self._first(start), bisect_left(self._parts, end, key=_start)
        return [
            Part(max(part.start, start), min(part.end, end), part.moved)
            for part in self._parts[first:last]
        ]

    def drop(self, start: int, end: int) -> None:
        """Take [start, end) out."""
        if start >= end:
            return
        first, last = self._first(start), bisect_left(self._parts, end, key=_start)
        kept = []
        for part in self._parts[first:last]:
            if part.start < start:
                kept.append(part._replace(end=start))
            if end < part.end:
                kept.append(part._replace(start=end))
        self._parts[first:last] = kept

    def move(self, start: int, to: int, length: int) -> None:
        """Take note of an mremap(2)."""
        by, parts = to - start, self.within(start, start + length)
        self.drop(start, start + length)
        self.drop(to, to + length)
        moved = [Part(part.start + by, part.end + by, part.moved + by) for part in parts]
        self._parts = sorted([*self._parts, *moved])


class Space:
    """One address space: its userfaultfd, what is still to be filled, where it maps objects."""

    def __init__(self, uffd: Userfaultfd, todo: Iterable[Part], windows: Iterable[Part]) -> None:
        self.uffd = uffd
        self.todo, self.windows = Parts(todo), Parts(windows)
        self.waiting: dict[int, int] = {}
        """Pages that somebody waits for, and since when, in ns."""


class Figures:
    """What was done: faults, pages by why they were filled, and how long who asked had to wait."""

    def __init__(self) -> None:
        self.faults = 0
        self.pages = dict.fromkeys(Done, 0)
        self.waits_ns = array("Q")

    def as_dict(self) -> dict[str, object]:
        """Return them with names, for JSON; waits in us."""
        names = ("fault", "prefetch", "drain", "zero", "lost")
        pages = dict(zip(names, self.pages.values(), strict=False))
        return {"faults": self.faults, "pages": pages, "wait_us": self._waits()}

    def _waits(self) -> dict[str, float]:
        if not self.waits_ns:
            return {}
        waits = sorted(self.waits_ns)
        parts = {"median": 0.5, "p99": 0.99, "max": 1.0}
        places = {name: min(int(part * len(waits)), len(waits) - 1) for name, part in parts.items()}
        return {name: round(waits[place] / 1000, 1) for name, place in places.items()}


class Late:
    """All address spaces that have pages to come, the first of which is the restored process's.

    shared is what is to come of shared memory objects, by its address in the image: once for all
    who map them. Where they do is in each space's windows.
    """

    def __init__(
        self,
        uffd: Userfaultfd,
        todo: Iterable[Part],
        windows: Iterable[Part] = (),
        shared: Iterable[Part] = (),
    ) -> None:
        self.spaces = {uffd.fd: Space(uffd, todo, windows)}
        self.shared = Parts(shared)
        self.hurry = False
        """A mapping of shared memory may reach farther than we know: all of it is to come now."""
        self.doubtful: list[Part] = []
        """What was discarded of shared memory: by one process, or (MADV_REMOVE) for all?"""
        self.figures = Figures()
        self.touched: dict[int, None] = {}
        """Addresses of the image that were faulted on, in order."""

    def image_address(self, space: Space, address: int) -> int | None:
        """Return where the image has a page that is still to come; None if it has none."""
        if part := space.todo.at(address):
            return address - part.moved
        window = space.windows.at(address)
        if window and self.shared.at(address - window.moved):
            return address - window.moved
        return None

    def apply(self, record: Record) -> None:
        """Change as a record says."""
        kind, fd, a, b, c = record
        if fd == OBJECTS:
            self._of_objects(record)
            return
        space = self.spaces[fd]
        match kind:
            case Kind.PAGEFAULT:
                self._fault(space, b)
            case Kind.REMOVE:
                space.todo.drop(a, b)
                self.doubtful += self._mapped_in(space, a, b)
            case Kind.UNMAP:
                space.todo.drop(a, b)
                space.windows.drop(a, b)
            case Kind.REMAP:
                self._remap(space, a, b, c)
            case Kind.FORK:
                child = Userfaultfd(a & 0xFFFFFFFF)
                self.spaces[child.fd] = Space(child, space.todo, space.windows)
            case Done.LEFT:
                del self.spaces[fd]
            case _:
                space.todo.drop(a, b)
                self._filled(record)

    def _fault(self, space: Space, address: int) -> None:
        self.figures.faults += 1
        found = self.image_address(space, address)
        if found is not None:
            self.touched[found & -AROUND] = None

    def _mapped_in(self, space: Space, start: int, end: int) -> list[Part]:
        """Return what is mapped at [start, end) of objects, by its address in the image.

        All of it, while anything is to come: of each change that we are not to be told of later
        has to be known what it was.
        """
        if not self.shared:
            return []
        found = space.windows.within(start, end)
        return [Part(one.start - one.moved, one.end - one.moved, 0) for one in found]

    def _remap(self, space: Space, start: int, to: int, length: int) -> None:
        # The event has the old length: of what is made larger, or mapped a second time (an old
        # length of 0), it does not tell how far it reaches.
        if space.windows.at(start):
            self.hurry = True
        space.todo.move(start, to, length)
        space.windows.move(start, to, length)

    def _of_objects(self, record: Record) -> None:
        match record.kind:
            case Done.GONE:
                self.shared.drop(record.a, record.b)
            case Done.SETTLED:
                self.doubtful = []
            case _:
                self.shared.drop(record.a, record.b)
                self._filled(record)

    def _filled(self, record: Record) -> None:
        self.figures.pages[Done(record.kind)] += (record.b - record.a) // PAGE
        if record.c:
            self.figures.waits_ns.append(record.c)
