# SPDX-License-Identifier: Apache-2.0
"""`make bench-lazy`: one image restored lazily, eagerly, and by real CRIU: when does it answer?

The ways take turns, medians are told: with the image in the page cache, as it is after a dump, and
once more from the disk. Beside them a program that maps the file of pages privately: as lazy as it
can be with no restore at all.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.bench.bench import (
    HERE,
    REPO,
    SUM,
    VISIT,
    Samples,
    Target,
    Tool,
    become_subreaper,
    build,
    progress,
    tools,
    wait_until,
)
from tests.bench.lazy_report import FIGURES, PACES, WAYS, Results, demands, write

Wait = Callable[[Callable[[], bool], str], None]
AFTERWARDS, LONGEST = 0.3, 15.0  # s
SIZES, QUICK = [64, 256, 1024, 4096, 8192], {"sizes": [64, 1024], "rounds": 1}


class Bench:
    """One run: samples by size and by way."""

    def __init__(self, directory: Path) -> None:
        self.results: Results = {}
        self._directory, self._program = directory, build(directory)
        self._mapped = directory / "mapped"
        subprocess.run(["cc", "-O2", "-Wall", "-o", self._mapped, HERE / "mapped.c"], check=True)
        self._tools = tools()

    def measure(self, mib: int, rounds: int) -> None:
        """Dump one target, and restore it so many times in each way."""
        images = self._directory / f"images-{mib}"
        ways = [way for way in WAYS if self._has(way)]
        self.results[mib] = {way: defaultdict(list) for way in ways}
        with Target(self._program, self._directory, mib) as target:
            self._tools["ckpt"].dump(target, images)
            target.reap()
            for number in range(rounds):
                for way in tuple(ways if number % 2 else ways[::-1]):
                    progress(f"{mib} MiB, round {number + 1} of {rounds}: {way}")
                    if not self._both(way, target, images, self.results[mib][way]):
                        ways.remove(way)
        shutil.rmtree(images)
        progress("")

    def _has(self, way: str) -> bool:
        return "criu" in self._tools or "CRIU" not in way

    def _both(self, way: str, target: Target, images: Path, samples: Samples) -> bool:
        """Take a sample from the page cache and one from the disk; returns as _once."""
        if not self._once(way, target, images, samples):
            return False
        if "lazy" in way:
            self._at_work(way, target, images, samples)
        cold: Samples = defaultdict(list)
        make_cold(images)
        if not self._once(way, target, images, cold):
            return False
        for figure in FIGURES:
            samples[f"{figure}, cold"] += cold[figure]
        return True

    def _once(self, way: str, target: Target, images: Path, samples: Samples) -> bool:
        """Take a sample; returns False if CRIU's daemon did not bring all pages."""
        if way == "mapped":
            self._map(images, samples)
            return True
        measure = {
            "lazy": self._lazy,
            "eager": self._eager,
            "CRIU": self._criu,
            "CRIU lazy": self._criu_lazy,
        }[way]
        try:
            measure(target, images, samples)
        except TimeoutError as error:
            if way != "CRIU lazy":
                raise
            print(f"{way}, {target.mib} MiB: {error}", file=sys.stderr)
            samples.clear()
            _end(target)
            return False
        if target.ask(SUM) != target.sum:
            raise SystemExit(f"{way}: the restored memory is not what was dumped")
        _end(target)
        return True

    def _at_work(self, way: str, target: Target, images: Path, samples: Samples) -> None:
        """Have it read pages at random from its first answer on, and once more when all are in."""
        measure = self._lazy if way == "lazy" else self._criu_lazy
        measure(target, images, defaultdict(list), partial(_visiting, target, samples))
        _end(target)

    def _lazy(
        self, target: Target, images: Path, samples: Samples, wait: Wait = wait_until
    ) -> None:
        figures = images / f"lazy-{target.pid}.json"
        figures.unlink(missing_ok=True)
        began = time.monotonic()
        ran = self._tools["ckpt"].restore(target, images, "--lazy-pages", "--no-record")
        wait(figures.exists, "end of the pager")
        samples["first answer"].append(ran.answer)
        samples["all in"].append((time.monotonic() - began) * 1e3)
        told = json.loads(figures.read_text())
        samples["faults"].append(told["faults"])
        for name in ("median", "p99", "max"):
            samples[f"fault, {name}"].append(told["wait_us"].get(name, 0))

    def _eager(self, target: Target, images: Path, samples: Samples) -> None:
        self._restore(self._tools["ckpt"], target, images, samples)

    def _criu(self, target: Target, images: Path, samples: Samples) -> None:
        self._restore(self._tools["criu"], target, images, samples)

    @staticmethod
    def _restore(tool: Tool, target: Target, images: Path, samples: Samples) -> None:
        ran = tool.restore(target, images)
        samples["first answer"].append(ran.answer)
        samples["all in"].append(ran.wall)

    def _criu_lazy(
        self, target: Target, images: Path, samples: Samples, wait: Wait = wait_until
    ) -> None:
        """Measure from the start of the daemon: nothing can be restored before it is there."""
        began = time.monotonic()
        with _daemon(self._tools["criu"], images) as daemon:
            waited = (time.monotonic() - began) * 1e3
            ran = self._tools["criu"].restore(target, images, "--lazy-pages")
            samples["first answer"].append(waited + ran.answer)
            wait(lambda: daemon.poll() is not None, "end of CRIU's daemon")
            if daemon.poll():
                raise SystemExit(f"criu lazy-pages: exit code {daemon.returncode}")
        samples["all in"].append((time.monotonic() - began) * 1e3)

    def _map(self, images: Path, samples: Samples) -> None:
        """Map the largest file of pages."""
        pages = max(images.glob("pages-*.img"), key=lambda file: file.stat().st_size)
        began = time.monotonic()
        process = subprocess.Popen([self._mapped, pages], stdout=subprocess.PIPE, bufsize=0)
        with process:
            for figure in ("first answer", "all in"):
                if process.stdout is None or process.stdout.read(1) != b".":
                    raise SystemExit("mapped: it has ended")
                samples[figure].append((time.monotonic() - began) * 1e3)


