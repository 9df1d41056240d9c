# SPDX-License-Identifier: Apache-2.0
"""A program that is killed for any call not on its list survives whatever becomes of its dump."""

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

LIST = Program("seccomp_list", "seccomp", ("list",))
ENGINES = {"stop": ("--engine", "stop"), "auto": ()}


@pytest.fixture
def place() -> Iterator[Path]:
    yield from in_memory()


def dump_of(target: Target, place: Path, engine: str) -> Command:
    return Command(place, "dump", "-R", "-t", target.pid, "-D", place / "images", *ENGINES[engine])


@as_long_as_it_takes
@pytest.mark.parametrize("engine", ENGINES)
def test_a_dump_killed_while_filters_are_suspended(engine, place):
    with Target(LIST, place / "target") as target:
        survey = dump_of(target, place, engine)
        _, tracing = boundaries(survey)
        assert survey.code == 0, survey.said
    shutil.rmtree(place / "images")

    def attempt(place: Path, number: int) -> Counter[str]:
        with Target(LIST, place / "target") as target:
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
