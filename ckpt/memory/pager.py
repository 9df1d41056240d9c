# SPDX-License-Identifier: Apache-2.0
"""Pages of an image into a process that runs already: missing faults first, the rest meanwhile.

One loop: what has happened is read; a fault is answered with the page and its neighbours from the
image, or with zeros where the image has none; when nothing waits, the next piece is filled in.
A process's memory may move, go away, or be forked meanwhile: `late` keeps track of that.

Facts that bite:
- Faults are told before the events that came first, but until those are read every ioctl says
  EAGAIN. So an answer that failed is looked up anew after the next read.
- UNMAP is told when the pages are gone, REMOVE before: between its reading and the end of the
  madvise(2) a page is zeros for whoever asks.
- The end of a process is not told: the next ioctl says ESRCH.
"""

import errno
import os
import select
import time
from collections.abc import Callable, Iterable

from ckpt.errors import KernelError
from ckpt.image.pages import PageReader
from ckpt.kernel.userfaultfd import Kind
from ckpt.log import INFO, Log
from ckpt.memory.journal import Done, Journal
from ckpt.memory.late import AROUND, PAGE, Late, Part, Space

_DRAIN = 256 << 10  # what is filled in before faults are looked for again
_TELL = 16  # pages that cannot be read are told of one by one, but not a million


class Source:
    """The pages of an image, by address; `why` is what was wrong with the last one not read."""

    def __init__(self, reader: PageReader) -> None:
        self._reader = reader
        self.why = ""

    def read(self, address: int, view: memoryview) -> int:
        """Read pages; returns how many bytes, from the first on, can be read."""
        at = 0
        while at < len(view):
            run = self._reader.find(address + at)
            if run is None or run.fd < 0:
                self.why = "the image does not have it"
                break
            inside = address + at - run.vaddr
            wanted = min(len(view) - at, run.nr_pages * PAGE - inside)
            got = self._pread(run.fd, view[at : at + wanted], run.offset + inside)
            at += got
            if got < wanted:
                break
        return at

    def _pread(self, fd: int, view: memoryview, offset: int) -> int:
        # A page that cannot be read must not take those before it along.
        for part in (view, view[:PAGE]):
            try:
                got = os.preadv(fd, [part], offset) // PAGE * PAGE
                self.why = "the pages file has become too short"
                return got
            except OSError as error:
                self.why = error.strerror or ""
        return 0


