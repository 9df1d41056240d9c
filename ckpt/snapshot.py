# SPDX-License-Identifier: Apache-2.0
"""What is taken of a process for its image, by whatever engine, and what the dump has to report."""

import os
from collections.abc import Callable
from typing import NamedTuple

from ckpt.errors import CkptError, KernelError
from ckpt.files.kind import Dump, OpenFile
from ckpt.files.mapped import save_mapped
from ckpt.files.opened import OpenFiles
from ckpt.guard import Ward
from ckpt.image import pb
from ckpt.image.directory import ImageDir
from ckpt.kernel import procfs
from ckpt.kernel.arch import Regs
from ckpt.kernel.glance import NOTHING, Glance, Seen
from ckpt.kernel.maps import SmapsEntry
from ckpt.kernel.way import Way
from ckpt.memory import shmem, sysv
from ckpt.memory.layout import Range
from ckpt.memory.pages import Counts
from ckpt.memory.unchanged import Skipped
from ckpt.options import DumpOptions
from ckpt.sandbox import Sandbox
from ckpt.task.restart import Wait


class Pass(NamedTuple):
    """One pass over the memory of a process that runs: pages, and those saved before already."""

    pages: int
    again: int
    took_ns: int


class Again(CkptError):
    """What was looked at ahead of the freeze is true no more: to be dumped once more.

    ranges is memory that is to be copied in the freeze then.
    """

    ranges: tuple[Range, ...] = ()


class Unseen(Again):
    """Memory that has changed while it was saved, without our being told: the image is not true."""

    def __init__(self, pid: int, ranges: list[Range]) -> None:
        super().__init__(
            f"memory of pid {pid} has changed unseen at {ranges[0][0]:#x}, each time it was saved",
            hint="--engine stop copies it while the process stands still",
        )
        self.ranges = tuple(ranges)


