# SPDX-License-Identifier: Apache-2.0
"""Pages of an image into a process that runs already: missing faults first, the rest meanwhile.

One loop: what has happened is read; a fault is answered with the page and its neighbours from the
image, or with zeros where the image has none; when nothing waits, the next piece is filled in. A
process's memory may move, go away, or be forked: so each address space keeps which ranges are
still to be filled, and from where.
"""

import errno
import os
import select
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ckpt.errors import KernelError
from ckpt.image.pages import PAGE, PageReader
from ckpt.kernel.userfaultfd import Event, Kind, Userfaultfd
from ckpt.memory.layout import Range

_AROUND = 64 << 10  # what a fault brings along
_DRAIN = 256 << 10  # what is filled in before faults are looked for again


class Part(NamedTuple):
    """Pages [start, end) still to be filled; the image has them `moved` bytes below."""

    start: int
    end: int
    moved: int


class Figures:
    """What a pager did, in pages; faults are counted, lost pages could not be read."""

    __slots__ = ("by_drain", "by_fault", "faults", "lost", "zeros")

    def __init__(self) -> None:
        self.faults = self.by_fault = self.by_drain = self.zeros = self.lost = 0


class Space:
    """One address space: its userfaultfd and what is still to be filled, by address."""

    def __init__(self, uffd: Userfaultfd, todo: list[Part]) -> None:
        self.uffd = uffd
        self.todo = todo
        self.waiting: list[int] = []

    def at(self, address: int) -> Part | None:
        """Return the part that an address is in."""
        index = bisect_right(self.todo, address, key=lambda part: part.start) - 1
        if index >= 0 and address < self.todo[index].end:
            return self.todo[index]
        return None

    def drop(self, start: int, end: int) -> list[Part]:
        """Take [start, end) out, and return what there was of it."""
        kept, dropped = [], []
        for part in self.todo:
            low, high = max(part.start, start), min(part.end, end)
            if low >= high:
                kept.append(part)
                continue
            dropped.append(Part(low, high, part.moved))
            if part.start < low:
                kept.append(part._replace(end=low))
            if high < part.end:
                kept.append(part._replace(start=high))
        self.todo = kept
        return dropped

    def move(self, start: int, end: int, to: int) -> None:
        """Take note of an mremap(2) of [start, end)."""
        by = to - start
        moved = [Part(a + by, b + by, m + by) for a, b, m in self.drop(start, end)]
        self.todo = sorted([*self.todo, *moved])


class Pager:
    """Fills address spaces from an image until nothing is left to fill.

    first are addresses to be filled before others. Who touches a page that cannot be read gets
    SIGBUS, never zeros.
    """

    def __init__(self, reader: PageReader, space: Space, first: Iterable[int] = ()) -> None:
        self.figures = Figures()
        self.hot: list[int] = []
        self._reader = reader
        self._spaces = {space.uffd.fd: space}
        self._first = list(first)[::-1]
        self._poll = select.poll()
        self._poll.register(space.uffd.fd, select.POLLIN)
        self._buffer = memoryview(bytearray(_DRAIN))

    def run(self) -> None:
        """Serve until all is filled, or all the processes are gone."""
        while self._spaces:
            busy = any(space.waiting for space in self._spaces.values())
            for fd, event in self._poll.poll(0):
                if event & select.POLLIN:
                    self._attend(self._spaces[fd])
                else:
                    self._forget(fd)
                busy = True
            if not busy:
                self._drain()

    def _forget(self, fd: int) -> None:
        self._poll.unregister(fd)
        self._spaces.pop(fd).uffd.close()

    def _attend(self, space: Space) -> None:
        for event in space.uffd.events():
            self._take(space, event)
        waiting, space.waiting = space.waiting, []
        for address in waiting:
            self._answer(space, address)

    def _take(self, space: Space, event: Event) -> None:
        match event.kind:
            case Kind.PAGEFAULT:
                self.figures.faults += 1
                space.waiting.append(event.start)
            case Kind.REMOVE | Kind.UNMAP:
                space.drop(event.start, event.end)
            case Kind.REMAP:
                space.move(event.start, event.end, event.to)
            case Kind.FORK:
                child = Space(Userfaultfd(event.to), list(space.todo))
                self._spaces[event.to] = child
                self._poll.register(event.to, select.POLLIN)

    def _answer(self, space: Space, address: int) -> None:
        part = space.at(address)
        if part is None:
            self.figures.zeros += 1
            if not space.uffd.zero(address, PAGE):
                space.waiting.append(address)
            return
        self.hot.append(address - part.moved)
        start = max(part.start, address & -_AROUND)
        end = min(part.end, start + _AROUND)
        filled = self._fill(space, Part(start, end, part.moved))
        self.figures.by_fault += filled // PAGE
        if start + filled <= address:
            space.waiting.append(address)

    def _fill(self, space: Space, part: Part) -> int:
        """Fill as much of a part as can be now; returns the bytes."""
        view = self._buffer[: part.end - part.start]
        readable = self._read(part.start - part.moved, view)
        if readable:
            done = self._put(lambda: space.uffd.copy(part.start, view[:readable]), readable)
        else:
            # Whoever touches it gets SIGBUS, not zeros.
            done = self._put(lambda: space.uffd.poison(part.start, PAGE), PAGE)
            self.figures.lost += 1
        space.drop(part.start, part.start + done)
        return done

    def _put(self, put: Callable[[], int], length: int) -> int:
        try:
            return put()
        except KernelError as error:
            if error.errno != errno.ESRCH:
                raise
            return length  # the process is gone; its descriptor will tell

    def _read(self, address: int, view: memoryview) -> int:
        """Read pages of the image; returns how many bytes, from the first on, can be read."""
        at = 0
        while at < len(view):
            run = self._reader.find(address + at)
            if run is None or run.fd < 0:
                return at
            inside = address + at - run.vaddr
            wanted = min(len(view) - at, run.nr_pages * PAGE - inside)
            try:
                got = os.preadv(run.fd, [view[at : at + wanted]], run.offset + inside)
            except OSError:
                got = 0
            at += got // PAGE * PAGE
            if got != wanted:
                return at
        return at

    def _drain(self) -> None:
        """Fill the next piece: what is wanted first, then by address."""
        for fd, space in list(self._spaces.items()):
            part = self._wanted(space) or (space.todo[0] if space.todo else None)
            if part is None:
                self._leave(fd)
                continue
            end = min(part.end, part.start + _DRAIN)
            self.figures.by_drain += self._fill(space, part._replace(end=end)) // PAGE
            return

    def _wanted(self, space: Space) -> Part | None:
        while self._first:
            address = self._first.pop()
            part = space.at(address)
            if part:
                start = max(part.start, address & -_AROUND)
                return Part(start, min(part.end, start + _AROUND), part.moved)
        return None

    def _leave(self, fd: int) -> None:
        """Take leave of a process that has all its pages: without us, nothing faults any more."""
        self._forget(fd)


def parts(ranges: Iterable[Range]) -> list[Part]:
    """Return ranges that the image has in the same place."""
    return [Part(start, end, 0) for start, end in ranges]
