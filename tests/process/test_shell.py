# SPDX-License-Identifier: Apache-2.0
"""A shell with job control in a terminal whose master is in the tree, as below sshd or tmux."""

import sys
from pathlib import Path

import psutil
import pytest
from service import Service
from target import Ckpt, wait_until
from test_real import REAL

from ckpt.kernel import procfs
from ckpt.kernel.arch import NR
from tests.peers import peer

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


class Shell(Service):
    """bash at its prompt; commands are typed, answers are read off the screen."""

    name = "bash"

    def command(self) -> list[str]:
        shell = [peer("bash"), "--norc", "--noprofile", "-i"]
        return [sys.executable, "-IS", str(REAL / "screen.py"), str(self.place), *shell]

    def is_up(self) -> bool:
        return (self.place / "keys").exists() and "# " in self.screen()

    def fill(self) -> None:
        self.show(
            "PS1='ready> '; unset HISTFILE; bind 'set enable-bracketed-paste off'\n", "\nready> "
        )

    def screen(self) -> str:
        return (self.place / "screen").read_text().replace("\r", "")

    def type(self, keys: str) -> None:
        with (self.place / "keys").open("r+b", buffering=0) as file:
            file.write(keys.encode())

    def show(self, keys: str, wanted: str) -> str:
        """Type keys, wait until something is shown; returns what has been shown since before."""
        seen = len(self.screen())
        self.type(keys)
        wait_until(lambda: wanted in self.screen()[seen:], f"{wanted!r} after {keys!r}")
        return self.screen()[seen:]

    def begin(self, command: str, name: str = "") -> None:
        """Have a program run in the foreground, and read what is typed from now on.

        The shell takes away what was typed before it has set the terminal for the program.
        """
        self.show(f"{command}\n", "\n")
        wait_until(lambda: (name or command) in self.readers(), f"{name or command} to read")

    def readers(self) -> list[str]:
        """The programs in the foreground of the terminal that wait for what is typed."""
        below = psutil.Process(self.pid).children(recursive=True)
        stats = [procfs.stat(one.pid) for one in below if one.is_running()]
        return [one.comm for one in stats if one.pgrp == one.tpgid and _reads(one.pid)]


def _reads(pid: int) -> bool:
    call = procfs.syscall(pid)
    return call is not None and call.number == NR.read and call.args[0] == 0


JOBS = """\
mkfifo gate; (cat gate; echo b; echo a; echo b) | sort | uniq -c > sorted &
sleep 1000 &
"""


@pytest.mark.parametrize("engine", ["stop", "live"])
def test_jobs(engine: str, place: Path) -> None:
    """A pipeline in the background, a stopped job, one in the foreground: all are there again."""
    images = place / "images"
    with Shell(place) as shell:
        for line in JOBS.splitlines():
            shell.show(line + "\n", "ready> ")
        shell.begin("cat")
        shell.show("heard\n", "heard\nheard\n")
        shell.show("\x1a", "Stopped")
        shell.show("jobs\n", "sleep 1000 &\n")
        before = shell.show("jobs; echo done\n", "\ndone\n")
        shell.note()
        Ckpt().dump(shell, images, "--engine", engine)
        Ckpt().restore(shell, images)
        assert shell.show("jobs; echo done\n", "\ndone\n") == before
        shell.begin("fg %3", "cat")
        shell.show("still\n", "still\nstill\n")
        shell.show("\x04", "ready> ")
        shell.show("kill %2; wait %2; echo $?\n", "\n143\n")
        shell.show("echo c > gate; wait; cat sorted\n", "      1 a\n      2 b\n      1 c\n")


def test_half_a_line(place: Path) -> None:
    """Typed, but not entered yet: at the prompt it is the shell's, in a program the kernel's."""
    with Shell(place) as shell:
        shell.show("echo ha", "echo ha")
        run_on_and_come_back(shell, place / "prompt")
        shell.show("lf\n", "\nhalf\n")
        shell.begin("cat")
        shell.show("first\n", "first\nfirst\n")
        shell.show("ha", "ha")
        run_on_and_come_back(shell, place / "program")
        shell.show("x\x7flf\n", "\nhalf\n")


def run_on_and_come_back(shell: Shell, images: Path) -> None:
    images.mkdir()
    Ckpt().dump(shell, images / "first", "-R")
    shell.note()
    Ckpt().dump(shell, images / "second")
    Ckpt().restore(shell, images / "second")
