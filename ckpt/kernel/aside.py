# SPDX-License-Identifier: Apache-2.0
"""A thread of ours that makes a glance's calls while we go on: a freeze leaves a CPU free for it.

It is in C all the time, so that it never waits for the interpreter's lock, nor we for it.
"""

import os
import threading
from contextlib import suppress

from ckpt.kernel.ffi import ffi, lib


class Aside:
    """The thread. What is begun has to be ended before the next is begun."""

    def __init__(self) -> None:
        self._shared = ffi.new("struct core_aside *")
        self._thread = threading.Thread(target=self._run, name="aside", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with suppress(OSError):  # without the right to it, it takes its turn
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        lib.core_aside_run(self._shared)

    def ready(self, looks: ffi.CData, first: int, rets: ffi.CData, room: ffi.CData) -> ffi.CData:
        """Fill in what it is to do, which is what core_look() does; returns what begins it.

        Once that is begun nobody else touches these until its end; but what came of the first
        looks can be read once they are reached.
        """
        shared = self._shared
        shared.looks, shared.n, shared.first, shared.rets = looks, len(rets), first, rets
        shared.buf, shared.size = room, len(room)
        return shared

    def reach(self) -> int:
        """Wait until the first looks are done; returns what core_look() of them has."""
        return int(lib.core_aside_reach(self._shared))

    def end(self) -> int:
        """Wait until it is done; returns what core_look() has."""
        return int(lib.core_aside_end(self._shared))

    def close(self) -> None:
        """End it."""
        lib.core_aside_dismiss(self._shared)
        self._thread.join()
