# SPDX-License-Identifier: Apache-2.0
"""The pager of a process as processes of its own: one that works, and one that would take over.

They share their descriptors, forked children's too, and a journal of all that has happened. When
the worker dies, the holder makes a new one, that goes on from the journal; when the holder dies,
the worker takes its place and makes a new worker. When both die, the kernel would give the process
zeros for what it has not got yet; so the kernel kills it first (`kernel.tripwire`).
"""

import errno
import os
import signal
import stat
import time
from collections.abc import Iterable
from contextlib import suppress

from ckpt.errors import CkptError, ImageError, KernelError, NoSuchTask
from ckpt.image import pb
from ckpt.image.hot import BLOCK, read_hot, write_hot
from ckpt.image.pages import PageReader, PageRun
from ckpt.kernel import maps
from ckpt.kernel.arch import NR, Regs
from ckpt.kernel.ffi import syscall
from ckpt.kernel.pidfd import pidfd_getfd, pidfd_open
from ckpt.kernel.remote import Remote
from ckpt.kernel.tripwire import Tripwire, fork_with_files
from ckpt.kernel.userfaultfd import FILLING, UFFDIO_API, Mode, Userfaultfd, api_request
from ckpt.log import Log
from ckpt.memory.journal import Done, Journal
from ckpt.memory.late import Late, Part
from ckpt.memory.layout import Range
from ckpt.memory.pager import Pager, Source
from ckpt.memory.pagers import pager_name
from ckpt.memory.shmem import SharedObject
from ckpt.memory.thp import collapse, huge_ranges
from ckpt.memory.window import Windows, base_of, parts
from ckpt.options import RestoreOptions

LateRuns = tuple[pb.vma_entry, list[PageRun]]
"""A mapping with its pages that are to come late."""
LateObject = tuple[SharedObject, list[pb.vma_entry]]
"""A shared object that is to be filled late, and where it is mapped."""

_BEFOREHAND = 32 << 20 >> 12  # pages that are filled in before the process runs: 20 ms or so
_GIVE_UP = 3


def fetch(remote: Remote, regs: Regs) -> Userfaultfd:
    """Have a stopped task of ours open a userfaultfd, and take it over; regs are any of its own."""
    batch = remote.batch()
    fd = batch.call(NR.userfaultfd, os.O_CLOEXEC | os.O_NONBLOCK, must=True)
    batch.call(NR.ioctl, fd, UFFDIO_API, batch.data(api_request(FILLING)), must=True)
    remote.run(batch, regs, 0)
    pidfd = pidfd_open(remote.tgid)
    try:
        uffd = Userfaultfd(pidfd_getfd(pidfd, fd.ret))
    finally:
        os.close(pidfd)
    number, batch = fd.ret, remote.batch()
    batch.call(NR.close, number, must=True)
    remote.run(batch, regs, 0)
    return uffd


def register(uffd: Userfaultfd, entries: Iterable[pb.vma_entry]) -> None:
    """Have who finds no page in these mappings wait for it."""
    for entry in entries:
        if not uffd.register(entry.start, entry.end, Mode.MISSING):
            raise KernelError(errno.EINVAL, "UFFDIO_REGISTER", addr=entry.start)


