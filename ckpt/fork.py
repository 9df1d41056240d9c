# SPDX-License-Identifier: Apache-2.0
"""Memory saved from a copy-on-write child, made by the process while it is stopped.

What BGSAVE does, done from outside: the freeze pays for fork()'s copy of the page tables, the
process afterwards for a copy of each page that it writes before the child has given it back.
"""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self

from ckpt.child import CALLS, Child, Undertaker, ask, bury, kill
from ckpt.errors import CkptError, KernelError, NoSuchTask, TargetDied
from ckpt.freeze import FrozenProcess
from ckpt.image import pb
from ckpt.image.pages import PAGE, PageWriter
from ckpt.infect import Errand
from ckpt.kernel import procfs
from ckpt.kernel.arch import NR
from ckpt.kernel.glance import Glance, Seen
from ckpt.kernel.maps import smaps
from ckpt.kernel.pagemap import Region
from ckpt.kernel.ptrace import Options
from ckpt.kernel.remote import Batch
from ckpt.log import INFO
from ckpt.mappings import Mappings
from ckpt.memory import pages, vmas
from ckpt.memory.layout import Range, subtract, union
from ckpt.memory.pace import Pace
from ckpt.memory.vmas import MAP_HUGETLB
from ckpt.snapshot import TaskSnapshot, open_proc

_DONTNEED, _DONTFORK, _WIPEONFORK = 4, 10, 18  # MADV_*
_ROOM = 32 << 10
_GIVE_BACK = 4 << 20
_REFUSED = {
    errno.ENOMEM: "the kernel promises no memory for a copy of it (vm.overcommit_memory)",
    errno.EAGAIN: "its user or cgroup may have no more processes (RLIMIT_NPROC, pids.max)",
}


class Kept(NamedTuple):
    """Pages of a mapping that no child has, and their offset in the file that has them."""

    runs: list[Region]
    guards: list[pb.vma_entry]
    offset: int


