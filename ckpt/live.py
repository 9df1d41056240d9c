# SPDX-License-Identifier: Apache-2.0
"""Memory saved while the process runs, as of one instant: protect, copy, copy again, freeze.

Write-protection goes on first, all of it while the process runs; then the pages are copied. What
is written meanwhile is logged, protected and copied again, pass by pass. Where a pass has not made
the log shorter by half, those who write are held up, at each first write to a page, for longer
than it takes us to copy one; so it gets shorter, however fast they write. The last few pages are
copied in the freeze, together with what cannot be protected. That instant is the image's: after it
nothing is left to be saved, so the process may unmap, execute or die as it likes.
"""

import errno
import os
import time
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from typing import NamedTuple

from ckpt.errors import CkptError, KernelError, TargetDied
from ckpt.freeze import FrozenProcess
from ckpt.image import pb
from ckpt.image.hot import write_hot
from ckpt.image.pages import PAGE, PageWriter
from ckpt.infect import fetch_userfaultfd
from ckpt.kernel.glance import Glance, Seen
from ckpt.kernel.maps import MapsEntry, smaps
from ckpt.kernel.pagemap import Page, Region
from ckpt.kernel.userfaultfd import TRACKING, Userfaultfd
from ckpt.log import INFO
from ckpt.mappings import Mappings
from ckpt.memory import pages, vmas
from ckpt.memory.coverage import Coverage
from ckpt.memory.layout import Range, intersect, subtract, union
from ckpt.memory.pace import Pace
from ckpt.memory.spool import Spool
from ckpt.memory.tracker import Pages, Tracker, each_once, ranges_of
from ckpt.memory.vmas import Status
from ckpt.snapshot import Pass, TaskSnapshot, Unseen, open_proc

_ENOUGH = 64  # pages: copying so few costs the freeze less than another pass would save
_PASSES = 64
_PART = 16 << 20
_SLICE = 1 << 14  # pages that are protected together: what we keep of each takes 1 KiB
_PAUSES = (0, 0.002, 0.02, 0.1)  # s: so long who unmaps may take to say so
_UFFD_WP = "uw"  # of VmFlags in smaps
_WORTH_PACING = 8 << 20  # less is copied at once, lest the log grow as fast as it is copied