class Pager:
    """Fills address spaces from an image until nothing is left to fill.

    wanted are addresses of the image to be filled before others, in order. Who touches a page
    that cannot be read gets SIGBUS, never zeros. finished is called when nothing is left to fill,
    before the last process is let go of.
    """

    def __init__(
        self,
        late: Late,
        journal: Journal,
        source: Source,
        log: Log,
        wanted: Iterable[int] = (),
        finished: Callable[[], None] = lambda: None,
    ) -> None:
        self.late = late
        self._journal, self._source, self._log = journal, source, log
        self._wanted, self._finished = list(wanted)[::-1], finished
        self._buffer = memoryview(bytearray(_DRAIN))
        self._poll = select.poll()
        for fd in late.spaces:
            self._poll.register(fd, select.POLLIN)

    def prefetch(self, pages: int) -> None:
        """Fill the first of what is wanted, so many pages, while nobody runs yet."""
        figures = self.late.figures.pages
        while self.late.spaces and self._wanted and figures[Done.PREFETCH] < pages:
            self._attend()
            self._advance()

    def run(self, holder: int = -1) -> bool:
        """Serve until all is filled, or all the processes are gone.

        Returns False if the process of a pidfd, holder, has ended before that.
        """
        if holder >= 0:
            self._poll.register(holder, select.POLLIN)
        while self.late.spaces:
            ready = self._attend()
            if holder in ready:
                return False
            if not ready and not any(space.waiting for space in self.late.spaces.values()):
                self._advance()
        return True

    def _attend(self) -> list[int]:
        """Read and answer what has happened; returns the descriptors that had something."""
        ready = [fd for fd, _ in self._poll.poll(0)]
        for fd in ready:
            if fd in self.late.spaces:
                self._read(self.late.spaces[fd])
        for space in list(self.late.spaces.values()):
            for address in list(space.waiting):
                if address in space.waiting:
                    self._answer(space, address)
        return ready

    def _read(self, space: Space) -> None:
        now = time.monotonic_ns()
        for record in self._journal.read(space.uffd.fd):
            self.late.apply(record)
            if record.kind == Kind.PAGEFAULT:
                space.waiting.setdefault(record.b & -PAGE, now)
            elif record.kind == Kind.FORK:
                self._poll.register(record.a & 0xFFFFFFFF, select.POLLIN)

    def _answer(self, space: Space, address: int) -> None:
        since, part = space.waiting[address], space.at(address)
        if part is None:
            filled = self._put(space, Done.ZERO, Part(address, address + PAGE, 0), since)
        else:
            filled = self._fill(space, Done.FAULT, _around(part, address), since)
        if filled and filled[0] <= address < filled[1]:
            del space.waiting[address]

    def _fill(self, space: Space, why: Done, part: Part, since: int = 0) -> tuple[int, int] | None:
        """Fill as much of a part as can be now; returns the range, None if nobody is there."""
        view = self._buffer[: part.end - part.start]
        got = self._source.read(part.start - part.moved, view)
        if got:
            return self._put(space, why, part._replace(end=part.start + got), since)
        lost = part._replace(end=part.start + PAGE)
        self._tell_lost(lost.start - lost.moved)
        return self._put(space, Done.LOST, lost, since)

    def _put(self, space: Space, why: Done, part: Part, since: int) -> tuple[int, int] | None:
        """Put what is in the buffer, zeros or poison in place, and write down how far it went."""
        uffd, (start, end, _) = space.uffd, part
        try:
            if why == Done.ZERO:
                length = uffd.zero(start, end - start)
            elif why == Done.LOST:
                length = uffd.poison(start, end - start)
            else:
                length = uffd.copy(start, self._buffer[: end - start])
        except KernelError as error:
            if error.errno != errno.ESRCH:
                raise
            self._leave(space)
            return None
        if length:
            took = time.monotonic_ns() - since if since else 0
            self.late.apply(self._journal.write(why, uffd.fd, start, start + length, took))
        return start, start + length

    def _tell_lost(self, address: int) -> None:
        lost = self.late.figures.pages[Done.LOST]
        if lost < _TELL:
            why = self._source.why
            text = f"page {address:#x} cannot be read ({why}): SIGBUS for who touches it"
            self._log.error("pager", text)
        elif lost == _TELL:
            self._log.error("pager", "and more pages cannot be read")

    def _advance(self) -> None:
        """Fill the next piece: what is wanted first, then by address."""
        root = next(iter(self.late.spaces.values()))
        while self._wanted:
            block = self._wanted[-1] & -AROUND
            if part := root.within(block, block + AROUND):
                self._fill(root, Done.PREFETCH, part)
                return
            self._wanted.pop()
        for space in list(self.late.spaces.values()):
            if space.todo:
                part = space.todo[0]
                self._fill(space, Done.DRAIN, part._replace(end=min(part.end, part.start + _DRAIN)))
                return
            self._leave(space)

    def _leave(self, space: Space) -> None:
        """Let go of a process that has all its pages, or has ended: nothing faults any more."""
        fd = space.uffd.fd
        if len(self.late.spaces) == 1:
            self._finished()
        self._poll.unregister(fd)
        # First the record: a successor closes what it has no space for.
        self.late.apply(self._journal.write(Done.LEFT, fd))
        space.waiting.clear()
        space.uffd.close()

    def tell(self) -> None:
        """Write into the log what was done."""
        self._log.line(INFO, f"pager: {self.late.figures.as_dict()}")


def _around(part: Part, address: int) -> Part:
    """Return the piece of a part that is filled when one address of it is wanted."""
    start = max(part.start, address & -AROUND)
    return Part(start, min(part.end, (address & -AROUND) + AROUND), part.moved)
