# SPDX-License-Identifier: Apache-2.0
"""Which pages does a running process write? A log, by write-protect faults.

Mappings are registered whole, so none is split, and protected while the process runs. A thread of
ours answers each fault by taking the protection of that page away and writing it down; to see
the next write to it, it has to be protected again. Memory that is discarded, unmapped or moved
loses its protection with its pages; those ranges are kept apart as lost: there the log is blind.
"""

import errno
import os
import select
import sys
import threading
import time
from array import array
from collections.abc import Iterable
from contextlib import suppress

from ckpt.errors import CkptError, KernelError
from ckpt.kernel.userfaultfd import Kind, Mode, Userfaultfd
from ckpt.memory.layout import Range, subtract

PAGE = 4096
_CHUNK = 64 << 20  # what one ioctl protects: it holds up who wants to map
_SWITCH_INTERVAL = 0.0002
_PATIENCE_S = 10.0


class Tracker:
    """The log of one process. A context manager; leaving it sets the process free of us."""

    def __init__(self, uffd: Userfaultfd) -> None:
        self.armed: list[Range] = []
        self.faults = 0
        self._uffd = uffd
        self._log: list[bytes] = []
        self._lost: list[Range] = []
        self._gone: list[Range] = []
        self._unserved: list[int] = []
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._serve, name="faults", daemon=True)
        self._switch_interval = sys.getswitchinterval()

    def __enter__(self) -> "Tracker":
        # A fault waits for the thread that answers it, and that one for the interpreter.
        sys.setswitchinterval(_SWITCH_INTERVAL)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unregister everything and end; the process may run, or be gone."""
        if self._wake < 0:
            return
        for start, end in self.armed:
            for at in range(start, end, _CHUNK):
                self._uffd.unregister(at, min(at + _CHUNK, end))
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._uffd.close()
        os.close(self._wake)
        self._wake = -1
        sys.setswitchinterval(self._switch_interval)

    # --- the thread that answers

    def _serve(self) -> None:
        with suppress(OSError):  # without the right to it, we take our turn like everybody
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        poll = select.poll()
        poll.register(self._uffd.fd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        try:
            while not any(fd == self._wake for fd, _ in poll.poll(1 if self._unserved else None)):
                self._take()
        except BaseException as error:  # raised where the log is asked for
            self._error = error

    def _take(self) -> bool:
        """Answer and log what is there; False if nothing was and nothing is left unanswered.

        Under one lock: a page that can be written again must be in the log before take() looks,
        and the buffers that messages are read into are one pair for both threads.
        """
        with self._lock:
            faults, events = self._uffd.serve()
            self._log.append(faults)
            for event in events:
                if event.kind == Kind.PAGEFAULT:
                    self._unserved.append(event.start)
                    continue
                self._lost.append((event.start, event.end))
                if event.kind == Kind.REMAP:
                    self._lost.append((event.to, event.to + event.end - event.start))
            if self._unserved:
                self._again()
            return bool(faults or events or self._unserved)

    def _again(self) -> None:
        """Answer the faults that an event was in the way of: writes to them begin only now."""
        done = self._uffd.protect([(page, PAGE) for page in self._unserved], on=False)
        self._log.append(array("Q", self._unserved[:done]).tobytes())
        self._unserved = self._unserved[done:]

    # --- what the log is asked

    def arm(self, mapping: Range) -> bool:
        """Register a mapping and protect it; False if the kernel cannot."""
        start, end = mapping
        if not self._uffd.register(start, end, Mode.WP):
            return False
        self.armed.append(mapping)
        self.protect([(at, min(_CHUNK, end - at)) for at in range(start, end, _CHUNK)])
        return True

    def protect(self, ranges: list[tuple[int, int]]) -> None:
        """Protect ranges (start, length), but for what is lost."""
        deadline = time.monotonic() + _PATIENCE_S
        while ranges:
            if self._error:
                raise CkptError(f"tracking writes: {self._error}") from self._error
            done = self._uffd.protect(ranges)
            ranges = ranges[done:]
            if done:
                deadline = time.monotonic() + _PATIENCE_S
            elif time.monotonic() > deadline:
                raise KernelError(errno.ENOENT, "UFFDIO_WRITEPROTECT", addr=ranges[0][0])
            else:
                ranges = self._left(ranges)

    def _left(self, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Take out of ranges (start, length) what is lost by now."""
        with self._lock:
            lost = [*self._gone, *self._lost]
        left = subtract(((start, start + length) for start, length in ranges), lost)
        return [(start, end - start) for start, end in left]

    def take(self) -> tuple[list[int], list[Range]]:
        """Return the pages written since the last call, in their order, and the ranges lost."""
        with self._lock:
            log, self._log = array("Q", b"".join(self._log)), []
            lost, self._lost = self._lost, []
            self._gone += lost
        self.faults += len(log)
        return list(dict.fromkeys(log)), lost

    def drain(self) -> None:
        """Read what is still queued; the process is stopped, so nothing is added meanwhile."""
        while self._take():
            pass


def runs_of(pages: Iterable[int]) -> list[tuple[int, int]]:
    """Return pages as sorted ranges (start, length), adjacent ones put together."""
    found: list[tuple[int, int]] = []
    start = end = 0
    for page in sorted(pages):
        if page == end:
            end += PAGE
            continue
        if end:
            found.append((start, end - start))
        start, end = page, page + PAGE
    if end:
        found.append((start, end - start))
    return found