class DumpReport:
    """What a dump did. Times in ns; pages of 4096 bytes.

    frozen_pages were copied in the freeze; faults are writes that were held up for a moment;
    skipped pages are left to the image before.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.freezing_ns = self.frozen_ns = self.copying_ns = self.total_ns = 0
        self.memory, self.shared = Counts(), Counts()
        self.passes: list[Pass] = []
        self.frozen_pages = self.faults = 0
        self.skipped = Skipped(0, 0)


class Snapshot:
    """What is taken of a tree of processes, to be written when it runs again."""

    def __init__(
        self, image: ImageDir, options: DumpOptions, opened: OpenFiles, unseen: list[Range]
    ) -> None:
        self.image, self.opened, self.unseen = image, opened, unseen
        self.report = DumpReport(options.pid)
        self.tasks: dict[int, TaskSnapshot] = {}
        self.entries: list[pb.file_entry] = []
        self.own_namespaces: list[str] = []
        self.namespaces = NOTHING
        """What a glance shows of all namespaces."""
        self._ids = self._pages_ids = 0
        self.files = Dump(
            image, options, self._save_shmem, self._next_id, self.entries.append, root="/"
        )
        self.files.promise = self._promise

    def _promise(self, file: OpenFile, level: int, option: int, value: int) -> Callable[[], None]:
        guard = self.tasks[file.pid].guard
        return guard.promise(file.number, file.stat.st_ino, level, option, value)

    def _next_id(self) -> int:
        self._ids += 1
        return self._ids

    def pages_id(self) -> int:
        """Return the next number of a pages-N.img."""
        self._pages_ids += 1
        return self._pages_ids

    def _save_shmem(self, shmid: int, fd: int, size: int) -> None:
        if self.files.first("shmem", shmid):
            counts = shmem.save(self.image, shmid, self.pages_id(), fd, size)
            self.report.shared.scanned += counts.scanned
            self.report.shared.written += counts.written


class TaskSnapshot:
    """What is taken of one process of a tree. unseen is memory that has changed unseen earlier."""

    def __init__(self, way: Way, pidfd: int, guard: Ward, sandbox: Sandbox, tree: Snapshot) -> None:
        self.way, self.pidfd, self.guard, self.tree = way, pidfd, guard, tree
        self.pid, self.tid = way
        self.sandbox = sandbox
        self.image, self.report, self.files = tree.image, tree.report, tree.files
        self.opened, self.unseen = tree.opened, tree.unseen
        self.pages_id = tree.pages_id
        self.links = Links(self.tid)
        self.waits: dict[int, Wait] = {}
        self.memory_of = self.pid
        """Whose memory it has: its own, or that of who has it saved."""
        self.vmas: list[pb.vma_entry] = []
        self._attached: tuple[list[pb.vma_entry], dict[int, str]] = [], {}
        self.cores: dict[int, pb.core_entry] = {}
        self.cgroups = b""
        self.registers: dict[int, Regs] = {}
        """Of each thread, as they are to be saved."""
        self.mm: pb.mm_entry
        self.stat: procfs.Stat
        self.status: procfs.Status

    def sharers(self) -> list[int]:
        """Return the others that have its memory, parents before children."""
        tasks = self.tree.tasks.values()
        return [one.pid for one in tasks if one.memory_of == self.pid and one is not self]

    def attached(self) -> dict[int, str]:
        """Return the System V segments that the mappings are of: see sysv.links."""
        if self._attached[0] is not self.vmas:
            self._attached = self.vmas, sysv.links(self.tid, self.vmas)
        return self._attached[1]


class Links:
    """What exe, cwd and root of a process lead to, saved as paths; ids are those in files.img."""

    def __init__(self, tid: int) -> None:
        self.ids: dict[str, int] = {}
        self._paths = {name: f"/proc/{tid}/{name}" for name in ("exe", "cwd", "root")}
        self._seen: dict[str, Led] = {}
        self._part = NOTHING

    def look_ahead(self, glance: Glance) -> None:
        """Have them looked at in the freeze."""
        begin = glance.mark()
        for path in self._paths.values():
            glance.link(path)
        self._part = glance.since(begin)

    def save(self, out: Dump) -> None:
        """Save them as they are, before the freeze; a glance has been taken by now."""
        for name, path in self._paths.items():
            self._seen[name] = led(path)
            self.ids[name] = save_link(path, out)

    def take(self, out: Dump, seen: Seen, ahead: Seen) -> None:
        """Save anew what leads elsewhere by now: ahead is what had been seen before the others."""
        if self._part != NOTHING and seen.same_answers(ahead, self._part):
            return
        for name, path in self._paths.items():
            if self._seen[name][:_WHICH] != led(path)[:_WHICH]:
                self.ids[name] = save_link(path, out)


_WHICH = 3  # of a directory only which it is


class Led(NamedTuple):
    """What a link of /proc leads to."""

    path: str
    device: int
    inode: int
    links: int
    size: int


def led(path: str) -> Led:
    """Return where a link of /proc leads to now. Raises KernelError."""
    try:
        st = os.stat(path)
        return Led(os.readlink(path), st.st_dev, st.st_ino, st.st_nlink, st.st_size)
    except OSError as error:
        raise KernelError(error.errno or 0, f"looking at {path}") from error


def save_link(link: str, out: Dump) -> int:
    """Save what a link of /proc leads to, as a path; returns its id."""
    try:
        fd = os.open(link, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(error.errno or 0, f"opening {link}") from error
    try:
        return save_mapped(fd, os.readlink(link), out)
    finally:
        os.close(fd)


def open_proc(tid: int, name: str) -> int:
    """Open a file of /proc/TID to read."""
    try:
        return os.open(f"/proc/{tid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(error.errno or 0, f"opening /proc/{tid}/{name}") from error


def mapped_file(snapshot: TaskSnapshot, mapping: SmapsEntry, flags: int) -> int:
    """Save the file behind a mapping, by the link that map_files has for it."""
    link = f"/proc/{snapshot.tid}/map_files/{mapping.start:x}-{mapping.end:x}"
    return save_link(link, snapshot.files)