class Lazy:
    """A process that is restored lazily: pages to come late, and the pager that brings them.

    pid is what its image calls it. owners are whom to kill when the pager dies for good: who has
    this memory, each by its pid, or its process group if negative.
    """

    LOST = ImageError.exit_code
    """What a pager ends with if all is in but what could not be read."""

    def __init__(
        self, pid: int, owners: Iterable[int], first: Iterable[int], options: RestoreOptions
    ) -> None:
        self.pages = 0
        self._pid, self._owners, self._options = pid, [*owners], options
        self._huge: list[Range] = []
        self._log: Log = options.log
        self._images = os.path.abspath(options.images_dir)
        self._figures = os.path.join(os.path.abspath(options.stats_dir), f"lazy-{pid}.json")
        self._wanted = [*first, *read_hot(self._images, pid)]
        self._ready = -1
        self._journal: Journal
        self._readers: dict[int, PageReader]
        self._number: int
        self._todo: list[Part] = []
        self._windows: list[Part] = []
        self._objects: list[SharedObject] = []
        self._pidfd = -1

    def start(
        self,
        uffd: Userfaultfd,
        late: list[LateRuns],
        shared: list[LateObject],
        reader: PageReader,
        *,
        here: int,
        beforehand: int = _BEFOREHAND,
    ) -> None:
        """Begin to fill the memory, from processes of our own that outlive us; uffd is closed.

        All of it is registered; if not yet, then beforehand is 0: how many pages are filled in
        before the process runs. here is its pid, 0 if that is not known.
        """
        self._todo += [Part(run.vaddr, run.end, 0) for _, runs in late for run in runs]
        for one, entries in shared:
            self._objects.append(one)
            for entry in entries:
                moved = entry.start - entry.pgoff - base_of(one)
                self._windows.append(Part(entry.start, entry.end, moved))
        self._huge = huge_ranges(late)
        todo = [*self._todo, *self._shared()]
        self.pages = sum(part.end - part.start for part in todo) >> 12
        self._readers = {0: reader} | {one.number: one.reader for one in self._objects}
        self._number, self._journal, self._begun = uffd.fd, Journal(), time.monotonic_ns()
        self._name, self._beforehand = pager_name(here or self._pid), beforehand
        with suppress(NoSuchTask):
            self._pidfd = pidfd_open(here) if here else -1
        self._fork()
        if self._pidfd >= 0:
            os.close(self._pidfd)
        uffd.close()

    def _shared(self) -> list[Part]:
        return [part for one in self._objects for part in parts(one)]

    def _fork(self) -> None:
        self._ready, ready = os.pipe2(os.O_CLOEXEC)
        self._holder = os.fork()
        if self._holder == 0:
            try:
                self._detach(ready)
                self._hold(ready)
            except BaseException as error:
                import traceback

                self._log.error("pager", "".join(traceback.format_exception(error)).rstrip())
            finally:
                os._exit(1)
        os.close(ready)

    def wait(self) -> None:
        """Return when the process may run: the pager serves, and has what it will touch first."""
        if self._ready < 0:
            return
        if not os.read(self._ready, 1):
            raise CkptError("the pager has died")

    def close(self) -> None:
        """Let go of the pager: it may fill in the rest now, which costs a CPU and the mmap lock."""
        if self._ready >= 0:
            os.close(self._ready)
            self._ready = -1

    def end(self) -> int:
        """Wait for the end of the pager; returns its exit code, 0 if all is in."""
        return os.waitstatus_to_exitcode(os.waitpid(self._holder, 0)[1])

    # --- in the pager's processes

    def _detach(self, ready: int) -> None:
        """Leave the caller's session and directory, and let go of every descriptor but ours."""
        os.setsid()
        os.chdir("/")
        with open("/proc/self/comm", "w") as comm:
            comm.write(self._name)
        for signo in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(signo, signal.SIG_DFL)
        kept = {self._number, self._pidfd, ready}
        for reader in self._readers.values():
            kept.update(run.fd for run in reader)
        for one in self._objects:
            kept.update((one.fd, one.watch.fd))
        kept.add(getattr(self._log, "fd", -1))
        null = os.open("/dev/null", os.O_RDWR)
        # Who waits for the end of a pipe waits for the command's end, not for ours.
        gone = [fd for fd in range(3) if fd not in kept or stat.S_ISFIFO(os.fstat(fd).st_mode)]
        for fd in gone:
            os.dup2(null, fd)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) not in kept:
                with suppress(OSError):  # the listing's own
                    os.close(int(name))
        self._tripwire = Tripwire(self._owners)
        # A segment that the restore has attached is attached as often as there are copies of us.
        for entry in maps.maps("self"):
            if entry.path.startswith("/SYSV"):
                syscall(NR.shmdt, entry.start)

    def _hold(self, ready: int) -> None:
        """Have a child do the work, and another one should it be killed; never returns."""
        failures = 0
        me = pidfd_open(os.getpid())
        while failures < _GIVE_UP:
            worker = fork_with_files()
            if worker == 0:
                if self._work(me, ready):
                    os._exit(self._code)
                os.close(me)
                me, failures = pidfd_open(os.getpid()), 0
                continue
            code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
            if code in (0, self.LOST):
                os._exit(code)
            failures += code > 0
        raise CkptError(f"giving up; pid {self._pid} will be killed")

    def _work(self, holder: int, ready: int) -> bool:
        """Go on from where the journal ends; returns False if the holder has died."""
        # A new object: a worker that has become the holder has closed its own, perhaps.
        uffd = Userfaultfd(self._number)
        late = Late(uffd, self._todo, self._windows, self._shared())
        for record in self._journal:
            late.apply(record)
        _close_all_but(set(late.spaces))
        source, windows = Source(self._readers), Windows(self._objects)
        disarm = self._tripwire.disarm
        pager = Pager(late, self._journal, source, self._log, self._wanted, windows, disarm)
        pager.resume()
        pager.prefetch(self._beforehand)
        with suppress(BrokenPipeError):  # the restore has been told before
            os.write(ready, b"!")
        if not pager.run(holder, ready):
            return False
        pager.tell()
        self._keep(late)
        collapse(self._pidfd, self._huge)
        self._code = self.LOST if late.figures.pages[Done.LOST] else 0
        return True

    def _keep(self, late: Late) -> None:
        """Leave the figures, and for the next restore what this one has missed."""
        if self._options.record and late.touched:
            write_hot(self._images, self._pid, [*late.touched, *self._wanted])
        known = {address & -BLOCK for address in self._wanted}
        figures = {
            "pid": self._pid,
            "total_ns": time.monotonic_ns() - self._begun,
            "late_pages": self.pages,
            **late.figures.as_dict(),
            "known_blocks": len(known),
            "known_missed": len(known & late.touched.keys()),
        }
        import json

        with suppress(OSError):
            with open(f"{self._figures}.new", "w") as file:
                json.dump(figures, file)
            os.rename(f"{self._figures}.new", self._figures)


def _close_all_but(kept: set[int]) -> None:
    """Close userfaultfds that the dead worker had let go of, but not closed yet."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            link = os.readlink(f"/proc/self/fd/{name}")
            if "userfaultfd" in link and int(name) not in kept:
                os.close(int(name))
