# SPDX-License-Identifier: Apache-2.0
"""`make bench-live`: what a dump costs a process that writes: each engine of ckpt, and real CRIU.

Every measurement has a fresh target, which is watched before, during and after one dump that
leaves it running. The engines take turns; medians of the rounds are told. The tables and the plot
go to docs/bench-live.md and .svg.
"""

import argparse
import contextlib
import json
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

from ckpt.image.directory import ImageDir
from tests.bench.bench import HERE, REPO, Samples, progress, tools, wait_until
from tests.bench.live_report import (
    PERCENTILES,
    PHASES,
    Cell,
    Failure,
    Results,
    demands,
    write,
)

SHM = Path("/dev/shm")
SIZES = (256, 1024, 2048, 4096, 8192)
IDLE, FULL = 0, -1
RATES = {"idle": IDLE, "10k": 10_000, "100k": 100_000, "full": FULL}
THP = ("off", "on")
ENGINES = ("live", "fork", "stop", "criu")
QUICK = {
    "sizes": [256, 2048],
    "rates": ["idle", "full"],
    "rounds": 1,
    "seconds": 0.4,
    "limit": 60.0,
}
LEAVE_HUGE_PAGES = ("stop", "criu")
"""After these the target is as it was; the others split huge pages, and a fork() takes longer."""
MIB = 1 << 20
SAMPLE_EVERY = 0.01
READY, FORK = 1, 2
BEFORE, DURING, AFTER = range(1, 1 + len(PHASES))


# --- the target


class Counted(NamedTuple):
    """A phase as the target has counted it, times in ns; laid out as in live.c."""

    writes: int
    longest: int
    held: int
    frozen: int
    looks: int
    buckets: tuple[int, ...]

    def percentile(self, part: float) -> float:
        """The time that this part of all looks stayed below."""
        left = part * sum(self.buckets)
        for bucket, number in enumerate(self.buckets):
            left -= number
            if number and left <= 0:
                return min(_ceiling(bucket), self.longest)
        return 0.0


SUBS = 16
BUCKETS = 40 * SUBS
HEADER = struct.Struct("<6Q16x")
COUNTS = struct.Struct(f"<{5 + BUCKETS}Q")
REQUEST, ANSWER, RESULT, PHASE, GAP, WRITING = range(6)


def _ceiling(bucket: int) -> int:
    """The largest time, in ns, that a bucket counts."""
    if bucket < SUBS:
        return bucket
    shift = bucket // SUBS - 1
    return ((SUBS + bucket % SUBS + 1) << shift) - 1


