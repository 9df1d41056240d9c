# SPDX-License-Identifier: Apache-2.0
"""Memory saved while the process runs, as of one instant: protect, copy, copy again, freeze.

Write-protection goes on first, all of it while the process runs; then the pages are copied. What
is written meanwhile is logged, protected and copied again, pass by pass. Answering a fault takes
the process longer than copying a page takes us, so each pass is shorter than the one before,
however fast it writes. The last few pages are copied in the freeze, together with what cannot be
protected. That instant is the image's: after it nothing is left to be saved, so the process may
unmap, execute or die as it likes.
"""

import os
import time
from functools import partial
from typing import NamedTuple

from ckpt.freeze import Frozen
from ckpt.image import pb
from ckpt.image.pages import PAGE, PageWriter
from ckpt.infect import fetch_userfaultfd
from ckpt.kernel.maps import MapsEntry, SmapsEntry, maps, smaps
from ckpt.kernel.pagemap import Page, Region, scan
from ckpt.kernel.userfaultfd import TRACKING
from ckpt.log import INFO
from ckpt.memory import pages, vmas
from ckpt.memory.layout import Range, intersect, subtract, union
from ckpt.memory.spool import Spool
from ckpt.memory.tracker import Tracker, runs_of
from ckpt.memory.vmas import MAP_HUGETLB, Status
from ckpt.snapshot import Snapshot, mapped_file, open_proc

_ENOUGH = 64  # pages: copying so few costs the freeze less than another pass would save
_PASSES = 24
_CHUNK = 1 << 20


class Pass(NamedTuple):
    """What one pass over the memory did."""

    pages: int
    took_ns: int


