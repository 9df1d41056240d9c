# SPDX-License-Identifier: Apache-2.0
"""What `make bench-live` found: the demands, a table, a plot. It knows nothing of measuring."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.bench.bench import Samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PHASES = ("before", "during", "after")
PERCENTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
STALLS = (*PERCENTILES, "max")
LARGEST_FREEZE, LARGEST_STALL, LARGEST_GROWTH = 1.0, 5.0, 1.2
COMPARED, LEAST_OF_FORK, LEAST_OF_CRIU, SLOWEST_COPY = 2048, 20, 1000, 1.2
NAMES = {"live": "live", "fork": "fork", "stop": "stop", "criu": "CRIU"}
STYLES = {"off": "o-", "on": "s--"}
COLOURS = {"live": "#1b7837", "fork": "#2166ac", "stop": "#b2762c", "criu": "#b2182b"}


class Cell(NamedTuple):
    """What is measured: one point of the matrix."""

    mib: int
    thp: str
    rate: str
    engine: str

    def __str__(self) -> str:
        return f"{self.engine}, {self.mib} MiB, THP {self.thp}, {self.rate}"


Results = dict[Cell, Samples]
"""Times in ms, stalls in us, memory in MiB, throughput in pages a second."""


class Demand(NamedTuple):
    """What is to be reached, what was, and whether that is enough."""

    what: str
    figure: str
    met: bool

    def __str__(self) -> str:
        return f"{'PASS' if self.met else 'FAIL'}  {self.what}: {self.figure}"


class Failure(NamedTuple):
    """A measurement that is missing, and why."""

    where: str
    why: str

    def __str__(self) -> str:
        return f"FAIL  {self.where}: {self.why}"


# --- the demands


def pooled(results: Results, figure: str, **wanted: object) -> list[float]:
    """All samples of a figure, of the cells that are as wanted."""
    return [
        sample
        for cell, samples in results.items()
        if all(getattr(cell, name) == value for name, value in wanted.items())
        for sample in samples.get(figure, ())
    ]


def demands(results: Results, failures: list[Failure]) -> list[Demand]:
    """Judge all that was measured; what was not to be measured is left out."""
    if not any(cell.engine == "live" for cell in results):
        return []
    missing = sum(failure.where.startswith("live") for failure in failures)
    return [
        _freeze(results, missing),
        *_growth(results),
        *_compared(results),
        _stall(results, missing),
        *_copying(results),
    ]


def _freeze(results: Results, missing: int) -> Demand:
    medians = {c: median(s["freeze"]) for c, s in results.items() if c.engine == "live"}
    worst = max(medians, key=lambda cell: medians[cell])
    within = sum(one <= LARGEST_FREEZE for one in medians.values())
    return Demand(
        f"freeze with live at most {LARGEST_FREEZE:g} ms at any write rate",
        f"{medians[worst]:.2f} ms ({worst}); {within} of {len(medians) + missing} cells are within",
        within == len(medians) + missing,
    )


Points = dict[tuple[str, str], list[float]]
"""Samples by what the target is: huge pages, and the rate of its writer."""


def _points(results: Results, figure: str, mib: int, *engines: str, thp: str = "") -> Points:
    found: Points = {}
    for cell, samples in results.items():
        if cell.mib == mib and cell.engine in engines and thp in ("", cell.thp):
            found.setdefault((cell.thp, cell.rate), []).extend(samples.get(figure, ()))
    return {point: samples for point, samples in found.items() if samples}


def _medians(one: Points, other: Points) -> tuple[float, float] | None:
    """Return the medians of both, of the points that both have: a missing one is no advantage."""
    both = one.keys() & other.keys()
    if not both:
        return None
    first, second = (median(s for point in both for s in points[point]) for points in (one, other))
    return first, second


def _growth(results: Results) -> Iterator[Demand]:
    sizes = sorted({cell.mib for cell in results if cell.engine == "live"})
    small, large = sizes[0], sizes[-1]
    points = (_points(results, "freeze", mib, "live") for mib in (small, large))
    found = _medians(*points)
    if found and small < large:
        least, most = found
        yield Demand(
            f"freeze with live at {large} MiB at most {LARGEST_GROWTH:g} times that at {small} MiB",
            f"{most / least:.2f} times ({most:.2f} ms to {least:.2f} ms)",
            most <= LARGEST_GROWTH * least,
        )


def _compared(results: Results) -> Iterator[Demand]:
    """Compare at one size, with and without huge pages: a fork() of huge pages is another thing."""
    mib = _compared_size(results)
    for thp in ("off", "on"):
        ours = _points(results, "freeze", mib, "live", thp=thp)
        forks = _points(results, "fork()", mib, *COLOURS, thp=thp)
        criu = _points(results, "freeze", mib, "criu", thp=thp)
        for name, theirs, least in (
            ("fork()'s own stop", forks, LEAST_OF_FORK),
            ("CRIU's frozen time", criu, LEAST_OF_CRIU),
        ):
            if found := _medians(ours, theirs):
                part = found[1] / found[0]
                yield Demand(
                    f"freeze with live at {mib} MiB, THP {thp}, at most 1/{least} of {name}",
                    f"1/{_number(part)} ({found[0]:.2f} ms to {found[1]:.2f} ms)",
                    part >= least,
                )


def _compared_size(results: Results) -> int:
    sizes = {cell.mib for cell in results}
    return COMPARED if COMPARED in sizes else max(sizes)


def _stall(results: Results, missing: int) -> Demand:
    """Judge what held the writer; who else ran meanwhile is told beside it."""
    live = {c: s for c, s in results.items() if c.engine == "live"}
    held = {cell: max(samples["held during"]) / 1e3 for cell, samples in live.items()}
    worst = max(held, key=lambda cell: held[cell])
    within = sum(one <= LARGEST_STALL for one in held.values())
    any_cause = max(pooled(results, "max during", engine="live")) / 1e3
    quiet = max(max(pooled(results, f"max {phase}")) for phase in ("before", "after")) / 1e3
    return Demand(
        f"no single stall above {LARGEST_STALL:g} ms by a live dump",
        f"{held[worst]:.2f} ms ({worst}); {within} of {len(live) + missing} cells are within; "
        f"by anything {any_cause:.2f} ms, without a dump {quiet:.2f} ms",
        within == len(live) + missing,
    )


def _copying(results: Results) -> Iterator[Demand]:
    """Of targets that are idle: what is written again meanwhile is no copying of the same bytes."""
    for what, ours, theirs in (
        ("copying", "copying", "cp"),
        ("whole dump, synced,", "total", "cp, synced"),
    ):
        ratios = [
            own / cp
            for samples in results.values()
            for own, cp in zip(samples[ours], samples.get(theirs, ()), strict=False)
        ]
        if ratios:
            yield Demand(
                f"{what} with live at most {SLOWEST_COPY:g} times as long as `cp`",
                f"{median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})",
                median(ratios) <= SLOWEST_COPY,
            )


# --- the report

_INTRODUCTION = """\
<!-- SPDX-License-Identifier: Apache-2.0 -->
# What a dump costs a process that writes

