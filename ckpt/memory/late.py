# SPDX-License-Identifier: Apache-2.0
"""What of a process's memory has still to come: plain data, changed by one record at a time.

A pager's every step is a record of its journal, so whoever replays them is where it was.
"""

from array import array
from bisect import bisect_left, bisect_right
from operator import attrgetter
from statistics import quantiles
from typing import NamedTuple

from ckpt.kernel.userfaultfd import Kind, Userfaultfd
from ckpt.memory.journal import Done, Record

PAGE = 4096
AROUND = 64 << 10
"""What a fault brings along, and the unit of the order kept for the next restore."""

_start = attrgetter("start")


class Part(NamedTuple):
    """Pages [start, end) still to be filled; the image has them `moved` bytes below."""

    start: int
    end: int
    moved: int


class Space:
    """One address space: its userfaultfd and what is still to be filled, by address."""

    def __init__(self, uffd: Userfaultfd, todo: list[Part]) -> None:
        self.uffd = uffd
        self.todo = todo
        self.waiting: dict[int, int] = {}
        """Pages that somebody waits for, and since when, in ns."""

    def _first(self, address: int) -> int:
        """Return the index of the first part that ends behind an address."""
        index = bisect_right(self.todo, address, key=_start) - 1
        return index if index >= 0 and address < self.todo[index].end else index + 1

    def at(self, address: int) -> Part | None:
        """Return the part that an address is in."""
        index = self._first(address)
        part = self.todo[index] if index < len(self.todo) else None
        return part if part and part.start <= address else None

    def within(self, start: int, end: int) -> Part | None:
        """Return the first of what is still to be filled in [start, end)."""
        index = self._first(start)
        part = self.todo[index] if index < len(self.todo) else None
        if part is None or part.start >= end:
            return None
        return Part(max(part.start, start), min(part.end, end), part.moved)

    def drop(self, start: int, end: int) -> list[Part]:
        """Take [start, end) out, and return what there was of it."""
        if start >= end:
            return []
        first, last = self._first(start), bisect_left(self.todo, end, key=_start)
        kept, dropped = [], []
        for part in self.todo[first:last]:
            dropped.append(Part(max(part.start, start), min(part.end, end), part.moved))
            if part.start < start:
                kept.append(part._replace(end=start))
            if end < part.end:
                kept.append(part._replace(start=end))
        self.todo[first:last] = kept
        return dropped

    def move(self, start: int, to: int, length: int) -> None:
        """Take note of an mremap(2)."""
        by, parts = to - start, self.drop(start, start + length)
        self.drop(to, to + length)
        moved = [Part(part.start + by, part.end + by, part.moved + by) for part in parts]
        self.todo = sorted([*self.todo, *moved])


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
        if len(self.waits_ns) < 2:
            return {}
        cut = quantiles(self.waits_ns, n=100)
        chosen = {"median": cut[49], "p99": cut[98], "max": max(self.waits_ns)}
        return {name: round(value / 1000, 1) for name, value in chosen.items()}


class Late:
    """All address spaces that have pages to come, the first of which is the restored process's."""

    def __init__(self, uffd: Userfaultfd, todo: list[Part]) -> None:
        self.spaces = {uffd.fd: Space(uffd, todo)}
        self.figures = Figures()
        self.touched: dict[int, None] = {}
        """Addresses of the image that were faulted on, in order."""

    def apply(self, record: Record) -> None:
        """Change as a record says."""
        kind, fd, a, b, c = record
        space = self.spaces[fd]
        match kind:
            case Kind.PAGEFAULT:
                self._fault(space, b)
            case Kind.REMOVE | Kind.UNMAP:
                space.drop(a, b)
            case Kind.REMAP:
                space.move(a, b, c)
            case Kind.FORK:
                child = Userfaultfd(a & 0xFFFFFFFF)
                self.spaces[child.fd] = Space(child, list(space.todo))
            case Done.LEFT:
                del self.spaces[fd]
            case _:
                self._filled(space, record)

    def _fault(self, space: Space, address: int) -> None:
        self.figures.faults += 1
        part = space.at(address)
        if part:
            self.touched[(address - part.moved) & -AROUND] = None

    def _filled(self, space: Space, record: Record) -> None:
        space.drop(record.a, record.b)
        self.figures.pages[Done(record.kind)] += (record.b - record.a) // PAGE
        if record.c:
            self.figures.waits_ns.append(record.c)
