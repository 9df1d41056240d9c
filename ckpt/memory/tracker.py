# SPDX-License-Identifier: Apache-2.0
"""Which pages does a running process write? A log, by write-protect faults.

Mappings are registered whole, while the process is stopped, as a part of one would be split off,
which makes mremap(2) fail; they are protected while it runs. A thread of ours answers each fault by
taking the protection of that page away and writing it down; to see the next write to it, it has
to be protected again. Memory that is discarded, unmapped or moved loses its protection with its
pages; those ranges are kept apart as lost: there the log is blind.
"""

import os
import threading
import time
from array import array
from collections.abc import Iterable
from contextlib import suppress
from typing import TypeAlias

from ckpt.errors import CkptError, KernelError
from ckpt.kernel.ffi import ffi, lib
from ckpt.kernel.latency import Awake
from ckpt.kernel.userfaultfd import FaultLog, Kind, Mode, Userfaultfd
from ckpt.memory.layout import Range, subtract, union

PAGE = 4096


Pages: TypeAlias = "array[int]"
"""Addresses of pages, eight bytes each: there may be millions."""
_CHUNK = 64 << 20  # what one ioctl protects: it holds up who wants to map
_PATIENCE_S, _PAUSE_S = 60.0, 0.0005
_SLOWER, _SLOWEST_NS = 2, 500_000  # than copying a page; a call may fault on thousands


class Tracker:
    """The log of one process. Owns the userfaultfd; closing it sets the process free of us."""

    _uffd: Userfaultfd

    def __init__(self) -> None:
        self.registered: list[Range] = []
        self.faults = 0
        self._delay = 0
        self._log = FaultLog()
        self._faults: list[bytes] = []
        self._lost: list[Range] = []
        self._gone: list[Range] = []
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._keep, name="faults", daemon=True)
        self._awake: Awake | None = None

    def register(self, uffd: Userfaultfd, mappings: list[Range]) -> None:
        """Have all of them registered that can be; the process is stopped."""
        self._uffd = uffd
        self.registered = union(uffd.register_all(mappings, Mode.WP))

    def start(self) -> None:
        """Begin to answer; what we are told of waits until then."""
        self._awake = Awake()  # who has faulted waits, too, until a CPU has woken up
        self._thread.start()

    def hold_back(self, copying_ns: float) -> None:
        """Hold up whoever writes: a fault is to take longer than copying a page, in ns.

        Each further call makes it twice as long, within limits.
        """
        wanted = max(2 * self._delay, int(_SLOWER * copying_ns))
        self._delay = min(wanted, _SLOWEST_NS)
        self._log.delay(self._delay)

    def let_run(self) -> None:
        """Hold up nobody any more: what is in the kernel has to leave it to be stopped."""
        self._log.delay(0)

    def close(self) -> None:
        """Let go of everything and end; the process may run, or be gone.

        Closing takes the kernel a walk over all that is registered, under a lock that faults need:
        quick where the protection is gone before. To unregister part by part would split mappings.
        """
        if self._stop < 0:
            return
        if hasattr(self, "_uffd"):
            self._let_go()
        if self._awake:
            self._awake.close()
        os.close(self._stop)
        self._stop = -1

    def _let_go(self) -> None:
        self._log.delay(0)
        with suppress(KernelError):  # gone, or being changed: closing does it
            self._uffd.protect(_cut(self.registered), on=False)
        os.eventfd_write(self._stop, 1)
        if self._thread.ident:
            self._thread.join()
        self._uffd.close()

    # --- the thread that answers

    def _keep(self) -> None:
        with suppress(OSError):  # without the right to it, we take our turn like everybody
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        try:
            while not self._log.keep(self._uffd, self._stop):
                self._collect()
        except BaseException as error:  # raised where the log is asked for
            self._error = error
            self._uffd.give_up()

    def _collect(self) -> int:
        """Take what has been told since the last time; returns how much that was."""
        with self._lock:
            faults, events = self._log.take()
            self._faults.append(faults)
            for event in events:
                self._lost.append((event.start, event.end))
                if event.kind == Kind.REMAP:
                    self._lost.append((event.to, event.to + event.end - event.start))
            return len(faults) // 8 + len(events)

    # --- what the log is asked

    def protect(self, ranges: Iterable[Range]) -> None:
        """Protect ranges (start, end), but for what is lost."""
        deadline = time.monotonic() + _PATIENCE_S
        left = _cut(ranges)
        while left:
            self._check()
            done = self._uffd.protect(left)
            left = left[done:]
            if done:
                deadline = time.monotonic() + _PATIENCE_S
            elif time.monotonic() > deadline:
                raise CkptError(
                    "the process changes its mappings all the time: they cannot be protected",
                    hint="--engine stop copies its memory while it stands still",
                )
            else:
                time.sleep(_PAUSE_S)  # who changes them needs the CPU to come to an end
                left = self._left(left)

    def _left(self, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Take out of ranges (start, length) what is lost by now."""
        self._collect()
        with self._lock:
            lost = [*self._gone, *self._lost]
        left = subtract(((start, start + length) for start, length in ranges), lost)
        return [(start, end - start) for start, end in left]

    def _check(self) -> None:
        if isinstance(self._error, CkptError):
            raise self._error
        if self._error:
            raise CkptError(f"tracking writes: {self._error}") from self._error

    def take(self) -> tuple[Pages, list[Range]]:
        """Return the pages written since the last call, as they came, and the ranges lost."""
        self._check()
        self._collect()
        with self._lock:
            log, self._faults = array("Q", b"".join(self._faults)), []
            lost, self._lost = self._lost, []
            self._gone += lost
        self.faults += len(log)
        return log, lost

    def drain(self) -> None:
        """Read what is still queued; the process is stopped, so nothing is added meanwhile."""
        while self._log.answer(self._uffd):
            self._collect()
        self._check()
        if self.registered:
            # For what it raises if this is not the process's memory any more.
            self._uffd.protect([(self.registered[0][0], PAGE)], on=False)


def _cut(ranges: Iterable[Range]) -> list[tuple[int, int]]:
    """Return ranges as (start, length), none longer than what one call may take."""
    return [
        (at, min(_CHUNK, end - at)) for start, end in ranges for at in range(start, end, _CHUNK)
    ]


def each_once(pages: Pages) -> Pages:
    """Return pages by rising address, each once."""
    found = array("Q", pages)
    with ffi.from_buffer("uint64_t[]", found) as numbers:
        count = lib.core_sort(numbers, len(found))
    del found[count:]
    return found


def ranges_of(pages: Pages) -> list[Range]:
    """Return sorted pages as ranges, adjacent ones put together."""
    found: list[Range] = []
    start = end = 0
    for page in pages:
        if page == end:
            end += PAGE
            continue
        if end:
            found.append((start, end))
        start, end = page, page + PAGE
    if end:
        found.append((start, end))
    return found
