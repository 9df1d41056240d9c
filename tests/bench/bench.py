# SPDX-License-Identifier: Apache-2.0
"""`make bench`: dump and restore by ckpt and by real CRIU, side by side.

One run, the tools in turn, medians: the machine's mood of the hour hits both alike. Each
measurement has a fresh target and begins with nothing left to be written back to the disk.
"""

import argparse
import contextlib
import ctypes
import json
import mmap
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from ckpt.image.directory import ImageDir

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
PEERS = Path(os.environ.get("CKPT_PEERS", REPO / ".cache/peers"))
DEADLINE = 120.0
LOOK_EVERY = 0.0003
PR_SET_CHILD_SUBREAPER = 36
REQUEST, ANSWER, WHAT, RESULT, SPIN, LONGEST, VISITS = range(7)
SUM, FORK, VISIT = 1, 2, 3

Samples = dict[str, list[float]]
"""Figures by name; times in ms, memory in MiB."""


class Demand(NamedTuple):
    """ckpt's median of a figure may be `most`, or `most` times CRIU's."""

    mib: int
    figure: str
    most: float
    of_criu: bool = True


SMALL, BIG, HUGE = 10, 1024, 4096
DEMANDS = (
    Demand(BIG, "dump", 1.2),
    Demand(BIG, "restore", 1.2),
    Demand(BIG, "stopped, as seen", 1.0),
    Demand(BIG, "stopped, as told", 1.0),
    Demand(SMALL, "dump", 3.0),
    Demand(SMALL, "restore", 3.0),
    *(Demand(mib, f"{verb} RSS", 100, of_criu=False) for mib in (SMALL, BIG, HUGE)
      for verb in ("dump", "restore")),
)  # fmt: skip


# --- the target


class Target:
    """The program of target.c, and later its restored copy: same pid, same file."""

    def __init__(self, program: Path, directory: Path, mib: int) -> None:
        file = directory / "talk"
        file.write_bytes(bytes(mmap.PAGESIZE))
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), mmap.PAGESIZE)
        process = subprocess.Popen(
            [program, file, str(mib)],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        process.returncode = 0  # it is reaped by pid, and so is its restored copy
        self.pid, self.mib = process.pid, mib
        self.sum = self.ask(SUM)

    def __enter__(self) -> "Target":
        return self

    def __exit__(self, *_: object) -> None:
        self._map.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            self.reap()

    def _get(self, word: int) -> int:
        return int(struct.unpack_from("<Q", self._map, word * 8)[0])

    def _set(self, word: int, value: int) -> None:
        struct.pack_into("<Q", self._map, word * 8, value)

    def request(self, what: int = 0) -> None:
        """Ask for something, without waiting."""
        self._set(WHAT, what)
        self._set(REQUEST, self._get(REQUEST) + 1)

    def answered(self) -> bool:
        return self._get(ANSWER) == self._get(REQUEST)

    def ask(self, what: int) -> int:
        self.request(what)
        wait_until(self.answered, "answer of the target")
        return self._get(RESULT)

    def visits(self) -> int:
        """How many pages it has read since it was started, when that is what it was asked for."""
        return self._get(VISITS)

    def reap(self) -> None:
        os.waitpid(self.pid, 0)

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[float]]:
        """See how long the target is stopped: the list gets its longest stop, in ms."""
        found: list[float] = []
        self._set(LONGEST, 0)
        self._set(SPIN, 1)
        wait_until(lambda: self._get(LONGEST) > 0, "second look at the clock")
        yield found
        self._set(SPIN, 0)
        found.append(self._get(LONGEST) / 1e6)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} within {DEADLINE:.0f} s")
        time.sleep(LOOK_EVERY)


def build(directory: Path) -> Path:
    program = directory / "target"
    command = ["cc", "-O2", "-Wall", "-o", program, HERE / "target.c", "-lpthread"]
    subprocess.run(command, check=True)
    return program


def become_subreaper() -> None:
    """Let restored processes become our children: who else would free their pids?"""
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("PR_SET_CHILD_SUBREAPER")


# --- the tools


class Ran(NamedTuple):
    """What a command took. Its rss is at least that of this process, from which it began."""

    wall: float
    cpu: float
    rss: float
    answer: float
    """Until the target had answered, from the command's start; the wall time without a target."""