Made by `make bench-live`, not by hand: {cells} points of the matrix, {rounds} each.
{machine}

The target (`tests/bench/live.c`) has four threads, 20 descriptors and as much private memory as the
title says, all of it written. A writer writes pages at random; a dump leaves the target running.
Each figure is the median of all rounds, which have a target of their own; the engines take turns.

![Freezes and stalls](bench-live.svg)

## Demands

Freezes are compared over the points that were measured of both.

| demand | measured | met |
| --- | --- | --- |
{demands}
{failures}
## Beside fork() and cp

What a plain fork() keeps the target, and what `cp` takes for the same bytes on the same disk,
beside a dump with live of an idle target; in ms.

| MiB | THP | fork() | cp | live copies | cp and sync | live in all |
| --- | --- | --- | --- | --- | --- | --- |
{references}

## Figures

- **freeze**: the longest time between two looks at the clock of a thread that sleeps 50 us, over
  and over, with real-time priority, and was stopped meanwhile: up to 0.1 ms of it is that sleep.
  **told**: what the dumper says of it.
- **total**: from the command's start to its end. ckpt's includes the sync to the disk, CRIU's not.
- **written**: the size of the image.
- **extra**: the peak of anonymous and shared memory and page tables in use system-wide, above that
  before the dump: the dumper's own, copies of pages, a child's tables. Others' is in it too.