def _visiting(target: Target, samples: Samples, condition: Callable[[], bool], what: str) -> None:
    """Wait for something, and see how many pages it reads a second until then, and afterwards.

    With some daemons the one keeps the other from coming to an end: then it is not waited for.
    """
    target.ask(VISIT)
    for figure, is_over in zip(PACES, (condition, _later(AFTERWARDS)), strict=True):
        since, before, too_long = time.monotonic(), target.visits(), _later(LONGEST)
        wait_until(lambda is_over=is_over, too_long=too_long: is_over() or too_long(), what)
        samples[figure].append((target.visits() - before) / (time.monotonic() - since))
        if not condition():
            return
    target.ask(0)


def _later(seconds: float) -> Callable[[], bool]:
    begun: list[float] = []

    def is_over() -> bool:
        begun.append(time.monotonic())
        return begun[-1] - begun[0] >= seconds

    return is_over


def make_cold(images: Path) -> None:
    """Drop the image's files from the page cache."""
    for path in images.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _end(target: Target) -> None:
    os.kill(target.pid, signal.SIGKILL)
    target.reap()


@contextlib.contextmanager
def _daemon(criu: Tool, images: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`criu lazy-pages`, once it listens; it ends by itself when all pages are in."""
    socket = images / "lazy-pages.socket"
    socket.unlink(missing_ok=True)
    argv = [*criu.command, "lazy-pages", "-D", str(images), "-o", "lazy-pages.log"]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: socket.exists() or process.poll() is not None, "socket of CRIU's daemon")
        yield process
    finally:
        process.kill()
        process.wait()


# --- the run


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-lazy ARGS=...", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="samples of each way and size")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="MIB")
    parser.add_argument("--quick", action="store_true", help="two sizes, once")
    parser.add_argument("--dir", type=Path, help="where the images go")
    parser.add_argument("--out", type=Path, default=REPO / "docs", help="where the report goes")
    parser.add_argument("--json", type=Path, help="write all samples to this file")
    parser.add_argument("--again", type=Path, help="only report what such a file holds")
    if parser.parse_args().quick:
        parser.set_defaults(**QUICK)
    return parser.parse_args()


def _run(arguments: argparse.Namespace) -> Results:
    become_subreaper()
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)  # what else runs here is not to be measured
    with tempfile.TemporaryDirectory(prefix="ckpt-bench-", dir=arguments.dir) as directory:
        bench = Bench(Path(directory))
        for mib in arguments.sizes:
            bench.measure(mib, arguments.rounds)
    return bench.results


def main() -> int:
    arguments = _arguments()
    if arguments.again:
        results = {int(mib): ways for mib, ways in json.loads(arguments.again.read_text()).items()}
    else:
        results = _run(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(results))
    found = demands(results)
    write(arguments.out, results, found)
    print(*found, sep="\n")
    return int(not all(demand.met for demand in found))


if __name__ == "__main__":
    sys.exit(main())
