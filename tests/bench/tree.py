# SPDX-License-Identifier: Apache-2.0
"""`make bench-tree`: a tree of many small processes restored by ckpt and by real CRIU, in turn.

Each has four threads and twenty descriptors, and next to no memory: what is measured is the work
for each of them. The copies judge themselves.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil

from tests.bench.bench import REPO, Tool, become_subreaper, progress, tools, wait_until

PROGRAMS = REPO / "tests" / "programs"
MOST = 2.0
"""A restore by ckpt may take so many times what it takes CRIU."""


class Tree:
    """The program tree_many, and later its copies."""

    def __init__(self, directory: Path, processes: int) -> None:
        subprocess.run(["make", "-s", "-C", PROGRAMS, "bin/tree_many"], check=True)
        self._directory = directory
        process = subprocess.Popen(
            [PROGRAMS / "bin/tree_many", directory, str(processes)],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        process.returncode = 0  # it is reaped by pid, and so are its copies
        self.pid = process.pid
        wait_until((directory / "ready").exists, "tree")

    def end(self) -> None:
        """Kill all of it, and free the pids."""
        with contextlib.suppress(psutil.NoSuchProcess):
            below = psutil.Process(self.pid).children(recursive=True)
            for process in (self.pid, *(one.pid for one in below)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)

    def judge(self) -> None:
        """Have a copy check itself, which ends it."""
        (self._directory / "go").touch()
        os.waitpid(self.pid, 0)
        verdict = (self._directory / "verdict").read_text()
        if verdict != "ok":
            raise SystemExit(f"the restored tree: {verdict}")
        for name in ("go", "verdict"):
            (self._directory / name).unlink()


def measure(directory: Path, processes: int, rounds: int) -> dict[str, list[float]]:
    """Take so many samples of each tool; ms."""
    (directory / "target").mkdir()
    tree, images, found = Tree(directory / "target", processes), directory / "images", tools()
    samples: dict[str, list[float]] = {name: [] for name in found}
    try:
        _run(found["ckpt"], "dump", "-t", str(tree.pid), "-D", str(images))
        tree.end()
        for number in range(rounds):
            for name in found if number % 2 else reversed(found):
                progress(f"{processes} processes, round {number + 1} of {rounds}: {name}")
                samples[name].append(_run(found[name], "restore", "-d", "-D", str(images)))
                tree.judge()
    finally:
        tree.end()
    progress("")
    return samples


def _run(tool: Tool, *words: str) -> float:
    """Run a command; return what it took, in ms."""
    begun = time.monotonic()
    done = subprocess.run(
        [*tool.command, *words], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{tool.command[0]} {words[0]}: {done.stderr.decode()[-2000:]}")
    return (time.monotonic() - begun) * 1e3


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-tree ARGS=...", description=__doc__)
    parser.add_argument("--processes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5, help="samples of each tool")
    parser.add_argument("--dir", type=Path, help="where the images go")
    arguments = parser.parse_args()
    become_subreaper()
    with tempfile.TemporaryDirectory(prefix="ckpt-bench-", dir=arguments.dir) as directory:
        samples = measure(Path(directory), arguments.processes, arguments.rounds)
    figures = {name: median(taken) for name, taken in samples.items()}
    for name, taken in samples.items():
        spread = f"{min(taken):.0f} to {max(taken):.0f}"
        print(f"restore by {name}: {figures[name]:.0f} ms ({spread})")
    if "criu" not in figures:
        return 0
    times = figures["ckpt"] / figures["criu"]
    print(f"{times:.2f} times CRIU's, {MOST:g} allowed")
    return int(times > MOST)


if __name__ == "__main__":
    sys.exit(main())