class Live:
    """The engine that saves memory while the process runs; a context manager around it all.

    Making it raises KernelError where a userfaultfd is not to be had.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot, self.pid = snapshot, snapshot.pid
        self.passes: list[Pass] = []
        self.copied_frozen = 0
        self._known: dict[MapsEntry, pb.vma_entry] = {}
        self._lost: list[Range] = []
        self._pending: list[int] = []
        self._ever: set[int] = set()
        self._frozen_copy: list[tuple[list[tuple[int, int]], bytearray]] = []
        self._blind: list[Range] = []
        self._there: list[Range] = []
        self._guards: list[pb.vma_entry] = []

        uffd, snapshot.waits = fetch_userfaultfd(self.pid, snapshot.pidfd, TRACKING)
        self._tracker = Tracker(uffd)

    def __enter__(self) -> "Live":
        self._tracker.__enter__()
        self._pagemap = open_proc(self.pid, "pagemap")
        self._mem = open_proc(self.pid, "mem")
        return self

    def __exit__(self, *_: object) -> None:
        self._tracker.close()
        os.close(self._pagemap)
        os.close(self._mem)

    # --- while it runs

    def prepare(self) -> None:
        """Look ahead, protect, and copy until little is left to copy."""
        first = self._look()
        image = self.snapshot.image
        self._writer = PageWriter(image, "pagemap", self.pid, self.snapshot.pages_id())
        self._spool = Spool(self._writer, image.fd, first)
        since = time.monotonic_ns()
        runs = [Region(start, end, Page(0)) for start, end in first]
        log = self.snapshot.files.options.log
        pages.copy(self.pid, self._mem, runs, self._writer, log, running=True)
        self._note(self._spool.size // PAGE, since)
        self._converge()
        # The freeze only sees whether mappings are the same: what madvise(2) says is taken now.
        self._known = self._look_again()
        self._converge()

    def _look(self) -> list[Range]:
        """Take down the mappings, protect what can be, and return where its pages are.

        Looked at twice: protection makes what is not there look like swapped out, and before it
        pages may come that nobody logs.
        """
        file_id = partial(mapped_file, self.snapshot)
        found: list[Range] = []
        for mapping in smaps(self.pid):
            entry = vmas.dump(mapping, file_id)
            self._known[_plain(mapping)] = entry
            if _trackable(entry):
                self._guards += pages.dumped(self._pagemap, entry)[1]
                found += self._pages(entry, Page.PRESENT | Page.SWAPPED)
                if self._tracker.arm((mapping.start, mapping.end)):
                    found += self._pages(entry, Page.PRESENT)
        return union(found)

    def _pages(self, entry: pb.vma_entry, any_of: Page) -> list[Range]:
        none_of = Page.PFNZERO | Page.GUARD
        found = scan(self._pagemap, entry.start, entry.end, any_of=any_of, none_of=none_of)
        return [(run.start, run.end) for run in found]

    def _converge(self) -> None:
        before = 0
        while True:
            log, lost = self._tracker.take()
            self._ever.update(log)
            log, self._pending = [*self._pending, *log], []
            self._lost += lost
            stuck = before and len(log) > before // 2 and len(self.passes) > 4
            if len(log) <= _ENOUGH or stuck or len(self.passes) >= _PASSES:
                self._pending = log
                return
            since, before = time.monotonic_ns(), len(log)
            dirty = runs_of(set(log))
            self._tracker.protect(dirty)
            self._copy(dirty, running=True)
            self._note(len(log), since)

    def _note(self, count: int, since: int) -> None:
        took = time.monotonic_ns() - since
        self.passes.append(Pass(count, took))
        log = self.snapshot.files.options.log
        log.line(INFO, f"pass {len(self.passes)}: {count} pages in {took / 1e6:.3f} ms")

    def _copy(self, ranges: list[tuple[int, int]], *, running: bool) -> None:
        for pieces, size in _chunks(ranges):
            view = memoryview(bytearray(size))
            pages.read_into(self.pid, self._mem, pieces, view, running=running)
            self._put(pieces, view)

    def _put(self, pieces: list[tuple[int, int]], view: memoryview) -> None:
        at = 0
        for start, length in pieces:
            self._spool.put(start, view[at : at + length])
            at += length

    # --- in the freeze

    def freeze(self, frozen: Frozen) -> None:
        """Take what the log still has, and all that it could not see. The process is stopped."""
        snapshot, known = self.snapshot, self._known
        self._tracker.drain()
        log, lost = self._tracker.take()
        now = maps(self.pid)
        if any(mapping not in known for mapping in now):
            known = self._look_again()
        snapshot.vmas = [known[mapping] for mapping in now]
        seen = subtract(union(self._tracker.armed), self._lost + lost)
        pages_now = {*self._pending, *log}
        if any(entry.reg.flags & os.O_DIRECT for entry in snapshot.entries):
            # Direct I/O writes to a page long after the fault that told of it.
            pages_now |= self._ever
        dirty = runs_of(pages_now)
        wanted = intersect([(start, start + length) for start, length in dirty], seen)
        wanted = intersect(wanted, [(entry.start, entry.end) for entry in snapshot.vmas])
        guards = [guard for guard in self._guards if intersect([(guard.start, guard.end)], seen)]
        for entry in snapshot.vmas:
            blind = subtract([(entry.start, entry.end)], seen)
            for part in blind:
                found, guarded = pages.dumped(self._pagemap, entry, part)
                self._there += [(run.start, run.end) for run in found]
                guards += guarded
            self._blind += blind
        self._guards = guards
        for pieces, size in _chunks([(a, b - a) for a, b in union([*wanted, *self._there])]):
            room = bytearray(size)
            pages.read_into(self.pid, self._mem, pieces, memoryview(room))
            self._frozen_copy.append((pieces, room))
            self.copied_frozen += size // PAGE

    def _look_again(self) -> dict[MapsEntry, pb.vma_entry]:
        """Take down the mappings anew: some may have come, gone or changed."""
        file_id = partial(mapped_file, self.snapshot)
        return {_plain(mapping): vmas.dump(mapping, file_id) for mapping in smaps(self.pid)}

    # --- when it runs again

    def finish(self) -> None:
        """Let go of the process, write what the freeze took, and put the pages in order."""
        self._tracker.close()
        for pieces, room in self._frozen_copy:
            self._put(pieces, memoryview(room))
        snapshot, spool = self.snapshot, self._spool
        kept = union([*subtract(spool.ranges(), self._blind), *self._there])
        wanted = []
        for entry in snapshot.vmas:
            for start, end in intersect(kept, [(entry.start, entry.end)]):
                if vmas.is_private(entry) or entry.status & Status.VDSO:
                    wanted.append((start, end))
                    self._writer.add(start, (end - start) // PAGE, pages.flags_of(entry))
        spool.arrange(wanted)
        spool.close()
        self._writer.close()
        snapshot.report.copying_ns = sum(one.took_ns for one in self.passes)
        snapshot.report.memory.scanned = sum(e.end - e.start for e in snapshot.vmas) // PAGE
        snapshot.report.memory.written = self._writer.size // PAGE
        snapshot.vmas = vmas.merged_vvar(snapshot.vmas) + self._guards


def _plain(mapping: SmapsEntry) -> MapsEntry:
    """Return what maps, which is quick to read, shows of a mapping in smaps."""
    return MapsEntry(*(getattr(mapping, field) for field in MapsEntry._fields))


def _trackable(entry: pb.vma_entry) -> bool:
    """Say whether writes to a mapping can be tracked: anonymous and private, of ordinary pages."""
    return (
        vmas.is_private(entry)
        and bool(entry.status & Status.ANON_PRIVATE)
        and not entry.flags & MAP_HUGETLB
    )


def _chunks(ranges: list[tuple[int, int]]) -> "list[tuple[list[tuple[int, int]], int]]":
    """Cut ranges (start, length) into lists of pieces, each of at most _CHUNK bytes in all."""
    found: list[tuple[list[tuple[int, int]], int]] = []
    pieces: list[tuple[int, int]] = []
    size = 0
    for start, length in ranges:
        while length:
            take = min(length, _CHUNK - size)
            pieces.append((start, take))
            start, length, size = start + take, length - take, size + take
            if size == _CHUNK:
                found.append((pieces, size))
                pieces, size = [], 0
    if pieces:
        found.append((pieces, size))
    return found
