# SPDX-License-Identifier: Apache-2.0
"""`make demo`: a process that works is dumped and restored, and says itself what it lost.

Two acts: the process goes and comes back; a picture is taken of it while it runs on, and the
picture becomes a process when the first one has died. Ends with 0 only if nothing was lost.
"""

import argparse
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import psutil

from ckpt.image.directory import ImageDir

REPO = Path(__file__).resolve().parents[1]
CKPT = REPO / ".venv/bin/ckpt"
PROGRAMS = REPO / "tests/programs"
DEADLINE = 60.0
PR_SET_CHILD_SUBREAPER = 36
MIB = 1 << 20


class Failed(Exception):
    """The demo cannot go on, or something was lost."""


class Target:
    """tests/programs/demo.c: reached by its pid and its port, which a restore brings back."""

    def __init__(self, place: Path, mib: int) -> None:
        program = PROGRAMS / "bin/demo"
        self.pid = subprocess.Popen(
            [program, place, str(mib)],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ).pid
        ready, deadline = place / "ready", time.monotonic() + DEADLINE
        while not ready.exists():
            if time.monotonic() > deadline or self.is_gone():
                raise Failed("the process to dump did not get ready")
            time.sleep(0.01)
        self.port = int((place / "port").read_text())

    def ask(self, question: str) -> list[str]:
        """Ask over a connection of its own; returns the lines of the answer."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), DEADLINE) as connection:
                connection.sendall(f"{question}\n".encode())
                connection.shutdown(socket.SHUT_WR)
                with connection.makefile() as answer:
                    return answer.read().splitlines()
        except OSError as error:
            raise Failed(f"pid {self.pid} does not answer: {error}") from error

    def count(self) -> int:
        """Return the number of this answer: one more than the last time."""
        return int(self.ask("count")[0])

    def work(self) -> tuple[int, int]:
        """Return how many pages it has written, and how many ticks it has counted."""
        written, ticks = self.ask("work")[0].split()
        return int(written), int(ticks)

    def is_gone(self) -> bool:
        """Say whether it has ended; then its pid is free."""
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
        except ChildProcessError:
            return not psutil.pid_exists(self.pid)

    def kill(self) -> None:
        """End it and wait for that: a zombie keeps its pid."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def main() -> int:
    """Play both acts; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--mib", type=int, default=256, help="memory of the process [256]")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        check_rights()
        with stage() as place:
            play(place, options.mib)
    except Failed as failed:
        print(f"\nThe demo failed: {failed}", file=sys.stderr)
        return 1
    return 0


def check_rights() -> None:
    if os.geteuid():
        raise Failed("it needs root, as every dump does; try: sudo make demo")


@contextmanager
def stage() -> Iterator[Path]:
    """A directory for all files; afterwards it is gone, and so is every process we had."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    # A restored process is the child of a ckpt that ends: it becomes ours, to ask, kill and reap.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    place = Path(tempfile.mkdtemp(prefix="ckpt-demo-"))
    try:
        yield place
    except KeyboardInterrupt:
        raise Failed("interrupted") from None
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for child in psutil.Process().children(recursive=True):
            child.kill()
        reap_all()
        shutil.rmtree(place)


def stop(*_: object) -> NoReturn:
    raise Failed("interrupted")


def reap_all() -> None:
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        return


def play(place: Path, mib: int) -> None:
    subprocess.run(["make", "-s", "-C", PROGRAMS, "bin/demo"], check=True)
    target = Target(place, mib)
    print(
        f"A process at work: pid {target.pid}, 4 threads that keep writing {mib} MiB of memory,\n"
        f"a log, timers, unread messages, a server at port {target.port}. Its pages and counts\n"
        "prove each other, so that it can tell whether it lost anything. Let us try."
    )
    go_and_come_back(target, place / "first")
    live_twice(target, place / "second")
    print("\nNothing was lost.")


def go_and_come_back(target: Target, images: Path) -> None:
    """Act one: dumped, gone, restored."""
    headline("1. It goes into a file, and comes back")
    counted, (written, ticks) = target.count(), target.work()
    say(f"it has answered {counted} question, written {written:,} pages, heard {ticks} timer ticks")
    dump(target, images)
    if not target.is_gone():
        raise Failed(f"pid {target.pid} still runs after its dump")
    say(f"pid {target.pid} is gone; the port is free")
    restore(target, images)
    expect_answers(target, counted + 1)
    examine(target, written, aloud=True)
    shutil.rmtree(images)


def live_twice(target: Target, images: Path) -> None:
    """Act two: dumped and running on; when it has died, the image lives."""
    headline("2. A picture of it while it runs on, which lives when it has died")
    counted, (written, _) = target.count(), target.work()
    say(f"it has answered {counted} questions")
    dump(target, images, "--leave-running")
    expect_answers(target, counted + 1, counted + 2, counted + 3)
    examine(target, written)
    target.kill()
    say(f"pid {target.pid} is killed; of those three answers the image knows nothing")
    restore(target, images, "--lazy-pages")
    expect_answers(target, counted + 1)
    examine(target, written)


def headline(text: str) -> None:
    print(f"\n{text}")


def say(text: str) -> None:
    print(f"   {text}")


def dump(target: Target, images: Path, *options: str) -> None:
    """Have it dumped, and tell what that cost."""
    seconds = ckpt("dump", "-t", str(target.pid), "-D", str(images), *options)
    with ImageDir.open(images) as image:
        stats = image.read("stats-dump").dump
    size = sum(file.stat().st_size for file in images.iterdir())
    stopped = f"{stats.frozen_time / 1000:.1f} ms"
    say(f"{size / MIB:.0f} MiB written in {seconds:.2f} s; it stood still for {stopped}")


def restore(target: Target, images: Path, *options: str) -> None:
    """Have it restored, and tell how long it took until it ran."""
    seconds = ckpt("restore", "-D", str(images), "--restore-detached", *options)
    if target.is_gone():
        raise Failed(f"pid {target.pid} ended after its restore")
    say(f"pid {target.pid} runs again after {seconds:.2f} s")


def ckpt(*arguments: str) -> float:
    """Run it as a user would, and show it; returns the seconds it took."""
    shown = [f"{Path(word).name}/" if word.startswith("/") else word for word in arguments]
    print(f"   $ ckpt {' '.join(shown)}")
    begun = time.monotonic()
    done = subprocess.run([CKPT, *arguments], stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise Failed(f"ckpt {arguments[0]} ended with {done.returncode}")
    return time.monotonic() - begun


def expect_answers(target: Target, *numbers: int) -> None:
    """Its count of answers goes on where it was at that instant."""
    answers = [target.count() for _ in numbers]
    say(f"asked to go on counting: {', '.join(map(str, answers))}")
    if answers != list(numbers):
        raise Failed(f"it should have said {', '.join(map(str, numbers))}")


def examine(target: Target, written: int, *, aloud: bool = False) -> None:
    """Have it look for what it lost; at least so many pages must have been written."""
    findings = target.ask("verify")
    if findings[-1:] != ["."]:
        raise Failed("it ended while it examined itself")
    good = [finding.startswith("ok ") for finding in findings[:-1]]
    for finding in findings[:-1]:
        if aloud or not finding.startswith("ok "):
            say(f"  {finding}")
    if not all(good):
        raise Failed("something was lost")
    if not aloud:
        say(f"asked to examine itself: {len(good)} of {len(good)} things are ok")
    if target.work()[0] < written:
        raise Failed("pages that were written before are not")


if __name__ == "__main__":
    sys.exit(main())