class Writer:
    """The program of live.c, with its memory filled."""

    def __init__(self, program: Path, directory: Path, cell: Cell) -> None:
        file = directory / "talk"
        size = HEADER.size + COUNTS.size * (1 + len(PHASES))
        file.write_bytes(bytes(size))
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), size)
        pages = "huge" if cell.thp == "on" else "small"
        self._process = subprocess.Popen(
            [program, file, str(cell.mib), pages],
            cwd=program.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.pid = self._process.pid

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._map.close()
        self.kill()
        self._process.wait()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)

    def _get(self, word: int) -> int:
        return int(struct.unpack_from("<Q", self._map, word * 8)[0])

    def _set(self, word: int, value: int) -> None:
        struct.pack_into("<Q", self._map, word * 8, value)

    def _ask(self, request: int) -> int:
        self._set(REQUEST, request)
        wait_until(lambda: self._get(ANSWER) == request, "answer of the target")
        return self._get(RESULT)

    def begin(self, rate: int) -> None:
        """Have it write at this rate as soon as its memory is filled."""
        self._ask(READY)
        self._set(GAP, 10**9 // rate if rate > 0 else 0)
        self._set(WRITING, rate != IDLE)

    def counted(self, phase: int) -> Counted:
        words = COUNTS.unpack_from(self._map, HEADER.size + phase * COUNTS.size)
        return Counted(*words[:5], words[5:])

    @contextlib.contextmanager
    def phase(self, phase: int, samples: Samples) -> Iterator[None]:
        """Have it count meanwhile, and take what it has counted."""
        self._set(PHASE, phase)
        self._looked(phase)
        since, queued = time.monotonic(), self._queued_ms()
        yield
        took, queued = time.monotonic() - since, self._queued_ms() - queued
        self._looked(phase)
        self._set(PHASE, 0)
        samples[f"queued {PHASES[phase - 1]}"].append(queued / took / 10)
        self._note(phase, took, samples)

    def _queued_ms(self) -> float:
        """How long the writer has waited for a CPU up to now; it is the first thread made."""
        _, writer, *_ = sorted(
            Path(f"/proc/{self.pid}/task").iterdir(), key=lambda one: int(one.name)
        )
        return int((writer / "schedstat").read_text().split()[1]) / 1e6

    def _looked(self, phase: int) -> None:
        """Wait until it runs and has seen what there is to see."""
        enough = self.counted(phase).looks + 2
        wait_until(lambda: self.counted(phase).looks >= enough, "look at the clock")

    def _note(self, phase: int, seconds: float, samples: Samples) -> None:
        counted, name = self.counted(phase), PHASES[phase - 1]
        samples[f"writes/s {name}"].append(counted.writes / seconds)
        samples[f"frozen {name}"].append(counted.frozen / 1e6)
        samples[f"held {name}"].append(max(counted.held, counted.frozen) / 1e3)
        samples[f"max {name}"].append(counted.longest / 1e3)
        for label, part in PERCENTILES.items():
            samples[f"{label} {name}"].append(counted.percentile(part) / 1e3)

    def fork_ms(self) -> float:
        """How long a plain fork() stops it."""
        self._set(WRITING, 0)
        return self._ask(FORK) / 1e6


def build(directory: Path) -> Path:
    program = directory / "live"
    command = ["cc", "-O2", "-Wall", "-o", program, HERE / "live.c", "-lpthread"]
    subprocess.run(command, check=True)
    return program


# --- the machine


def used_mib() -> float:
    """Memory in use system-wide that is no cache of a file: anonymous, page tables, shared."""
    with open("/proc/meminfo") as file:
        lines = dict(line.split(":") for line in file)
    keys = ("AnonPages", "PageTables", "Shmem")
    return sum(int(lines[key].split()[0]) for key in keys) / 1024


@contextlib.contextmanager
def extra_memory(samples: Samples) -> Iterator[None]:
    """Take how much more memory is in use meanwhile, at its peak."""
    before = peak = used_mib()
    done = threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(SAMPLE_EVERY):
            peak = max(peak, used_mib())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    samples["extra"].append(peak - before)


def warm(mib: int) -> None:
    """Leave as much memory free as an image takes, and the disk idle.

    In a virtual machine memory that was not in use for a while must first be got from the host,
    at the price of a second per GiB: so some that was in use just now is left behind.
    """
    os.sync()
    with tempfile.TemporaryFile(dir=SHM, buffering=0) as file:
        for _ in range(mib + 64):
            file.write(bytes(MIB))


def timed_copy(source: Path, goal: Path, samples: Samples) -> None:
    """Take how long `cp` needs for the same bytes on the same disk."""
    os.sync()
    since = time.monotonic()
    subprocess.run(["cp", source, goal], check=True)
    copied = time.monotonic()
    with goal.open("rb") as file:
        os.fsync(file.fileno())
    samples["cp"].append((copied - since) * 1e3)
    samples["cp, synced"].append((time.monotonic() - since) * 1e3)


@contextlib.contextmanager
def limited(target: Writer, seconds: float) -> Iterator[None]:
    """End a dump that takes too long by taking its target away: it fails, and lets go of all."""
    timer = threading.Timer(seconds, target.kill)
    timer.start()
    try:
        yield
    except SystemExit as failed:
        if timer.finished.is_set():
            raise SystemExit(f"took over {seconds:g} s") from failed
        raise
    finally:
        timer.cancel()


# --- the measurements


class Bench:
    """One run: samples by cell."""

    def __init__(self, directory: Path, talk: Path, seconds: float, limit: float) -> None:
        self._directory, self._talk = directory, talk
        self._seconds, self._limit = seconds, limit
        self._images = directory / "images"
        self._program = build(directory)
        self._tools = tools()
        self.failures: list[Failure] = []
        self.results: Results = defaultdict(lambda: defaultdict(list))

    def measure(self, cells: list[Cell], rounds: int) -> None:
        """Take a sample of each cell, so many times."""
        known = [cell for cell in cells if _tool(cell) in self._tools]
        for number in range(rounds):
            for done, cell in enumerate(known):
                where = f"round {number + 1} of {rounds}, {done + 1} of {len(known)}"
                progress(f"{where}: {' '.join(map(str, cell))}")
                self._once(cell)
        progress("")

    def _once(self, cell: Cell) -> None:
        """Take one sample of everything; a dump that fails is told of at the end."""
        samples: Samples = defaultdict(list)
        try:
            self._sample(cell, samples)
            for figure, values in samples.items():
                self.results[cell][figure] += values
        except (SystemExit, TimeoutError) as failed:
            self.failures.append(Failure(str(cell), str(failed).strip()))
        finally:
            shutil.rmtree(self._images, ignore_errors=True)

    def _sample(self, cell: Cell, samples: Samples) -> None:
        with Writer(self._program, self._talk, cell) as target:
            target.begin(RATES[cell.rate])
            with target.phase(BEFORE, samples):
                time.sleep(self._seconds)
            warm(cell.mib)
            self._dump(cell, target, samples)
            with target.phase(AFTER, samples):
                time.sleep(self._seconds)
            if cell.engine in LEAVE_HUGE_PAGES:
                samples["fork()"].append(target.fork_ms())
        if cell.engine == "live" and cell.rate == "idle":
            timed_copy(self._images / "pages-1.img", self._images / "copy", samples)

    def _dump(self, cell: Cell, target: Writer, samples: Samples) -> None:
        tool = self._tools[_tool(cell)]
        options = [] if cell.engine == "criu" else [f"--engine={cell.engine}"]
        with (
            limited(target, self._limit),
            extra_memory(samples),
            target.phase(DURING, samples),
        ):
            ran = tool.dump(target, self._images, "--leave-running", *options)
        samples["freeze"] = samples["frozen during"]
        samples["total"].append(ran.wall)
        sizes = (file.stat().st_size for file in self._images.iterdir())
        samples["written"].append(sum(sizes) / MIB)
        with ImageDir.open(self._images) as image:
            told = image.read("stats-dump").dump
        samples["freeze, told"].append(told.frozen_time / 1e3)
        samples["freezing, told"].append(told.freezing_time / 1e3)
        samples["copying"].append(told.memdump_time / 1e3)


def _tool(cell: Cell) -> str:
    return cell.engine if cell.engine == "criu" else "ckpt"


# --- the run


def matrix(arguments: argparse.Namespace) -> list[Cell]:
    """All cells; neighbours differ by the engine, in turn first to last and last to first."""
    found: list[Cell] = []
    points = product(arguments.sizes, arguments.thp, arguments.rates)
    for number, point in enumerate(points):
        engines = arguments.engines if number % 2 else arguments.engines[::-1]
        found += [Cell(*point, engine) for engine in engines]
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-live ARGS=...", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="MIB")
    parser.add_argument("--rates", nargs="+", default=[*RATES], choices=RATES, help="of the writer")
    parser.add_argument("--thp", nargs="+", default=THP, choices=THP, help="huge pages")
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES)
    parser.add_argument("--rounds", type=int, default=3, help="samples of each cell")
    parser.add_argument("--seconds", type=float, default=1.0, help="to watch before and after")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one dump")
    parser.add_argument("--quick", action="store_true", help="two of each, once")
    parser.add_argument("--dir", type=Path, help="where the images go")
    parser.add_argument("--out", type=Path, default=REPO / "docs", help="where the report goes")
    parser.add_argument("--json", action="store_true", help="all samples, as JSON")
    parser.add_argument("--again", type=Path, help="only report what such JSON holds")
    if parser.parse_args().quick:
        parser.set_defaults(**QUICK)
    return parser.parse_args()