- **writes**: thousand pages a second: before, during and after the dump.
- **no CPU**: the part of the time, in percent, that the writer waited for a CPU.
- **held**: the longest time between two looks at the clock of the writer in which it had to wait
  for something other than a CPU: that it may go on, or may write a page. What only the scheduler
  did, or the host, is not in it.
- **stalls**: the time between two looks of the writer with one write in between, whatever took it:
  p50 / p99 / p99.9 / max; max is also that between writes. Of an idle target, the looks of the
  sleeping thread.
"""


def write(directory: Path, results: Results, found: list[Demand], failures: list[Failure]) -> None:
    """Write the report and its plot."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "bench-live.md").write_text(markdown(results, found, failures))
    plot(directory / "bench-live.svg", results)


def markdown(results: Results, found: list[Demand], failures: list[Failure]) -> str:
    """Put the report together."""
    rounds = max(len(samples["freeze"]) for samples in results.values())
    introduction = _INTRODUCTION.format(
        cells=len(results),
        machine=machine(),
        rounds=f"{rounds} rounds" if rounds > 1 else "one round",
        demands="\n".join(f"| {d.what} | {d.figure} | {'yes' if d.met else 'no'} |" for d in found),
        failures="".join(f"\nNot measured: {failure.where}.\n" for failure in failures),
        references="\n".join(_references(results)),
    )
    sizes = sorted({cell.mib for cell in results})
    return "\n".join([introduction, *(_table(mib, results) for mib in sizes)])


def _references(results: Results) -> Iterator[str]:
    """What a plain fork() and `cp` take, and live beside them where it was measured idle."""
    for mib, thp in sorted({(cell.mib, cell.thp) for cell in results}):
        forks = pooled(results, "fork()", mib=mib, thp=thp)
        live = results.get(Cell(mib, thp, "idle", "live"), {})
        figures = [live.get(name, []) for name in ("cp", "copying", "cp, synced", "total")]
        cells = (_number(median(values)) if values else "" for values in (forks, *figures))
        yield f"| {mib} | {thp} | {' | '.join(cells)} |"


def machine() -> str:
    """Describe what this ran on."""
    with open("/proc/cpuinfo") as file:
        models = {line.split(": ")[1].strip() for line in file if line.startswith("model name")}
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"Machine: Linux {platform.release()}, {os.cpu_count()} x {', '.join(models)}, "
        f"{memory:.0f} GiB of memory."
    )


_COLUMNS = (
    *(
        "writer",
        "THP",
        "engine",
        "freeze ms",
        "told ms",
        "held ms",
        "total ms",
        "written MiB",
        "extra MiB",
    ),
    *("writes k/s", "no CPU %", *(f"stalls {phase} us" for phase in PHASES)),
)


def _table(mib: int, results: Results) -> str:
    head = f"### {mib} MiB\n\n| {' | '.join(_COLUMNS)} |\n|{' --- |' * len(_COLUMNS)}"
    rows = [
        f"| {' | '.join(_cells(cell, samples))} |"
        for cell, samples in sorted(results.items(), key=lambda item: _order(item[0]))
        if cell.mib == mib
    ]
    return "\n".join([head, *rows, ""])


