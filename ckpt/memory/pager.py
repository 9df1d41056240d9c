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
- REMOVE is told alike of MADV_DONTNEED, after which shared memory has still to come, and of
  MADV_REMOVE, after which it is zeros for all. Only the latter changes the file (`inotify`).
"""

import errno
import mmap
import os
import select
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from ckpt.errors import CkptError, KernelError
from ckpt.image.pages import PageReader
from ckpt.kernel.userfaultfd import Kind, Userfaultfd
from ckpt.log import INFO, Log
from ckpt.memory.journal import AT_ONCE, Done, Journal
from ckpt.memory.late import AROUND, OBJECTS, PAGE, Late, Part, Space
from ckpt.memory.window import Windows, number_of, offset_of

_POPULATE_READ = 22  # MADV_POPULATE_READ, Linux 5.14
_NOTHING = memoryview(b"")
_LARGEST = 2 << 20  # the same, when there has been no fault for a while
_DRAIN = 256 << 10  # what is filled in before faults are looked for again
_DOUBT = 2.0  # seconds from the reading of a REMOVE until MADV_REMOVE is done, at most
_TELL = 16  # pages that cannot be read are told of one by one, but not a million


class Source:
    """The pages of an image, by address; `why` is what was wrong with the last one not read.

    readers are by number: 0 has the process's own memory, the others each a shared object.
    """

    def __init__(self, readers: Mapping[int, PageReader]) -> None:
        self._readers = readers
        self._maps: dict[int, mmap.mmap] = {}
        self.why = ""

    @contextmanager
    def mapped(self, address: int, length: int) -> Iterator[memoryview | None]:
        """Lend pages where they are in the page cache, perhaps not all; None if it cannot be.

        What becomes of the file meanwhile shows when they are copied, as EFAULT.
        """
        run = self._readers[number_of(address)].find(offset_of(address))
        if run is None or run.fd < 0:
            yield None
            return
        offset = run.offset + offset_of(address) - run.vaddr
        length = min(length, run.end - offset_of(address))
        try:
            area = self._map(run.fd)
            area.madvise(_POPULATE_READ, offset, length)
        except (OSError, ValueError):
            yield None
            return
        yield memoryview(area)[offset : offset + length]
        area.madvise(mmap.MADV_DONTNEED, offset, length)  # else all of it counts as ours

    def _map(self, fd: int) -> mmap.mmap:
        if fd not in self._maps:
            self._maps[fd] = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        return self._maps[fd]

    def read(self, address: int, view: memoryview) -> int:
        """Read pages; returns how many bytes, from the first on, can be read."""
        reader, address, at = self._readers[number_of(address)], offset_of(address), 0
        while at < len(view):
            run = reader.find(address + at)
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
        windows: Windows | None = None,
        finished: Callable[[], None] = lambda: None,
    ) -> None:
        self.late = late
        self._journal, self._source, self._log = journal, source, log
        self._wanted, self._finished = list(wanted)[::-1], finished
        self._windows = windows or Windows([])
        self._buffer = memoryview(bytearray(_LARGEST))
        self._stride = _DRAIN
        self._poll = select.poll()
        for fd in late.spaces:
            self._poll.register(fd, select.POLLIN)

    def prefetch(self, pages: int) -> None:
        """Fill the first of what is wanted, so many pages, while nobody runs yet."""
        figures = self.late.figures.pages
        while self.late.spaces and self._wanted and figures[Done.PREFETCH] < pages:
            self._attend()
            self._advance()

    def run(self, holder: int = -1, gate: int = -1) -> bool:
        """Serve until all is filled, or all the processes are gone.

        Only faults until nobody has the other end of the pipe gate any more. Returns False if the
        process of a pidfd, holder, has ended before the end.
        """
        if holder >= 0:
            self._poll.register(holder, select.POLLIN)
        if gate >= 0:
            self._poll.register(gate, 0)
        while self.late.spaces:
            ready = self._attend()
            if holder in ready:
                return False
            if gate in ready:
                self._poll.unregister(gate)
                gate = -1
            elif not ready and not any(space.waiting for space in self.late.spaces.values()):
                self._go_on(gate)
        return True

    def _go_on(self, gate: int) -> None:
        """Fill the next piece, if it is time; else wait until something happens."""
        if gate < 0:
            self._advance()
        else:
            self._poll.poll()

    def resume(self) -> None:
        """See to what a pager that died has left undone."""
        if self.late.doubtful:
            self._settle()
        self._windows.forget()
        for space in self.late.spaces.values():
            space.uffd.wake_all()  # what was asked, but not answered, is asked again

    def _attend(self) -> list[int]:
        """Read and answer what has happened; returns the descriptors that had something."""
        ready = [fd for fd, _ in self._poll.poll(0)]
        for fd in ready:
            if fd in self.late.spaces:
                self._read(self.late.spaces[fd])
        while self.late.hurry and (part := self.late.shared.first()):
            self._fill(None, Done.DRAIN, _piece(part, part.start, _DRAIN))
        for space in list(self.late.spaces.values()):
            for address in list(space.waiting):
                if address in space.waiting:
                    self._answer(space, address)
        return ready

    def _read(self, space: Space) -> None:
        now = time.monotonic_ns()
        # Whoever causes an event goes on when it is read. So one by one, where each is to be
        # understood before the next may happen.
        alone = bool(self.late.shared) and bool(space.windows)
        for record in self._journal.read(space.uffd.fd, 1 if alone else AT_ONCE):
            self.late.apply(record)
            if record.kind == Kind.PAGEFAULT:
                space.waiting.setdefault(record.b & -PAGE, now)
                self._stride = _DRAIN
            elif record.kind == Kind.FORK:
                self._poll.register(record.a & 0xFFFFFFFF, select.POLLIN)
        if self.late.doubtful:
            self._settle()

    def _settle(self) -> None:
        """Wait until it is known whether shared memory that was discarded is gone for all."""
        deadline, watches = time.monotonic() + _DOUBT, set()
        for part in self.late.doubtful:
            watch = self._windows.watch(part.start)
            if watch.changed(deadline - time.monotonic()):
                self._note(Done.GONE, OBJECTS, part.start, part.end)
                watches.add(watch)
            else:
                self.late.hurry = True  # not to wait for the next one as long
        self._note(Done.SETTLED, OBJECTS)
        for watch in watches:
            watch.forget()

    def _note(self, why: Done, fd: int, start: int = 0, end: int = 0, took: int = 0) -> None:
        self.late.apply(self._journal.write(why, fd, start, end, took))

    def _answer(self, space: Space, address: int) -> None:
        since, part = space.waiting[address], space.todo.at(address)
        if part is not None:
            filled = self._fill(space, Done.FAULT, _piece(part, address, AROUND), since)
        elif self._answer_shared(space, address, since):
            return
        else:
            filled = self._put(space, Done.ZERO, Part(address, address + PAGE, 0), since)
        if filled and filled[0] <= address < filled[1]:
            del space.waiting[address]

    def _answer_shared(self, space: Space, address: int, since: int) -> bool:
        """Bring a page of an object, for all; returns False if it is not to come."""
        found = self.late.image_address(space, address)
        part = None if found is None else self.late.shared.at(found)
        if found is None or part is None:
            return False
        self._fill(None, Done.FAULT, _piece(part, found, AROUND), since)
        if self.late.shared.at(found) is None:
            del space.waiting[address]
            space.uffd.wake(address, address + PAGE)
        return True

    def _fill(
        self, space: Space | None, why: Done, part: Part, since: int = 0
    ) -> tuple[int, int] | None:
        """Fill as much of a part as can be now, of a space or, without one, of shared memory.

        Returns the range, None if nobody is there.
        """
        address = part.start - part.moved
        with self._source.mapped(address, part.end - part.start) as data:
            if data is not None:
                try:
                    whole = part._replace(end=part.start + len(data))
                    return self._put(space, why, whole, since, data)
                except KernelError as error:
                    if error.errno != errno.EFAULT:
                        raise
        view = self._buffer[: part.end - part.start]
        got = self._source.read(address, view)
        if got:
            return self._put(space, why, part._replace(end=part.start + got), since, view[:got])
        self._tell_lost(address)
        return self._put(space, Done.LOST, part._replace(end=part.start + PAGE), since)

    def _put(
        self, space: Space | None, why: Done, part: Part, since: int, data: memoryview = _NOTHING
    ) -> tuple[int, int] | None:
        """Put data, zeros or poison in place, and write down how far it went."""
        try:
            if space is None:
                length = self._put_object(why, part, data)
            else:
                length = _put_into(space.uffd, why, part, data)
        except KernelError as error:
            if space is None or error.errno != errno.ESRCH:
                raise
            self._leave(space)
            return None
        if length:
            took = time.monotonic_ns() - since if since else 0
            fd = space.uffd.fd if space else OBJECTS
            self._note(why, fd, part.start, part.start + length, took)
        return part.start, part.start + length

    def _put_object(self, why: Done, part: Part, data: memoryview) -> int:
        if why == Done.LOST:
            # Poison is in a process's page tables, and a fork's child would not inherit it.
            raise CkptError("a page of shared memory cannot be read")
        return self._windows.copy(part.start, data)

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
            shared = number_of(block) != 0
            todo = self.late.shared if shared else root.todo
            if parts := todo.within(block, block + AROUND):
                piece = _piece(todo.at(parts[0].start) or parts[0], parts[0].start, AROUND)
                self._fill(None if shared else root, Done.PREFETCH, piece)
                return
            self._wanted.pop()
        self._drain()

    def _drain(self) -> None:
        shared, stride = self.late.shared.first(), self._stride
        self._stride = min(2 * stride, _LARGEST)
        for space in list(self.late.spaces.values()):
            if part := space.todo.first():
                self._fill(space, Done.DRAIN, _piece(part, part.start, stride))
                return
            if not (shared and space.windows):
                self._leave(space)
        if shared and self.late.spaces:
            self._fill(None, Done.DRAIN, _piece(shared, shared.start, stride))

    def _leave(self, space: Space) -> None:
        """Let go of a process that has all its pages, or has ended: nothing faults any more."""
        fd = space.uffd.fd
        if len(self.late.spaces) == 1:
            self._finished()
        self._poll.unregister(fd)
        # First the record: a successor closes what it has no space for.
        self._note(Done.LEFT, fd)
        space.waiting.clear()
        space.uffd.close()

    def tell(self) -> None:
        """Write into the log what was done."""
        self._log.line(INFO, f"pager: {self.late.figures.as_dict()}")


def _piece(part: Part, address: int, size: int) -> Part:
    """Return the piece of a part that is filled when one address of it is wanted."""
    start = max(part.start, address & -size)
    return Part(start, min(part.end, (address & -size) + size), part.moved)


def _put_into(uffd: Userfaultfd, why: Done, part: Part, data: memoryview) -> int:
    length = part.end - part.start
    if why == Done.ZERO:
        return uffd.zero(part.start, length)
    if why == Done.LOST:
        return uffd.poison(part.start, length)
    return uffd.copy(part.start, data)
