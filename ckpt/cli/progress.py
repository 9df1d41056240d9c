# SPDX-License-Identifier: Apache-2.0
"""A log that also shows, on a terminal, how far a long copy has come, and times the freeze."""

import os
import signal
import time
from typing import TYPE_CHECKING

from ckpt.log import LineLog

if TYPE_CHECKING:
    from rich.progress import Progress

_PATIENCE_NS, _INTERVAL_NS = 10**9, 10**8


class Terminal(LineLog):
    """The log of a command; what takes over a second shows a bar if stderr is a terminal."""

    def __init__(self, fd: int, level: int, timeout: int = 0) -> None:
        super().__init__(fd, level)
        self._timeout = timeout
        self._next = time.monotonic_ns() + _PATIENCE_NS
        self._bar: Progress | None = None

    def stage(self, name: str) -> None:
        """Have SIGALRM come if the freeze, which a task in the kernel can hold up, takes long."""
        super().stage(name)
        if self._timeout:
            signal.alarm(self._timeout if name == "freeze" else 0)

    def copied(self, done: int, total: int) -> None:
        """Show it, a few times a second; the bar goes when all is copied."""
        now = time.monotonic_ns()
        if now < self._next and not (self._bar and done >= total):
            return
        self._next = now + _INTERVAL_NS
        if self._bar is None:
            if done >= total or not os.isatty(2):
                return
            self._bar = _bar(total)
        self._bar.update(self._bar.task_ids[0], completed=done, refresh=True)
        if done >= total:
            self._bar.stop()
            self._bar = None


def _bar(total: int) -> "Progress":
    """Make a bar without a thread of its own: it would fight for the interpreter."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = "copying", BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn()
    bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
    bar.start()
    bar.add_task("memory", total=total)
    return bar
