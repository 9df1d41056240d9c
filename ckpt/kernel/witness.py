# SPDX-License-Identifier: Apache-2.0
"""A process of ours that kills others should we die before all is well.

PTRACE_O_EXITKILL does that as well, but is taken from one tracee after the other: whoever dies
half way through leaves half of them. A word to the witness is one moment for all.
"""

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from typing import Self

from ckpt.kernel.pidfd import pidfd_open


class Witness:
    """It watches over processes until all is well, or the `with` block ends."""

    def __init__(self, pids: Iterable[int]) -> None:
        pidfds = [pidfd_open(pid) for pid in pids]
        reader, self._writer = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if not self._pid:
            try:
                self._watch(reader, pidfds)
            finally:
                os._exit(0)
        for fd in (reader, *pidfds):
            os.close(fd)

    @staticmethod
    def _watch(reader: int, pidfds: list[int]) -> None:
        os.setsid()
        below = -1
        for fd in (*sorted((reader, *pidfds)), 1 << 30):
            os.closerange(below + 1, fd)
            below = fd
        if not os.read(reader, 1):
            for pidfd in pidfds:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def all_is_well(self) -> None:
        """Whatever becomes of us now, they live."""
        os.write(self._writer, b".")

    def __exit__(self, *_: object) -> None:
        os.close(self._writer)
        with suppress(ChildProcessError):  # who ignores SIGCHLD has nobody to wait for
            os.waitpid(self._pid, 0)
