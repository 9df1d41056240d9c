# SPDX-License-Identifier: Apache-2.0
"""Whatever kills a restore of a tree, and whenever: there is no process, or all, which run."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from attempts import (
    as_long_as_it_takes,
    check_restored,
    check_verdict,
    chosen,
    in_memory,
    others_gone,
    tried,
)
from harm import Harm
from programs import Program
from stepping import Command, boundaries, run
from target import Criu, Target
from test_tree import gone, rewrite

from ckpt.errors import ImageError, PidTaken
from ckpt.image.directory import ImageDir
from ckpt.kernel.ffi import ffi, lib

pytestmark = pytest.mark.process
_PATIENCE = 0.5


@pytest.fixture
def place() -> Iterator[Path]:
    yield from in_memory()


@pytest.fixture(params=["tree_sessions", "tree_zombie", "tree_stopped"])
def image(place, request) -> Iterator[Target]:
    """A tree that was dumped and killed; its image is beside its directory."""
    with Target(Program(request.param, request.param), place / "target") as target:
        target.below = [one.pid for one in psutil.Process(target.pid).children(recursive=True)]
        Criu().dump(target, place / "images")
        gone(target.below)
        yield target


def what_is_left(target: Target) -> str:
    """Hold a restore that was stopped to this: nothing is left, or all of it, which runs."""
    pids = [target.pid, *target.below]
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if not [pid for pid in pids if exists(pid)]:
            return "nothing left"
        time.sleep(0.002)
    left = [pid for pid in pids if exists(pid)]
    if left != pids:
        raise Harm(f"of {pids} there are {left}")
    target.restored(target.pid)
    check_verdict(target)
    return "all of it"


def exists(pid: int) -> bool:
    """Whether there is such a process; orphans that have ended are waited for."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return psutil.pid_exists(pid)


def restored_but(
    image: Target, place: Path, there: Path, visit: Callable[[Command, int], bool], code: int
) -> Counter[str]:
    """Restore it, with a visit at each boundary; then once more, undisturbed."""
    command = Command(there, "restore", "-d", "-D", place / "images")
    command.step(lambda at, _: visit(command, at))
    if command.code not in (0, code):
        raise Harm(f"exit code {command.code}: {command.said}")
    left = what_is_left(image)
    if command.code > 0 and left != "nothing left":
        raise Harm(f"exit code {command.code}, and {left}")
    others_gone()
    check_restored(image, place / "images")
    return Counter([left])


def calls_of_a_restore(image: Target, place: Path) -> tuple[range, range]:
    """The numbers of all its calls but the first, and of those until it has let go."""
    survey = Command(place, "restore", "-d", "-D", place / "images")
    calls, tracing = boundaries(survey)
    assert survey.code == 0, survey.said
    image.restored(image.pid)
    check_verdict(image)
    return range(tracing.start // 2, len(calls)), range(tracing.start // 2, tracing.stop - 1)


@as_long_as_it_takes
def test_a_restore_killed_at_a_system_call(image, place):
    def attempt(there: Path, number: int) -> Counter[str]:
        return restored_but(image, place, there, lambda _, at: at == number, -signal.SIGKILL)

    tried(chosen(calls_of_a_restore(image, place)[0]), place, attempt)


@as_long_as_it_takes
def test_a_restore_killed_as_it_lets_go(image, place):
    """The last calls, where all are to become free at one moment."""

    def attempt(there: Path, number: int) -> Counter[str]:
        return restored_but(image, place, there, lambda _, at: at == number, -signal.SIGKILL)

    last = calls_of_a_restore(image, place)[0][-8 * (len(image.below) + 1) :]
    tried(chosen(last), place, attempt)


@as_long_as_it_takes
def test_a_restore_that_is_interrupted(image, place):
    def attempt(there: Path, number: int) -> Counter[str]:
        def visit(command: Command, at: int) -> bool:
            return at == number and bool(os.kill(command.pid, signal.SIGINT))

        return restored_but(image, place, there, visit, 128 + signal.SIGINT)

    tried(chosen(calls_of_a_restore(image, place)[1]), place, attempt)


def test_a_pid_that_is_taken(image, place):
    lifeline = os.pipe()
    for pid in (image.pid, *image.below):
        taken = lib.core_clone_paused(0, ffi.new("int32_t[]", [pid]), 1, lifeline)
        assert taken == pid
        try:
            code, said = run(place, "restore", "-d", "-D", place / "images")
            assert code == PidTaken.exit_code, said
            assert f"pid {pid} is taken" in said
            assert [one for one in (image.pid, *image.below) if exists(one)] == [pid]
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    os.close(lifeline[0])
    os.close(lifeline[1])
    check_restored(image, place / "images")


def test_what_fails_late(image, place):
    """All are there by then, with threads and descriptors."""
    file = place / "images" / f"core-{image.pid}.img"
    whole = file.read_bytes()
    with ImageDir.open(str(file.parent)) as opened:
        core = opened.read("core", image.pid)
    core.tc.signals_s.signals.add(siginfo=b"short")
    rewrite(file, core)
    code, said = run(place, "restore", "-d", "-D", place / "images")
    assert code == ImageError.exit_code, said
    assert "siginfo" in said
    assert not [one for one in (image.pid, *image.below) if exists(one)]
    file.write_bytes(whole)
    check_restored(image, place / "images")