class Fork:
    """The engine that saves a copy-on-write child; a context manager around it all."""

    takes_long = False

    def __init__(self, snapshot: TaskSnapshot) -> None:
        self.snapshot, self.pid, self.tid = snapshot, snapshot.pid, snapshot.tid
        self._log = snapshot.files.options.log
        self._pace = Pace(snapshot.files.options.max_rate)
        self._mappings = Mappings(snapshot)
        self._kept: dict[int, Kept] = {}
        self._kept_fd = -1
        self._child: Child
        self._ended = False
        self._errand = Errand(snapshot.way, snapshot.guard, snapshot.sandbox, CALLS, room=_ROOM)
        self._room = self._errand.segment.slot(_ROOM // 2)
        self._view = memoryview(bytearray(pages.BUFFER))

    def __enter__(self) -> Self:
        self._batch = Batch(self._errand.slot)
        self._clone = ask(self._batch)
        segment = self._errand.segment
        stub = segment.base, segment.base + segment.size
        sharers = self.snapshot.sharers()
        self._undertaker = Undertaker(self.pid, self._errand.slot, self._clone, stub, sharers)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._end()
        finally:
            self._undertaker.dismiss()
            self._errand.segment.close()
            if self._kept_fd >= 0:
                os.close(self._kept_fd)

    def _end(self) -> None:
        """Take the child away, if there is one: from us, then from the process."""
        pid = self._clone.ret
        if pid > 0 and not self._ended:
            self._ended = True
            kill(pid)
            since = time.monotonic_ns()
            one = self.snapshot
            bury(self.pid, pid, guard=one.guard, sandbox=one.sandbox, sharers=one.sharers())
            took = time.monotonic_ns() - since
            self._log.line(INFO, f"child {pid} is gone; that took {took / 1e6:.3f} ms")

    def prepare(self) -> None:
        """Nothing: what is copied now may be old in the freeze."""

    # --- in the freeze

    def look_ahead(self, glance: Glance) -> None:
        """Look at the mappings."""
        self._mappings.look_ahead(glance)

    def approach(self) -> None:
        """See which of their files have changed meanwhile."""
        self._mappings.look_at_files()

    def see(self, seen: Seen) -> None:
        """Nothing: the child is made by the thread that answers."""

    def beside(self, seen: Seen) -> None:
        """Nothing either."""

    def freeze(self, frozen: FrozenProcess, seen: Seen) -> None:
        """Make the child, and copy what it does not get. The process is stopped."""
        self._mappings.take(seen)
        self.snapshot.vmas = self._mappings.vmas
        since = time.monotonic_ns()
        self._fork(frozen)
        self._log.line(INFO, f"fork: {(time.monotonic_ns() - since) / 1e6:.3f} ms")
        if alone := [entry for entry in self.snapshot.vmas if _is_not_inherited(entry)]:
            self._keep(alone)

    def _fork(self, frozen: FrozenProcess) -> None:
        one = frozen.leader
        one.tracee.set_options(one.tracee.options | Options.CLONE)
        try:
            with self._errand.lent(frozen) as visit:
                remote = visit.remote
                remote.infect(one.regs, one.sigmask, self._errand.gadget, self._batch)
                with self._alive():
                    self._child = Child(self._clone.ret, self._room, remote)
                    self._child.begin()
        except KernelError as error:
            if self._clone.ret < 0 and error.errno in _REFUSED:
                hint = f"{_REFUSED[error.errno]}; --engine live needs none"
                raise KernelError(error.errno, "fork", pid=self.pid, hint=hint) from error
            raise
        finally:
            one.tracee.set_options(one.tracee.options & ~Options.CLONE)

    def _keep(self, entries: list[pb.vma_entry]) -> None:
        """Copy the pages of mappings into a nameless file."""
        pagemap, mem = open_proc(self.tid, "pagemap"), open_proc(self.tid, "mem")
        directory = f"/proc/self/fd/{self.snapshot.image.fd}"
        self._kept_fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        end = 0
        try:
            for entry in entries:
                kept = Kept(*pages.dumped(pagemap, entry), end)
                self._kept[entry.start] = kept
                for pieces, offset, size in pages.filled(kept.runs):
                    pages.read_into(self.tid, mem, pieces, self._view[:size])
                    os.pwrite(self._kept_fd, self._view[:size], kept.offset + offset)
                    end = kept.offset + offset + size
        finally:
            os.close(mem)
            os.close(pagemap)

    # --- when it runs again

    def finish(self) -> None:
        """Copy everything from the child, then let it go."""
        child, since = self._child, time.monotonic_ns()
        with self._alive():
            self._check(child)
            self._save(child)
        self._end()
        self.snapshot.report.copying_ns += time.monotonic_ns() - since

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Say of what goes wrong with the child if it is only that it has died."""
        try:
            yield
        except (KernelError, NoSuchTask, TargetDied) as error:
            child = self._clone.ret
            if not procfs.is_ending(child):
                raise
            hint = "memory may have run short: --engine live needs less"
            what = f"the copy of pid {self.pid}, pid {child}, was killed"
            raise CkptError(what, hint=hint) from error

    def _check(self, child: Child) -> None:
        """See that the child has all that we take from it, and have it forget what we do not.

        What it shares with others is as busy as it is with the process: a memfd that cannot be
        sealed, a segment that is attached.
        """
        there = smaps(child.pid)
        inherited = [(one.start, one.end) for one in there if "wf" not in one.vm_flags]
        entries = [e for e in self.snapshot.vmas if vmas.is_private(e)]
        needed = [(e.start, e.end) for e in entries if e.start not in self._kept]
        if lost := subtract(needed, union(inherited)):
            if procfs.is_ending(child.pid):
                raise NoSuchTask(f"pid {child.pid}: it loses its memory")
            # The advice does not show in maps, and smaps is too slow for the freeze.
            what = f"pid {self.pid} has just kept {lost[0][0]:#x} from its children (madvise)"
            raise CkptError(what, hint="dump it again")
        stub = self._errand.segment.base
        shared = [(one.start, one.end - one.start) for one in there if one.shared]
        child.forget(NR.munmap, [(start, size) for start, size in shared if start != stub])

    def _save(self, child: Child) -> None:
        snapshot, report = self.snapshot, self.snapshot.report
        mem = open_proc(child.pid, "mem")
        try:
            with PageWriter(snapshot.image, "pagemap", self.pid, snapshot.pages_id()) as writer:
                guards = self._copy(child, mem, writer)
        finally:
            os.close(mem)
        report.memory.scanned += sum(e.end - e.start for e in snapshot.vmas) // PAGE
        report.memory.written += writer.size // PAGE
        snapshot.vmas = vmas.merged_vvar(snapshot.vmas) + guards

    def _lay_out(
        self, child: Child, writer: PageWriter
    ) -> tuple[list[tuple[int, Kept]], list[pb.vma_entry]]:
        """Add all runs to the pagemap; return them with their places, and the guard pages."""
        found, guards = [], []
        pagemap = open_proc(child.pid, "pagemap")
        try:
            for entry in self.snapshot.vmas:
                part = self._kept.get(entry.start) or Kept(*pages.dumped(pagemap, entry), -1)
                found.append((writer.size, part))
                guards += part.guards
                for run in part.runs:
                    size = (run.end - run.start) // PAGE
                    writer.add(run.start, size, pages.flags_of(entry))
        finally:
            os.close(pagemap)
        return found, guards

    def _copy(self, child: Child, mem: int, writer: PageWriter) -> list[pb.vma_entry]:
        """Copy all pages, and have the child give them back; return the guard pages' records."""
        parts, guards = self._lay_out(child, writer)
        given: list[Range] = []
        waiting = 0
        for base, part in parts:
            for pieces, offset, size in pages.filled(part.runs):
                view = self._view[:size]
                if part.offset >= 0:
                    os.preadv(self._kept_fd, [view], part.offset + offset)
                else:
                    pages.read_into(child.pid, mem, pieces, view)
                    given, waiting = given + pieces, waiting + size
                writer.pwrite(view, base + offset)
                self._log.copied(base + offset + size, writer.size)
                self._pace.copied(size)
                if waiting >= _GIVE_BACK:
                    child.forget(NR.madvise, given, _DONTNEED)
                    given, waiting = [], 0
        # Also says that it was alive up to here: a dead one's pagemap is empty, not an error.
        child.forget(NR.madvise, given, _DONTNEED)
        return guards


def _is_not_inherited(entry: pb.vma_entry) -> bool:
    """Say whether a child lacks a mapping's pages, or may lose them.

    When huge pages run out, the parent's next write takes them away from the child.
    """
    kept_back = entry.madv & (1 << _DONTFORK | 1 << _WIPEONFORK) or entry.flags & MAP_HUGETLB
    return vmas.is_private(entry) and bool(kept_back)
