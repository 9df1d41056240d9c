# SPDX-License-Identifier: Apache-2.0
"""What a story tells while it goes on: lines in CRIU's form, stages with their times, progress.

The face makes a log and hands it down in the options; a story only tells. `Log` itself drops it
all, so that the library is silent.
"""

import os
import time

ERROR, WARNING, INFO, DEBUG = 1, 2, 3, 4
"""Levels, as -v counts them."""


class Log:
    """A log that nobody reads."""

    def line(self, level: int, text: str) -> None:
        """Tell something of this level."""

    def stage(self, name: str) -> None:
        """Begin a stage of the story, and end the one before; an empty name ends the last."""

    def copied(self, done: int, total: int) -> None:
        """Tell how many bytes of memory are copied, of how many."""

    def error(self, where: str, text: str) -> None:
        """Tell why the story ends; runtimes look for the word `Error`."""
        self.line(ERROR, f"Error ({where}): {text}")

    def warning(self, where: str, text: str) -> None:
        """Tell what is odd, but stops nothing."""
        self.line(WARNING, f"Warn  ({where}): {text}")


class LineLog(Log):
    """Lines of the form `(00.001234) text`, written at once: they outlive any crash of ours.

    fd is where they go; the caller closes it. A log that cannot be written stops nothing.
    stages has what each took, in ns.
    """

    def __init__(self, fd: int, level: int = WARNING) -> None:
        self.fd, self.level = fd, level
        self.stages: dict[str, int] = {}
        self._begun = self._since = time.monotonic_ns()
        self._stage = ""

    def line(self, level: int, text: str) -> None:
        """Write the line if the level asks for it."""
        if self.fd < 0 or level > self.level:
            return
        seconds, us = divmod((time.monotonic_ns() - self._begun) // 1000, 1_000_000)
        try:
            line = f"({seconds:02}.{us:06}) {text}\n"
            os.write(self.fd, line.encode(errors="backslashreplace"))
        except OSError:
            self.fd = -1

    def stage(self, name: str) -> None:
        """Write what the stage before took, and keep it."""
        now = time.monotonic_ns()
        if self._stage:
            took = now - self._since
            self.stages[self._stage] = self.stages.get(self._stage, 0) + took
            self.line(INFO, f"{self._stage}: {took / 1e6:.3f} ms")
        self._stage, self._since = name, now