def _order(cell: Cell) -> tuple[int, str, int]:
    return ("idle 10k 100k full".index(cell.rate), cell.thp, [*COLOURS].index(cell.engine))


def _cells(cell: Cell, samples: Samples) -> Iterator[str]:
    yield from (cell.rate, cell.thp, NAMES[cell.engine])
    yield from (_number(median(samples[figure])) for figure in ("freeze", "freeze, told"))
    yield _number(median(samples["held during"]) / 1e3)
    yield from (_number(median(samples[figure])) for figure in ("total", "written", "extra"))
    for figure, unit in (("writes/s", 1e3), ("queued", 1)):
        values = (median(samples[f"{figure} {phase}"]) / unit for phase in PHASES)
        yield "" if cell.rate == "idle" else " / ".join(map(_number, values))
    for phase in PHASES:
        yield " / ".join(_number(median(samples[f"{stall} {phase}"])) for stall in STALLS)


def _number(value: float) -> str:
    """Three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


# --- the plot


def plot(file: Path, results: Results) -> None:
    """Draw freezes by size above, stalls below, a column for each rate of the writer."""
    import matplotlib
    from matplotlib import pyplot

    # Text stays text, and the same figures give the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench-live"})
    rates = sorted({cell.rate for cell in results}, key="idle 10k 100k full".index)
    mib = _compared_size(results)
    figure, axes = pyplot.subplots(
        2, len(rates), figsize=(3 + 3.6 * len(rates), 8), sharey="row", squeeze=False
    )
    for rate, freezes, stalls in zip(rates, *axes, strict=True):
        title = rate if rate in ("idle", "full") else f"{rate} pages/s"
        freezes.set_title(f"{title}: freeze")
        _draw_freezes(freezes, {c: s for c, s in results.items() if c.rate == rate})
        stalls.set_title(f"{title}: stalls at {mib} MiB")
        _draw_stalls(stalls, {c: s for c, s in results.items() if (c.rate, c.mib) == (rate, mib)})
    axes[0][0].set_ylabel("freeze as the target sees it (ms)")
    axes[1][0].set_ylabel("between two looks at the clock (us)")
    for row in axes:
        row[-1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def _draw_freezes(axes: "Axes", results: Results) -> None:
    sizes = sorted({cell.mib for cell in results})
    for thp, style in STYLES.items():
        for engine, colour in COLOURS.items():
            label = f"{NAMES[engine]}, THP {thp}"
            by_size = [(m, pooled(results, "freeze", engine=engine, thp=thp, mib=m)) for m in sizes]
            _draw(axes, by_size, style, colour, label)
        forks = [(m, pooled(results, "fork()", thp=thp, mib=m)) for m in sizes]
        _draw(axes, forks, style, "#999999", f"plain fork(), THP {thp}")
    axes.axhline(LARGEST_FREEZE, color="#000000", linewidth=0.5, linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="memory (MiB)")
    axes.set_xticks(sizes, [str(mib) for mib in sizes])
    axes.minorticks_off()


def _draw_stalls(axes: "Axes", results: Results) -> None:
    for thp, style in STYLES.items():
        for engine, colour in COLOURS.items():
            during = [
                (one, pooled(results, f"{one} during", engine=engine, thp=thp)) for one in STALLS
            ]
            _draw(axes, during, style, colour, f"{NAMES[engine]}, THP {thp}")
        quiet = [(one, pooled(results, f"{one} before", thp=thp)) for one in STALLS]
        _draw(axes, quiet, style, "#999999", f"no dump, THP {thp}")
    axes.set(yscale="log")


def _draw(
    axes: "Axes", points: list[tuple[Any, list[float]]], style: str, colour: str, label: str
) -> None:
    """Draw the medians of what was measured."""
    there = [(x, median(samples)) for x, samples in points if samples]
    if there:
        axes.plot(*zip(*there, strict=True), style, color=colour, label=label, markersize=4)
