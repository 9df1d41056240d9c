# SPDX-License-Identifier: Apache-2.0
"""What `make bench-lazy` found: the demands, a table, a plot. It knows nothing of measuring."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median

from tests.bench.bench import Samples
from tests.bench.live_report import Demand, machine

WAYS = ("lazy", "eager", "CRIU", "CRIU lazy", "mapped")
Results = dict[int, dict[str, Samples]]
"""Samples by MiB and by way; times in ms, waits for a fault in us."""

FIGURES = ("first answer", "all in")
PACES = ("visits a second until all is in", "visits a second afterwards")
LARGEST_GROWTH, SOONER_THAN_CRIU, LARGE = 1.3, 20, 4096
_FAULTS = ("faults", "fault, median", "fault, p99", "fault, max")
_COLOURS = ("#1b7837", "#7fbf7b", "#b2182b", "#ef8a62", "#999999")

_REPORT = """\
<!-- SPDX-License-Identifier: Apache-2.0 -->
# How soon a restored process answers

Made by `make bench-lazy`, not by hand: {rounds} of each way and size, medians.
{machine}

The target (`tests/bench/target.c`) has four threads, 20 descriptors and as much private memory as
the table says, all of it written. One image of it is restored in each way in turn, and asked for
all its memory, which is compared: with the image in the page cache, and (**cold**) from the disk.

![First answer, and all in](bench-lazy.svg)

## Demands

| demand | measured | met |
| --- | --- | --- |
{demands}

## Figures

- **first answer**: from the command's start until the process has answered, in ms. Of CRIU's
  lazy-pages: from the start of its daemon.
- **all in**: from there until every page is in place, in ms; of the lazy ones, until the pager or
  the daemon says so or ends.
- **lazy**, **eager**: `ckpt restore`, with `--lazy-pages` and without. **CRIU**: `criu restore`.
  **CRIU lazy**: `criu restore --lazy-pages` with `criu lazy-pages`.
  A cell is empty where its daemon did not bring what was asked for in two minutes.
- **mapped**: no restore: a program that maps the file of pages privately (`tests/bench/mapped.c`),
  has read a page, has written to all of them.

| MiB | figure | {heads} |
| --- | --- |{rules}
{rows}

What a process gets done meanwhile: pages that it reads at random, one after the other by one
thread, in thousands a second, from its first answer until all is in, and when all is.

| MiB | lazy, until all is in | afterwards | CRIU lazy, until all is in | afterwards |
| --- | --- | --- | --- | --- |
{paces}

How long who faults has to wait for a page, from when the pager has read the fault, in us:

| MiB | faults | median | p99 | max |
| --- | --- | --- | --- | --- |
{faults}
"""


# --- the demands


def _median(results: Results, mib: int, way: str, figure: str) -> float | None:
    samples = results[mib].get(way, {}).get(figure)
    return median(samples) if samples else None


def demands(results: Results) -> list[Demand]:
    """Judge what was measured; what was not measured is left out."""
    return [*_growth(results), *_answers(results), *_pages(results)]


def _growth(results: Results) -> Iterator[Demand]:
    small, large = min(results), max(results)
    least, most = (_median(results, mib, "lazy", "first answer") for mib in (small, large))
    if least and most:
        yield Demand(
            f"first answer at {large} MiB at most {LARGEST_GROWTH} times that at {small} MiB",
            f"{most / least:.2f} times ({most:.0f} ms to {least:.0f} ms)",
            most <= LARGEST_GROWTH * least,
        )


def _answers(results: Results) -> Iterator[Demand]:
    for way, than, sooner in (
        ("CRIU", f"{SOONER_THAN_CRIU} times sooner than CRIU's eager restore", SOONER_THAN_CRIU),
        ("CRIU lazy", "sooner than CRIU's lazy-pages", 1),
    ):
        there = [mib for mib in results if _median(results, mib, way, "first answer")]
        large = max(there, default=max(results))
        ours = _median(results, large, "lazy", "first answer")
        theirs = _median(results, large, way, "first answer")
        if ours and theirs and (sooner == 1 or large >= LARGE):
            yield Demand(
                f"first answer at {large} MiB {than}",
                f"{theirs / ours:.1f} times ({ours:.0f} ms to {theirs:.0f} ms)",
                theirs >= sooner * ours,
            )


def _pages(results: Results) -> Iterator[Demand]:
    large = max(results)
    theirs = _median(results, large, "CRIU", "all in")
    for way, name in (("lazy", "all pages in, lazily,"), ("eager", "an eager restore")):
        ours = _median(results, large, way, "all in")
        if ours and theirs:
            yield Demand(
                f"{name} at {large} MiB at least as fast as CRIU's eager restore",
                f"{ours / theirs:.2f} of its time ({ours:.0f} ms to {theirs:.0f} ms)",
                ours <= theirs,
            )


# --- the report


def write(directory: Path, results: Results, found: list[Demand]) -> None:
    """Write the report and its plot."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "bench-lazy.md").write_text(markdown(results, found))
    plot(directory / "bench-lazy.svg", results)


def markdown(results: Results, found: list[Demand]) -> str:
    """Put the report together."""
    rounds = min(len(ways["lazy"]["first answer"]) for ways in results.values())
    return _REPORT.format(
        rounds=f"{rounds} rounds" if rounds > 1 else "one round",
        machine=machine(),
        demands="\n".join(f"| {d.what} | {d.figure} | {'yes' if d.met else 'no'} |" for d in found),
        heads=" | ".join(WAYS),
        rules=" --- |" * len(WAYS),
        rows="\n".join(_rows(results)),
        faults="\n".join(_waits(results)),
        paces="\n".join(_paces(results)),
    )


def _rows(results: Results) -> Iterator[str]:
    for mib in sorted(results):
        for figure in (*FIGURES, *(f"{figure}, cold" for figure in FIGURES)):
            cells = (_median(results, mib, way, figure) for way in WAYS)
            yield f"| {mib} | {figure} | {' | '.join(map(_number, cells))} |"


def _paces(results: Results) -> Iterator[str]:
    for mib in sorted(results):
        found = [_median(results, mib, w, pace) for w in ("lazy", "CRIU lazy") for pace in PACES]
        cells = (_number(value and value / 1000) for value in found)
        yield f"| {mib} | {' | '.join(cells)} |"


def _waits(results: Results) -> Iterator[str]:
    for mib in sorted(results):
        cells = (_median(results, mib, "lazy", figure) for figure in _FAULTS)
        yield f"| {mib} | {' | '.join(map(_number, cells))} |"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def plot(file: Path, results: Results) -> None:
    """Draw both figures by size."""
    import matplotlib
    from matplotlib import pyplot

    # Text stays text, and the same figures give the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench-lazy"})
    sizes = sorted(results)
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for one, name in zip(axes, ("first answer", "all in"), strict=True):
        for way, colour in zip(WAYS, _COLOURS, strict=True):
            points = [(mib, _median(results, mib, way, name)) for mib in sizes]
            there = [(mib, value) for mib, value in points if value is not None]
            if there:
                one.plot(*zip(*there, strict=True), "o-", color=colour, label=way, markersize=4)
        one.set(title=name, xscale="log", yscale="log", xlabel="memory (MiB)")
        one.set_xticks(sizes, [str(mib) for mib in sizes])
        one.minorticks_off()
    axes[0].set_ylabel("from the command's start (ms)")
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
