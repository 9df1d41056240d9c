# SPDX-License-Identifier: Apache-2.0
"""Whatever kills a restore, and whenever: there is no process, or all of it, which runs."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attempts import (
    PROGRAM,
    as_long_as_it_takes,
    check_restored,
    check_verdict,
    chosen,
    in_memory,
    others_gone,
    tried,
)
from bystander import children
from harm import Harm
from stepping import Command, boundaries, run
from target import Target

pytestmark = pytest.mark.process


@pytest.fixture
def place() -> Iterator[Path]:
    yield from in_memory()


@pytest.fixture
def image(place) -> Iterator[Target]:
    """A target that was dumped and killed; its image is beside its directory."""
    with Target(PROGRAM, place / "target") as target:
        assert run(place, "dump", "-t", target.pid, "-D", place / "images")[0] == 0
        target.ended()
        yield target


def what_is_left(target: Target, images: Path) -> str:
    """Hold a restore that was stopped to this: nothing is left, or all of it, which runs."""

    def settled() -> bool:
        return target.pid not in children() or os.waitpid(target.pid, os.WNOHANG)[0] > 0

    deadline = time.monotonic() + 0.5
    while not settled():
        status = Path(f"/proc/{target.pid}/status").read_text()
        if "TracerPid:\t0\n" in status and time.monotonic() > deadline:
            target.restored(target.pid)
            check_verdict(target)
            return "all of it"
    return "nothing left"


def restored_but(
    image: Target, images: Path, place: Path, visit: Callable[[Command, int], bool], code: int
) -> Counter[str]:
    """Restore it, with a visit at each boundary; then once more, undisturbed."""
    command = Command(place, "restore", "-d", "-D", images)
    command.step(lambda at, _: visit(command, at))
    if command.code not in (0, code):
        raise Harm(f"exit code {command.code}: {command.said}")
    left = what_is_left(image, images)
    if command.code > 0 and left != "nothing left":
        raise Harm(f"exit code {command.code}, and {left}")
    others_gone()
    check_restored(image, images)
    return Counter([left])


def calls_of_a_restore(image: Target, place: Path) -> range:
    survey = Command(place, "restore", "-d", "-D", place / "images")
    calls, tracing = boundaries(survey)
    assert survey.code == 0, survey.said
    image.restored(image.pid)
    check_verdict(image)
    return range(tracing.start // 2, len(calls))


@as_long_as_it_takes
def test_a_restore_killed_at_a_system_call(image, place):
    def attempt(there: Path, number: int) -> Counter[str]:
        return restored_but(
            image, place / "images", there, lambda _, at: at == number, -signal.SIGKILL
        )

    tried(chosen(calls_of_a_restore(image, place)), place, attempt)


@as_long_as_it_takes
@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM], ids=lambda signo: signo.name)
def test_a_restore_that_is_interrupted(image, place, signo):
    def attempt(there: Path, number: int) -> Counter[str]:
        def visit(command: Command, at: int) -> bool:
            return at == number and bool(os.kill(command.pid, signo))

        return restored_but(image, place / "images", there, visit, 128 + signo)

    tried(chosen(calls_of_a_restore(image, place)), place, attempt)
