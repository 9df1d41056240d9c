# SPDX-License-Identifier: Apache-2.0
"""`make soak`: processes that check every byte of themselves, dumped and restored for an hour.

Each round takes one of the programs of tests/process/test_live.py, dumps it some times as it runs,
restores every image, and now and then dumps the copy and restores that. Which program, how and
when follows from the seed and the number of the round. It ends at the first wrong byte, keeps all
files of that round, and says how to repeat it.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from programs import Program
from target import Ckpt, Target, become_subreaper, wait_until
from test_lazy import pagers
from test_live import MUTATING

ENGINES = ("live", "live", "fork", "stop")
MOST_DUMPS = 3
LONGEST_PAUSE = 0.3
REPORT_EVERY = 60.0
ALL_IN = 120.0
FAILED = (pytest.fail.Exception, AssertionError, OSError, subprocess.SubprocessError)
SKIPPED = pytest.skip.Exception


@dataclass
class Soak:
    """One seed, and what was done with it so far."""

    seed: int
    counts: Counter[str] = field(default_factory=Counter)

    def round(self, number: int) -> None:
        """Do all of one round; what is left of it is kept only if it fails."""
        dice = random.Random(f"{self.seed} {number}")
        place = Path(tempfile.mkdtemp(prefix="ckpt-soak-", dir=dice.choice((None, "/dev/shm"))))
        place.chmod(0o755)  # as tests/process/conftest.py: programs may give up their rights
        try:
            with Target(mutating(dice), place / "target") as target:
                Round(target, dice, self.counts).play(place)
        except SKIPPED:
            self.counts["skipped"] += 1
        except FAILED:
            print(f"\nround {number} failed; its files are in {place}, and to repeat it:")
            print(f'    make soak ARGS="--seed {self.seed} --first {number} --rounds 1"\n')
            raise
        shutil.rmtree(place)
        self.counts["rounds"] += 1


def mutating(dice: random.Random) -> Program:
    return dice.choice(MUTATING)


@dataclass
class Round:
    """A target, and the dice that say what happens to it."""

    target: Target
    dice: random.Random
    counts: Counter[str]

    def play(self, place: Path) -> None:
        images = [place / f"images-{number}" for number in range(self.dice.randint(1, MOST_DUMPS))]
        for where in images:
            self.dump(where)
        self.judge("the target itself, dumped", images[-1])
        for where in images:
            self.restore(where)
            if self.dice.random() < 0.3:
                again = where.with_name(f"{where.name}-again")
                self.dump(again)
                self.judge("the copy, dumped", again)
                self.restore(again)
            self.judge("the copy", where)

    def dump(self, images: Path) -> None:
        """Dump it at some moment; what a dump has done to it is told before what it says itself."""
        self.pause()
        engine = self.dice.choice(ENGINES)
        try:
            Ckpt().dump(self.target, images, "-R", "--engine", engine)
        finally:
            if (self.target.directory / "verdict").exists() or self.target.task.ended():
                self.judge(f"the target, dumped by {engine}", images)
        self.counts[f"{engine} dumps"] += 1

    def restore(self, images: Path) -> None:
        lazy = self.dice.random() < 0.5
        Ckpt().restore(self.target, images, *(["--lazy-pages"] if lazy else []))
        self.counts["lazy restores" if lazy else "eager restores"] += 1
        self.pause()
        wait_until(lambda: not pagers(), "end of the pager", ALL_IN)

    def judge(self, whom: str, images: Path) -> None:
        self.target.judge(f"{whom}, of {images}", images)
        self.counts["verdicts"] += 1

    def pause(self) -> None:
        """Let it get anywhere: here the moment is meant to be any, so nothing is waited for."""
        time.sleep(self.dice.random() * LONGEST_PAUSE)


def report(counts: Counter[str], since: float) -> None:
    told = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    print(f"{(time.monotonic() - since) / 60:6.1f} min: {told}", flush=True)


def soak(seed: int, first: int, rounds: float, seconds: float) -> None:
    """Play rounds until either is used up."""
    soak, since = Soak(seed), time.monotonic()
    told, number = since, first
    while number < first + rounds and time.monotonic() < since + seconds:
        soak.round(number)
        number += 1
        if time.monotonic() > told + REPORT_EVERY:
            told = time.monotonic()
            report(soak.counts, since)
    report(soak.counts, since)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak ARGS=...", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="how long [60]")
    parser.add_argument("--seed", type=int, help="what is chosen [any]")
    parser.add_argument("--first", type=int, default=0, help="the round to begin with [0]")
    parser.add_argument("--rounds", type=float, default=float("inf"), help="how many [no limit]")
    arguments = parser.parse_args()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"seed {seed}, {arguments.minutes:g} minutes", flush=True)
    become_subreaper()
    try:
        soak(seed, arguments.first, arguments.rounds, arguments.minutes * 60)
    except FAILED as failed:
        print(failed, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
