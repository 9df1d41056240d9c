# SPDX-License-Identifier: Apache-2.0
"""Our command in a child of ours, killed at any one of the system calls that it makes.

Its first thread is traced, so it stands still at every boundary of a system call, and whatever it
traces or has started goes on meanwhile. A kill there has the outcome of a kill at any instant
since the boundary before, but for what only memory knows; so all boundaries are all instants.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

# Imported before we fork, or each child would do it.
from ckpt import cli, dump, live, restore  # noqa: F401
from ckpt.cli import stories  # noqa: F401
from ckpt.kernel.arch import NR
from ckpt.kernel.ptrace import SYSCALL_STOP, Options, Tracee

PTRACE = 101
_SAID = "said"


class Command:
    """A run of `ckpt WORDS` that has not begun yet; code is its exit code, -9 if it was killed."""

    def __init__(self, place: Path, *words: object) -> None:
        self.code: int | None = None
        self._said = place / _SAID
        reader, self._go = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            self._run(reader, list(map(str, words)))
        os.close(reader)

    def _run(self, reader: int, words: list[str]) -> None:
        code = 70
        try:
            os.close(self._go)
            os.setsid()
            os.read(reader, 1)
            os.close(reader)
            sys.stdout = sys.stderr = self._said.open("w", errors="backslashreplace")
            code = cli.run(words)
            sys.stderr.flush()
        finally:
            os._exit(code)

    @property
    def said(self) -> str:
        """What it has printed."""
        return self._said.read_text()

    def begin(self) -> None:
        """Let it run; nobody stops it."""
        os.close(self._go)

    def ended(self, status: int) -> bool:
        """Take note of a wait status; say whether that was the end."""
        if os.WIFSTOPPED(status):
            return False
        self.code = os.waitstatus_to_exitcode(status)
        return True

    def wait(self) -> int:
        """Wait for its end, return its exit code."""
        while not self.ended(os.waitpid(self.pid, 0)[1]):
            pass
        return self.code

    def step(self, visit: Callable[[int, int], bool]) -> None:
        """Run it to its end, or kill it where visit(number of this boundary, call) says so."""
        tracee = Tracee(self.pid, Options.SYSGOOD | Options.EXITKILL)
        tracee.interrupt()
        tracee.wait()
        self.begin()
        tracee.syscall()
        try:
            self._visit_all(tracee, visit)
        finally:
            if self.code is None:
                os.kill(self.pid, signal.SIGKILL)
                self.wait()

    def _visit_all(self, tracee: Tracee, visit: Callable[[int, int], bool]) -> None:
        number = 0
        while not self.ended(status := os.waitpid(self.pid, 0)[1]):
            signo, event = os.WSTOPSIG(status), status >> 16
            if signo == SYSCALL_STOP:
                if visit(number, tracee.regs().orig_ax):
                    return
                number += 1
            tracee.syscall(0 if event or signo == SYSCALL_STOP else signo)


def run(place: Path, *words: object) -> tuple[int, str]:
    """Run a command undisturbed; returns its exit code and what it has said."""
    command = Command(place, *words)
    command.begin()
    return command.wait(), command.said


def boundaries(command: Command) -> tuple[list[int], range]:
    """Run a command to its end; return the calls at its boundaries, and those that trace."""
    seen: list[int] = []

    def look(_: int, call: int) -> bool:
        seen.append(call)
        return False

    command.step(look)
    tracing = [number for number, call in enumerate(seen) if call == PTRACE]
    return seen, range(tracing[0], tracing[-1] + 1)


def name(call: int) -> str:
    """A system call's name, or its number if we have none."""
    known = {PTRACE: "ptrace", 61: "wait4"}
    return NR(call).name if call in set(NR) else known.get(call, str(call))