class Tool:
    """Something with CRIU's command line."""

    def __init__(self, *command: str, engines: tuple[str, ...] = ("",)) -> None:
        self.command = command
        self.engines = engines

    def dump(self, target: Target, images: Path, *options: str) -> Ran:
        images.mkdir()
        return self._run(images, "dump", "-t", str(target.pid), *options)

    def restore(self, target: Target, images: Path, *options: str) -> Ran:
        target.request()
        return self._run(images, "restore", "-d", *options, target=target)

    def _run(self, images: Path, *arguments: str, target: Target | None = None) -> Ran:
        argv = [*self.command, *arguments, "-D", str(images)]
        log = images / "stderr"
        with log.open("wb") as out:
            begun = time.monotonic()
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
            answered = _watch(process.pid, target)
            _, status, usage = os.wait4(process.pid, 0)
            ended = time.monotonic()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(argv)}: {log.read_text(errors='replace')[-2000:]}")
        if target and not answered:
            wait_until(target.answered, "answer of the restored target")
            answered = time.monotonic()
        cpu = usage.ru_utime + usage.ru_stime
        answer = (answered or ended) - begun
        return Ran((ended - begun) * 1e3, cpu * 1e3, usage.ru_maxrss / 1024, answer * 1e3)


def _watch(pid: int, target: Target | None) -> float:
    """Wait for the command's end; return when the target answered, or 0."""
    answered = 0.0
    with open(os.pidfd_open(pid), "rb", buffering=0) as pidfd:
        every = LOOK_EVERY if target else None
        while not select.select([pidfd], [], [], every)[0]:
            if target and not answered and target.answered():
                answered = time.monotonic()
    return answered


def tools() -> dict[str, Tool]:
    ckpt = REPO / ".venv/bin/ckpt"
    command = [str(ckpt)] if ckpt.exists() else [sys.executable, "-m", "ckpt"]
    found = {"ckpt": Tool(*command, engines=("stop", "live"))}
    criu = shutil.which("criu", path=f"{PEERS / 'bin'}:{os.environ.get('PATH', os.defpath)}")
    if criu:
        found["criu"] = Tool(criu)
    else:
        print(f"no criu in {PEERS}: ckpt alone is measured", file=sys.stderr)
    return found


# --- the measurements


