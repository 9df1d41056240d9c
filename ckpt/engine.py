# SPDX-License-Identifier: Apache-2.0
"""Engines: how the private memory of a process is saved. What they write is the same."""

import os
import time
from functools import partial
from typing import Protocol, Self

from ckpt.errors import KernelError
from ckpt.freeze import FrozenProcess
from ckpt.image import pb
from ckpt.image.pages import PAGE, PageWriter
from ckpt.kernel.glance import Glance, Seen
from ckpt.kernel.maps import smaps
from ckpt.kernel.pagemap import Region
from ckpt.log import Log
from ckpt.memory import pages, vmas
from ckpt.snapshot import TaskSnapshot, mapped_file, open_proc


class Engine(Protocol):
    """Saves memory around the freeze; a context manager that leaves nothing with the process.

    takes_long says of an engine that it copies all there is in the freeze.
    """

    takes_long: bool

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """Let go of the process, whatever happened."""

    def prepare(self) -> None:
        """Do what can be done while the process runs, and takes long."""

    def look_ahead(self, glance: Glance) -> None:
        """Open what will be read in the freeze."""

    def approach(self) -> None:
        """Do what is to be done at last: the freeze comes right after it."""

    def see(self, seen: Seen) -> None:
        """See what is to be taken, while a thread still makes a call for us."""

    def beside(self, seen: Seen) -> None:
        """Take what can be taken meanwhile."""

    def freeze(self, frozen: FrozenProcess, seen: Seen) -> None:
        """Take the rest; the process is stopped, and this is the instant of the image."""

    def finish(self) -> None:
        """Complete pagemap and pages; the process may run again, or be gone."""


class Elsewhere:
    """The engine of a process whose memory is another's, too: that one has it saved."""

    takes_long = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def prepare(self) -> None:
        """Nothing is left to do, here and below."""

    def look_ahead(self, glance: Glance) -> None:
        """Nothing."""

    def approach(self) -> None:
        """Nothing."""

    def see(self, seen: Seen) -> None:
        """Nothing."""

    def beside(self, seen: Seen) -> None:
        """Nothing."""

    def freeze(self, frozen: FrozenProcess, seen: Seen) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


class Stop(Elsewhere):
    """Copies all in the freeze: what is copied before may be old by then."""

    takes_long = True

    def __init__(self, snapshot: TaskSnapshot) -> None:
        self.snapshot = snapshot

    def freeze(self, frozen: FrozenProcess, seen: Seen) -> None:
        """Copy all private pages; shared objects are saved as their mappings come up."""
        take_memory(self.snapshot)


def take_memory(snapshot: TaskSnapshot) -> None:
    """Copy all private pages; shared objects are saved as their mappings come up."""
    pid, tid, report = snapshot.pid, snapshot.tid, snapshot.report
    since = time.monotonic_ns()
    pagemap = open_proc(tid, "pagemap")
    mem = open_proc(tid, "mem")
    try:
        file_id = partial(mapped_file, snapshot)
        snapshot.vmas = [vmas.dump(mapping, file_id) for mapping in smaps(tid)]
        runs: list[Region] = []
        guards: list[pb.vma_entry] = []
        writer = PageWriter(snapshot.image, "pagemap", pid, snapshot.pages_id())
        with writer:
            for entry in snapshot.vmas:
                found, guarded = pages.dumped(pagemap, entry)
                guards += guarded
                for run in found:
                    size = (run.end - run.start) // PAGE
                    writer.add(run.start, size, pages.flags_of(entry))
                    report.memory.written += size
                runs += found
                report.memory.scanned += (entry.end - entry.start) // PAGE
            # A process that is to run on waits for the copy only, any other for the disk too.
            options = snapshot.files.options
            write_back = not options.leave_running
            pages.copy(tid, mem, runs, writer, options.log, write_back=write_back)
        snapshot.vmas = vmas.merged_vvar(snapshot.vmas) + guards
    finally:
        os.close(pagemap)
        os.close(mem)
    report.copying_ns += time.monotonic_ns() - since


def engine(snapshot: TaskSnapshot, name: str, log: Log) -> Engine:
    """Return the engine of that name: `stop`, `live`, `fork`, or `auto`: live if that can be."""
    options = snapshot.files.options
    # A process that is not to run on gains nothing by a copy of it that it would have to wait for.
    copied_once = not options.precopy and name == "stop"
    if copied_once or (name == "fork" and not options.leave_running):
        return Stop(snapshot)
    if name == "fork":
        from ckpt.fork import Fork

        return Fork(snapshot)
    from ckpt.live import Live

    try:
        return Live(snapshot)
    except KernelError as error:
        if name == "live":
            raise
        log.warning("engine", f"no live dump of pid {snapshot.pid}, it is stopped instead: {error}")
        return Stop(snapshot)
