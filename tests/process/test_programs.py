# SPDX-License-Identifier: Apache-2.0
"""Every program through every way of being dumped and restored; each program judges itself."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from programs import PROGRAMS, Program
from target import Ckpt, Criu, Target, Tool, pagers, wait_until

pytestmark = pytest.mark.process


@dataclass(frozen=True, slots=True)
class Way:
    """Who dumps and who restores, and whether the target runs on after the dump.

    twice: what was restored is dumped and restored once more.
    """

    dumper: Callable[[], Tool]
    restorer: Callable[[], Tool]
    running: bool = False
    lazy: bool = False
    twice: bool = False

    def __str__(self) -> str:
        names = f"{self.dumper.name}-{self.restorer.name}"
        names += "-lazy" * self.lazy + "-twice" * self.twice
        return f"{names}-running" if self.running else names

    def why_not(self, program: Program) -> str:
        """Why this program cannot go this way; empty if it can."""
        reasons = []
        if self.dumper is Criu:
            reasons += [program.criu, program.criu_dump]
        if self.restorer is Criu:
            reasons += [program.criu, program.criu_restore]
            reasons += [program.criu_running] if self.running else []
        if program.refused and self.dumper is not self.restorer and not program.restored:
            return "our dump refuses it, and our restore knows no such thing"
        if program.refused and self.dumper is Ckpt:
            return "test_refused shows it"
        if program.peers_only and Criu not in (self.dumper, self.restorer):
            return "another program covers it"
        return next(filter(None, reasons), "")


# Real CRIU both ways says nothing of us, but that the programs are right.
PROVING = (Way(Criu, Criu), Way(Criu, Criu, running=True))
WAYS = (
    Way(Ckpt, Ckpt),
    Way(Ckpt, Criu),
    Way(Criu, Ckpt),
    Way(Ckpt, Ckpt, running=True),
    Way(Ckpt, Ckpt, lazy=True),
    Way(Criu, Ckpt, lazy=True),
)
CASES = [
    pytest.param(program, way, id=f"{program.name}-{way}")
    for program in PROGRAMS
    for way in (PROVING if os.environ.get("CKPT_PROVE_PROGRAMS") else WAYS)
    if not way.why_not(program)
]


@pytest.mark.parametrize(("program", "way"), CASES)
def test_program(program: Program, way: Way, place: Path) -> None:
    images = place / "images"
    dumper, restorer = way.dumper(), way.restorer()
    with Target(program, place / "target") as target:
        dumper.dump(target, images, *(["-R"] if way.running else []))
        if way.running:
            target.judge("the target itself, running on", images)
        restorer.restore(target, images, *(["--lazy-pages"] if way.lazy else []))
        target.judge("the restored copy", images)
    wait_until(lambda: not pagers(), "end of the pager, which keeps something in the image")


@pytest.mark.parametrize("program", [p for p in PROGRAMS if p.refused], ids=lambda p: p.name)
def test_refused(program: Program, place: Path) -> None:
    """What cannot be dumped is named, and the target does not notice that it was asked for."""
    images = place / "images"
    with Target(program, place / "target") as target:
        with pytest.raises(pytest.fail.Exception) as failure:
            Ckpt().dump(target, images, "-R")
        assert "exit code 3" in str(failure.value)
        assert program.refused in str(failure.value)
        assert not list(images.glob("*.img"))
        target.judge("the target itself, running on", images)