class Bench:
    """One run: samples by size and by tool."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._images = directory, directory / "images"
        self._program = build(directory)
        self.tools = tools()
        self.samples: dict[int, dict[str, Samples]] = {}

    def measure(self, mib: int, rounds: int, names: list[str]) -> None:
        """Take so many samples with each tool, in turn."""
        self.samples[mib] = {name: defaultdict(list) for name in names}
        for number in range(rounds):
            for name in names if number % 2 else names[::-1]:
                progress(f"{mib} MiB, round {number + 1} of {rounds}: {name}")
                self._once(self.tools[name], mib, self.samples[mib][name])
        progress("")

    def _once(self, tool: Tool, mib: int, samples: Samples) -> None:
        with Target(self._program, self._directory, mib) as target:
            samples["fork()"].append(target.ask(FORK) / 1e6)
            for engine in tool.engines:
                self._leave_running(tool, engine, target, samples)
            with self._fresh(mib):
                self._kill_and_restore(tool, target, samples)

    def _leave_running(self, tool: Tool, engine: str, target: Target, samples: Samples) -> None:
        options = [f"--engine={engine}"] if engine else []
        with self._fresh(target.mib):
            with target.watched() as stopped:
                tool.dump(target, self._images, "--leave-running", *options)
            prefix = "live, " if engine == "live" else ""
            samples[f"{prefix}stopped, as seen"] += stopped
            samples[f"{prefix}stopped, as told"].append(self._told())

    def _kill_and_restore(self, tool: Tool, target: Target, samples: Samples) -> None:
        dumped = tool.dump(target, self._images)
        since = time.monotonic()
        os.sync()
        synced = (time.monotonic() - since) * 1e3
        _add(samples, "dump", dumped)
        samples["dump, until on disk"].append(dumped.wall + synced)
        samples["dump, stopped"].append(self._told())
        target.reap()
        restored = tool.restore(target, self._images)
        _add(samples, "restore", restored)
        samples["restore, first answer"].append(restored.answer)
        if target.ask(SUM) != target.sum:
            raise SystemExit("the restored memory is not what was dumped")

    def _told(self) -> float:
        with ImageDir.open(self._images) as image:
            return float(image.read("stats-dump").dump.frozen_time / 1e3)

    @contextlib.contextmanager
    def _fresh(self, mib: int) -> Iterator[None]:
        """No images before and after, the disk idle, and as much memory free as an image takes.

        In a virtual machine memory that was not in use for a while must first be got from the
        host, at the price of a second per GiB: so some that was in use just now is left behind.
        """
        warm = self._directory / "warm"
        with warm.open("wb", buffering=0) as file:
            for _ in range(mib + 16):
                file.write(bytes(1 << 20))
        os.sync()
        warm.unlink()
        try:
            yield
        finally:
            shutil.rmtree(self._images, ignore_errors=True)


def _add(samples: Samples, verb: str, ran: Ran) -> None:
    samples[verb].append(ran.wall)
    samples[f"{verb} CPU"].append(ran.cpu)
    samples[f"{verb} RSS"].append(ran.rss)


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:60}\r", end="", file=sys.stderr, flush=True)


# --- the report


ORDER = (
    "dump", "dump, until on disk", "dump CPU", "dump, stopped",
    "stopped, as seen", "stopped, as told", "live, stopped, as seen", "live, stopped, as told",
    "fork()", "restore", "restore CPU", "restore, first answer", "dump RSS", "restore RSS",
)  # fmt: skip


class Line(NamedTuple):
    """One figure: medians, and what is demanded of it."""

    mib: int
    figure: str
    ckpt: float
    criu: float | None
    demand: str
    passed: bool | None

    @property
    def ratio(self) -> float | None:
        return self.ckpt / self.criu if self.criu else None


def lines(samples: dict[int, dict[str, Samples]]) -> Iterator[Line]:
    for mib, by_tool in samples.items():
        for figure in ORDER:
            ours = median(by_tool["ckpt"][figure])
            samples_of = by_tool["criu"].get(figure) if "criu" in by_tool else None
            theirs = median(samples_of) if samples_of else None
            yield Line(mib, figure, ours, theirs, *_judged(mib, figure, ours, theirs))


def _judged(mib: int, figure: str, ours: float, theirs: float | None) -> tuple[str, bool | None]:
    demand = next((one for one in DEMANDS if (one.mib, one.figure) == (mib, figure)), None)
    if demand is None:
        return "", None
    if not demand.of_criu:
        return f"<= {demand.most:g}", ours <= demand.most
    return f"<= {demand.most:g} x", None if theirs is None else ours <= demand.most * theirs


def table(found: list[Line]) -> str:
    rows = [f"{'':30}{'ckpt':>10}{'CRIU':>10}{'ratio':>8}  demand"]
    mib = 0
    for line in found:
        if line.mib != mib:
            mib = line.mib
            rows.append(f"{mib} MiB")
        unit = "MiB" if line.figure.endswith("RSS") else "ms"
        criu = "" if line.criu is None else f"{line.criu:.2f}"
        ratio = "" if line.ratio is None else f"{line.ratio:.2f}"
        verdict = {True: "PASS", False: "FAIL", None: ""}[line.passed]
        figure = f"  {line.figure} ({unit})"
        rows.append(
            f"{figure:30}{line.ckpt:10.2f}{criu:>10}{ratio:>8}  {line.demand:8} {verdict}".rstrip()
        )
    return "\n".join(rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="samples per tool and size")
    parser.add_argument("--sizes", type=int, nargs="+", default=[SMALL, BIG], metavar="MIB")
    parser.add_argument("--quick", action="store_true", help="two rounds, nothing huge")
    parser.add_argument("--dir", type=Path, help="where the images go")
    parser.add_argument("--json", action="store_true", help="all samples too, as JSON")
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    become_subreaper()
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)  # what else runs here is not to be measured
    rounds = 2 if arguments.quick else arguments.rounds
    with tempfile.TemporaryDirectory(prefix="ckpt-bench-", dir=arguments.dir) as directory:
        bench = Bench(Path(directory))
        for mib in arguments.sizes:
            bench.measure(mib, rounds if mib >= BIG else 2 * rounds, list(bench.tools))
        if not arguments.quick:
            bench.measure(HUGE, 1, ["ckpt"])
    found = list(lines(bench.samples))
    if arguments.json:
        figures = [line._asdict() | {"ratio": line.ratio} for line in found]
        print(json.dumps({"figures": figures, "samples": bench.samples}, indent=1))
    else:
        print(table(found))
    return int(any(line.passed is False for line in found))


if __name__ == "__main__":
    sys.exit(main())
