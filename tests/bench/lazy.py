# SPDX-License-Identifier: Apache-2.0
"""`make bench-lazy`: one image restored lazily, eagerly, and by real CRIU: when does it answer?

The tools take turns, medians are told. The image is in the page cache, as it is after a dump.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

from tests.bench.bench import (
    SUM,
    Samples,
    Target,
    Tool,
    become_subreaper,
    build,
    progress,
    tools,
    wait_until,
)

WAYS = (("lazy", "ckpt"), ("eager", "ckpt"), ("CRIU", "criu"))
FIGURES = ("first answer", "all in", "faults", "fault, median us", "fault, p99 us")
LARGEST_GROWTH, SOONER_THAN_CRIU = 1.3, 20


def once(way: str, tool: Tool, target: Target, images: Path, samples: Samples) -> None:
    """Restore it, ask it, see that its memory is right, and end it."""
    figures = images / f"lazy-{target.pid}.json"
    figures.unlink(missing_ok=True)
    began = time.monotonic()
    options = ["--lazy-pages", "--no-record"] if way == "lazy" else []
    ran = tool.restore(target, images, *options)
    samples["first answer"].append(ran.answer)
    if way == "lazy":
        wait_until(figures.exists, "end of the pager")
        samples["all in"].append((time.monotonic() - began) * 1e3)
        told = json.loads(figures.read_text())
        samples["faults"].append(told["faults"])
        samples["fault, median us"].append(told["wait_us"].get("median", 0))
        samples["fault, p99 us"].append(told["wait_us"].get("p99", 0))
    else:
        samples["all in"].append(ran.wall)
    if target.ask(SUM) != target.sum:
        raise SystemExit(f"{way}: the restored memory is not what was dumped")
    os.kill(target.pid, signal.SIGKILL)
    target.reap()


def measure(directory: Path, mib: int, rounds: int) -> dict[str, Samples]:
    """Dump one target, and restore it so many times in each way."""
    images = directory / f"images-{mib}"
    known = tools()
    ways = [(way, known[tool]) for way, tool in WAYS if tool in known]
    found: dict[str, Samples] = {way: defaultdict(list) for way, _ in ways}
    with Target(build(directory), directory, mib) as target:
        known["ckpt"].dump(target, images)
        target.reap()
        for number in range(rounds):
            for way, tool in ways if number % 2 else ways[::-1]:
                progress(f"{mib} MiB, round {number + 1} of {rounds}: {way}")
                once(way, tool, target, images, found[way])
    shutil.rmtree(images)
    progress("")
    return found


def table(samples: dict[int, dict[str, Samples]]) -> str:
    rows = [f"{'':24}" + "".join(f"{way:>12}" for way, _ in WAYS)]
    for mib, by_way in samples.items():
        rows.append(f"{mib} MiB")
        for figure in FIGURES:
            cells = (by_way.get(way, {}).get(figure) for way, _ in WAYS)
            text = "".join(f"{median(cell):12.1f}" if cell else f"{'':12}" for cell in cells)
            unit = " (ms)" if figure in ("first answer", "all in") else ""
            rows.append(f"  {figure + unit:22}{text}".rstrip())
    return "\n".join(rows)


def demands(samples: dict[int, dict[str, Samples]]) -> list[tuple[str, bool]]:
    """What is to be reached, and whether it is."""
    answers = {mib: median(by_way["lazy"]["first answer"]) for mib, by_way in samples.items()}
    small, large = min(samples), max(samples)
    growth = answers[large] / answers[small]
    found = [
        (f"first answer, {large} to {small} MiB: {growth:.2f} <= {LARGEST_GROWTH}",
         growth <= LARGEST_GROWTH),
    ]  # fmt: skip
    if criu := samples[large].get("CRIU"):
        sooner = median(criu["first answer"]) / answers[large]
        text = f"first answer, CRIU to lazy at {large} MiB: {sooner:.1f} >= {SOONER_THAN_CRIU}"
        found.append((text, sooner >= SOONER_THAN_CRIU))
        drain = median(samples[large]["lazy"]["all in"]) / median(criu["all in"])
        found.append((f"all in, lazy to CRIU at {large} MiB: {drain:.2f} <= 1", drain <= 1))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-lazy ARGS=...", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="samples of each way and size")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 1024, 4096], metavar="MIB")
    parser.add_argument("--dir", type=Path, help="where the images go")
    parser.add_argument("--json", action="store_true", help="all samples, as JSON")
    arguments = parser.parse_args()
    become_subreaper()
    with tempfile.TemporaryDirectory(prefix="ckpt-bench-", dir=arguments.dir) as directory:
        samples = {mib: measure(Path(directory), mib, arguments.rounds) for mib in arguments.sizes}
    if arguments.json:
        print(json.dumps(samples, indent=1))
        return 0
    print(table(samples))
    found = demands(samples)
    for text, reached in found:
        print(f"{'PASS' if reached else 'FAIL'}  {text}")
    return int(not all(reached for _, reached in found))


if __name__ == "__main__":
    sys.exit(main())