def told(file: Path) -> tuple[Results, list[Failure]]:
    """What an earlier run has told as JSON."""
    earlier = json.loads(file.read_text())
    failures = [Failure(*one) for one in earlier["failures"]]
    return {Cell(*cell): figures for cell, figures in earlier["samples"]}, failures


def run(arguments: argparse.Namespace) -> tuple[Results, list[Failure]]:
    """Measure all that is asked for; what there is when interrupted is told all the same."""
    with (
        tempfile.TemporaryDirectory(prefix="ckpt-bench-", dir=arguments.dir) as directory,
        tempfile.TemporaryDirectory(prefix="ckpt-bench-", dir=SHM) as talk,
    ):
        bench = Bench(Path(directory), Path(talk), arguments.seconds, arguments.limit)
        try:
            bench.measure(matrix(arguments), arguments.rounds)
        except KeyboardInterrupt:
            bench.failures.append(Failure("what was left", "interrupted"))
    return bench.results, bench.failures


def main() -> int:
    arguments = _arguments()
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)  # what else runs here is not to be measured
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results, failures = told(arguments.again) if arguments.again else run(arguments)
    if not results:
        raise SystemExit("\n".join(["nothing was measured", *map(str, failures)]))
    found = demands(results, failures)
    write(arguments.out, results, found, failures)
    if arguments.json:
        print(json.dumps({"demands": found, "failures": failures, "samples": [*results.items()]}))
    else:
        print(*failures, *found, sep="\n")
    return int(bool(failures) or not all(demand.met for demand in found))


if __name__ == "__main__":
    sys.exit(main())
