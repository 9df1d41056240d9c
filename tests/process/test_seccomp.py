# SPDX-License-Identifier: Apache-2.0
"""Programs with seccomp filters run on untouched, whatever becomes of their dump.

One is killed for any call not on its list; another is only refused what a dump calls.
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from attempts import aftermath, as_long_as_it_takes, chosen, in_memory, killing, tried
from harm import Harm, look
from programs import Program
from stepping import Command, boundaries
from target import Target

pytestmark = pytest.mark.process

LIST, CHAIN = Program("list", "seccomp", ("list",)), Program("chain", "seccomp")
CASES = [(LIST, "stop"), (CHAIN, "live"), (CHAIN, "fork")]


@pytest.fixture
def place() -> Iterator[Path]:
    yield from in_memory()


def dump_of(target: Target, place: Path, engine: str) -> Command:
    words = ("-t", target.pid, "-D", place / "images", "--engine", engine)
    return Command(place, "dump", "-R", *words)


@as_long_as_it_takes
@pytest.mark.parametrize(("program", "engine"), CASES, ids=lambda case: getattr(case, "name", case))
def test_a_dump_killed_while_filters_are_suspended(program, engine, place):
    with Target(program, place / "target") as target:
        survey = dump_of(target, place, engine)
        _, tracing = boundaries(survey)
        assert survey.code == 0, survey.said
    shutil.rmtree(place / "images")

    def attempt(place: Path, number: int) -> Counter[str]:
        with Target(program, place / "target") as target:
            before, seen = look(target.pid), Counter()
            visit, calls = killing(number)
            command = dump_of(target, place, engine)
            command.step(visit)
            try:
                aftermath(target, before, place / "images", seen, twice=False)
            except Harm as harm:
                raise Harm(f"{calls[-1]}: {harm}") from None
        return seen

    tried(chosen(tracing), place, attempt)
