# SPDX-License-Identifier: Apache-2.0
"""Errands side by side: the order in which they are set off, and who hears of a failure.

None here has anything to wait for: real threads are in tests/process.
"""

import pytest

from ckpt.errors import KernelError, PidTaken
from ckpt.kernel.arch import Regs
from ckpt.kernel.errands import Errands, side_by_side

REGS = Regs(*[0] * len(Regs._fields))


class Fake:
    """An errand that is done at once."""

    def __init__(self, said: list[str], name: str, error: Exception | None = None) -> None:
        self.said, self.name, self.error = said, name, error

    def set_off(self, _: Regs) -> bool:
        self.said.append(self.name)
        return False

    def check(self) -> None:
        if self.error:
            raise self.error


def steps(said: list[str], name: str, count: int) -> Errands:
    for number in range(count):
        yield Fake(said, f"{name}{number}")
    said.append(f"{name} ends")


def test_one_of_each_at_a_time():
    said: list[str] = []
    side_by_side([steps(said, "a", 2), steps(said, "b", 1), steps(said, "c", 0)], REGS)
    assert said == ["a0", "b0", "c ends", "a1", "b ends", "a ends"]


def test_nothing_to_do():
    side_by_side([], REGS)


def failing(said: list[str]) -> Errands:
    try:
        yield Fake(said, "x", KernelError(17, "clone3"))
    except KernelError as error:
        raise PidTaken("taken") from error


def test_who_yields_hears_of_a_failure():
    said: list[str] = []
    with pytest.raises(PidTaken):
        side_by_side([steps(said, "a", 3), failing(said), steps(said, "b", 3)], REGS)
    assert said == ["a0", "x", "b0", "a1"]


def test_a_failure_that_nobody_explains():
    def careless() -> Errands:
        yield Fake([], "x", KernelError(1, "dup3"))

    with pytest.raises(KernelError, match="dup3"):
        side_by_side([careless()], REGS)