class Live:
    """The engine that saves memory while the process runs; a context manager around it all.

    Making it raises KernelError where a userfaultfd is not to be had.
    """

    takes_long = False

    def __init__(self, snapshot: TaskSnapshot) -> None:
        self.snapshot, self.pid, self.tid = snapshot, snapshot.pid, snapshot.tid
        self.passes: list[Pass] = []
        self._pace = Pace(snapshot.files.options.max_rate)
        self._mappings = Mappings(snapshot)
        self._pending: Pages = array("Q")
        self._unprotected: Pages = array("Q")
        self._view = memoryview(bytearray(pages.BUFFER))
        self._logs: list[Pages] = []
        self._frozen_copy: list[tuple[list[tuple[int, int]], bytearray]] = []
        self._plan, self._logged = _Blind([], []), list[Range]()
        self._looked = False
        self._found: list[Region] = []
        self._trackable: list[Range] = []
        self._held = ExitStack()
        with ExitStack() as held:
            held.push(self._held)
            self._tracker = Tracker()
            self._held.callback(self._tracker.close)
            snapshot.waits = fetch_userfaultfd(
                snapshot.way,
                snapshot.pidfd,
                TRACKING,
                self,
                snapshot.guard,
                snapshot.sandbox,
                snapshot.sharers(),
            )
            held.pop_all()

    def plan(self, mappings: list[MapsEntry]) -> None:
        """Take note of what is to be tracked."""
        self._trackable = [(one.start, one.end) for one in mappings if _trackable(one)]

    def register(self, uffd: Userfaultfd) -> None:
        """Have it tracked."""
        self._tracker.register(uffd, self._trackable)

    def __enter__(self) -> "Live":
        with ExitStack() as held:
            held.push(self._held)
            self._pagemap = open_proc(self.tid, "pagemap")
            held.callback(os.close, self._pagemap)
            self._mem = open_proc(self.tid, "mem")
            held.callback(os.close, self._mem)
            self._tracker.start()
            self._coverage = Coverage(self._tracker, self._pagemap)
            self._coverage.distrust(self.snapshot.unseen)
            self._unprotected.extend(start for start, _ in self._tracker.registered[:1])
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()
        if not any(error) and any(self._logs):
            # What is written over and over comes first: what is in the last log.
            write_hot(self.snapshot.image.path, self.pid, chain.from_iterable(self._logs[::-1]))

    # --- while it runs

    def prepare(self) -> None:
        """Protect, and copy until little is left to copy."""
        with _alive(self.pid):
            self._copy_all()
            self._converge()

    def look_ahead(self, glance: Glance) -> None:
        """Look at the mappings: in the freeze we shall only see whether they are the same."""
        with _alive(self.pid):
            self._mappings.look_ahead(glance)
            self._coverage.look_for_guards()

    def approach(self) -> None:
        """Copy once more what was written meanwhile, until little is left again."""
        with _alive(self.pid):
            self._converge()
            if self._coverage.guarded:  # looked for as late as can be: nothing tells of them
                self._coverage.look_for_guards()
                self._converge()
        self._mappings.look_at_files()
        self._plan_for(self._mappings.vmas)
        self.snapshot.vmas = self._mappings.vmas
        self.snapshot.attached()
        self._tracker.let_run()

    def _copy_all(self) -> None:
        """Copy all once, each part just after it is protected: a fault before that is in vain."""
        since = time.monotonic_ns()
        first = self._coverage.there()
        image = self.snapshot.image
        self._writer = PageWriter(image, "pagemap", self.pid, self.snapshot.pages_id())
        self._held.callback(self._writer.abandon)
        self._spool = Spool(self._writer, image.fd, first)
        self._held.callback(self._spool.close)
        log, copied, done = self.snapshot.files.options.log, 0, 0
        for part in _parts(first, _PART):
            here = self._coverage.look(part)
            self._copy(here)
            copied += sum(end - start for start, end in here)
            log.copied(copied, self._spool.size)
            size = sum(end - start for start, end in part)
            pages.begin_write_back(self._writer.fd, done, size)
            done += size
        self._note(copied // PAGE, 0, since)

    def _converge(self) -> None:
        before = 0
        most = self.snapshot.files.options.precopy or _PASSES
        while True:
            written, new = self._written()
            count = len(written) + sum(end - start for start, end in new) // PAGE
            if count <= _ENOUGH or len(self.passes) >= most:
                self._copy(new)
                self._pending = written
                return
            if before and count > before // 2:
                self._tracker.hold_back(self.passes[-1].took_ns / self.passes[-1].pages)
            since, before = time.monotonic_ns(), count
            self._copy(new)
            for at in range(0, len(written), _SLICE):
                dirty = intersect(ranges_of(written[at : at + _SLICE]), self._coverage.seen)
                self._tracker.protect(dirty)
                self._copy(dirty)
            self._note(count, len(written), since)

    def _written(self) -> tuple[Pages, list[Range]]:
        """Return the pages to be copied again, and where there are new ones, protected by now."""
        log, lost = self._tracker.take()
        self._logs.append(log)
        self._coverage.lose(lost)
        new = self._coverage.look()
        written, self._pending = each_once(self._pending + log), array("Q")
        return written, new

    def _note(self, count: int, again: int, since: int) -> None:
        took = time.monotonic_ns() - since
        self.passes.append(Pass(count, again, took))
        log = self.snapshot.files.options.log
        log.line(INFO, f"pass {len(self.passes)}: {count} pages in {took / 1e6:.3f} ms")

    def _copy(self, ranges: list[Range]) -> None:
        paced = sum(end - start for start, end in ranges) > _WORTH_PACING
        for pieces, _, size in pages.filled(ranges):
            view = self._view[:size]
            pages.read_into(self.tid, self._mem, pieces, view, running=True)
            self._spool.put(pieces, view)
            if paced:
                self._pace.copied(size)

    # --- in the freeze

    def see(self, seen: Seen) -> None:
        """Look at all of it, unless its mappings have to be looked at again."""
        if self._mappings.are(seen):
            self._look(seen)

    def beside(self, seen: Seen) -> None:
        """Take it, if it was looked at."""
        if self._looked:
            self._take()

    def freeze(self, frozen: FrozenProcess, seen: Seen) -> None:
        """Do what is not done yet."""
        if not self._looked:
            self._look(seen)
            self._take()

    def _look(self, seen: Seen) -> None:
        """Read the log to its end, and see what there is where it is blind."""
        self._looked = True
        with _alive(self.pid):
            self._tracker.drain()
            log, lost = self._tracker.take()
        self._unprotected += self._pending + log
        self._pending += log
        same = self._mappings.take(seen)
        self.snapshot.vmas = self._mappings.vmas
        if lost or not same:
            self._coverage.lose(lost)
            self._plan_for(self.snapshot.vmas)
        self._found = self._plan.look(self._pagemap)

    def _take(self) -> None:
        """Take the log's last pages, and all that it could not see. The process is stopped."""
        held = 0
        here = [(run.start, run.end) for run in self._found if not _guards(run)]
        for pieces, _, size in pages.filled(union([*self._last(), *here])):
            room = bytearray(size)
            self._read(pieces, room)
            self._frozen_copy.append((pieces, room))
            self.snapshot.report.frozen_pages += size // PAGE
            held += size
            if held > self.snapshot.files.options.buffer:
                self._put_frozen()
                held = 0

    def _read(self, pieces: list[tuple[int, int]], room: bytearray) -> None:
        """Read pages in the freeze; guard pages may have come up where the log has written ones."""
        try:
            pages.read_into(self.tid, self._mem, pieces, memoryview(room))
        except KernelError as error:
            ranges = [(start, start + length) for start, length in pieces]
            raise Unseen(self.pid, ranges) from error

    def _last(self) -> list[Range]:
        """Return the pages of the log that are to be copied in the freeze."""
        written = self._pending
        if self.snapshot.opened.any_direct():
            # Direct I/O writes to a page long after the fault that told of it.
            written = sum(self._logs, written)
        return intersect(ranges_of(each_once(written)), self._logged)

    def _plan_for(self, entries: list[pb.vma_entry]) -> None:
        """Say where the log counts, and where it is blind."""
        seen = self._coverage.seen
        self._plan = _blind(entries, seen)
        self._logged = intersect(seen, [(entry.start, entry.end) for entry in entries])

    # --- when it runs again

    def finish(self) -> None:
        """Let go of the process, write what the freeze took, and put the pages in order."""
        self._verify()
        self._tracker.close()
        self._put_frozen()
        snapshot, spool = self.snapshot, self._spool
        there, guards = self._there()
        kept = union([*subtract(spool.ranges(), self._plan.ranges()), *there])
        wanted = []
        for entry in snapshot.vmas:
            for start, end in intersect(kept, [(entry.start, entry.end)]):
                if vmas.is_private(entry) or entry.status & Status.VDSO:
                    wanted.append((start, end))
                    self._writer.add(start, (end - start) // PAGE, pages.flags_of(entry))
        spool.arrange(wanted)
        spool.close()
        self._writer.close()
        snapshot.report.passes += self.passes
        snapshot.report.faults += self._tracker.faults
        snapshot.report.copying_ns += sum(one.took_ns for one in self.passes)
        snapshot.report.memory.scanned += sum(e.end - e.start for e in snapshot.vmas) // PAGE
        snapshot.report.memory.written += self._writer.size // PAGE
        snapshot.vmas = vmas.merged_vvar(snapshot.vmas) + guards

    def _verify(self) -> None:
        """See that no page has lost its protection but by a fault that is in the log.

        That might have been before the freeze, and the page's last content is not in the image
        then. Guard pages can do it (madvise(2)): where they come and go the kernel tells nobody.
        Raises Unseen.
        """
        unseen: list[Range] = []
        with suppress(CkptError):  # the process has ended by now, or executes another program
            for pause in _PAUSES:
                time.sleep(pause)
                unseen = self._unseen()
                if not unseen:
                    return
            tracked = [(e.start, e.end) for e in smaps(self.tid) if _UFFD_WP in e.vm_flags]
            unseen = intersect(unseen, tracked)
        if unseen:
            raise Unseen(self.pid, unseen)

    def _unseen(self) -> list[Range]:
        """Return the pages that are not protected though they are not in the log; not for sure.

        What is unmapped is told of when it is done, and other memory may be there by then.
        """
        unprotected = self._coverage.unprotected()
        log, lost = self._tracker.take()
        self._unprotected += log
        self._coverage.lose(lost)
        known = ranges_of(each_once(self._unprotected))
        return intersect(subtract(unprotected, known), self._coverage.seen)

    def _put_frozen(self) -> None:
        for pieces, room in self._frozen_copy:
            self._spool.put(pieces, memoryview(room))
        self._frozen_copy.clear()

    def _there(self) -> tuple[list[Range], list[pb.vma_entry]]:
        """Return what the freeze has found where the log is blind: pages, and guard pages."""
        guards = [vmas.guard(run.start, run.end) for run in self._found if _guards(run)]
        return [(run.start, run.end) for run in self._found if not _guards(run)], guards


class _Blind(NamedTuple):
    """Memory where the log is blind, to be looked at in the freeze: private, and the vDSO."""

    private: list[Range]
    kernels: list[Range]

    def look(self, pagemap: int) -> list[Region]:
        """Return its runs of pages that are not a file's."""
        found = pages.written(pagemap, self.private)
        return found + pages.written(pagemap, self.kernels, kernels=True)

    def ranges(self) -> list[Range]:
        """Return all of it."""
        return union([*self.private, *self.kernels])


def _blind(entries: list[pb.vma_entry], seen: list[Range]) -> _Blind:
    """Return where the log is blind, in as few ranges as can be."""
    private = [(entry.start, entry.end) for entry in entries if vmas.is_private(entry)]
    kernels = [e for e in entries if e.status & Status.VDSO and not vmas.is_private(e)]
    return _Blind(union(subtract(private, seen)), [(entry.start, entry.end) for entry in kernels])


def _guards(run: Region) -> bool:
    return bool(run.categories & Page.GUARD)


def _trackable(mapping: MapsEntry) -> bool:
    """Say whether writes to a mapping can be tracked: anonymous and private, of ordinary pages."""
    path = mapping.path
    ours = path in ("", "[heap]", "[stack]") or path.startswith("[anon:")
    return ours and not mapping.shared and not mapping.inode


@contextmanager
def _alive(pid: int) -> Iterator[None]:
    """Say what it means when the address space that we look at is no more."""
    try:
        yield
    except KernelError as error:
        if error.errno != errno.ESRCH:
            raise
        raise TargetDied(
            f"pid {pid} ended, or executed another program, while its memory was being saved"
        ) from error


def _parts(ranges: list[Range], most: int) -> Iterator[list[Range]]:
    """Cut ranges into lists of as many as have most bytes in all; a longer one is cut, too."""
    for pieces, _, _ in pages.filled(ranges, most):
        yield [(start, start + length) for start, length in pieces]
