# SPDX-License-Identifier: Apache-2.0
"""One round of questions: all threads of all processes answer at the same time, and we go on."""

from itertools import cycle
from types import TracebackType
from typing import Self

from ckpt.errors import CkptError
from ckpt.infect import Asked, Visit
from ckpt.kernel.ptrace import hear
from ckpt.kernel.threads import Away, send


class Round:
    """The round; a context manager: all processes are as they were when it is left.

    Each step is begun for all of them, and waited for when the next one is: in between there is
    time for something else.
    """

    def __init__(self, visits: list[Visit]) -> None:
        self._visits, self._in_turn = visits, cycle(visits)
        self._asked: list[Asked] = []
        self._away: Away | None = None

    def __enter__(self) -> Self:
        try:
            for number, visit in enumerate(self._visits):
                visit.come()
                if number:
                    self._visits[number - 1].poke()
        except BaseException:
            self._end()
            raise
        return self

    def poke(self) -> None:
        """Have go on what needs us for it, in one process after the other."""
        next(self._in_turn).poke()

    def ask(self) -> None:
        """Set all threads off to answer."""
        self._asked = [one for visit in self._visits for one in visit.here()]
        self._away = Away(
            [
                remote.lent(one.raw_regs, one.sigmask, batch, homeward=homeward)
                for remote, one, batch, homeward in self._asked
            ]
        )
        self._away.set_out()

    def part(self) -> None:
        """Have them all at home, but for the first of each process, which takes leave of us."""
        self._bring_home()
        for visit in self._visits:
            visit.go()

    def _bring_home(self) -> None:
        """Wait for all threads: they have to be out of the stub, whatever they have done."""
        away, self._away = self._away, None
        if not away:
            return
        missing = away.come_back()
        for number, asked in enumerate(self._asked):
            if number not in missing and asked.homeward:
                asked.remote.is_home()
        if missing:
            _fetch([self._asked[number] for number in missing])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        failed = self._end()
        if failed and not error:
            raise failed[0]

    def _end(self) -> list[CkptError]:
        """Put all right, whatever fails on the way; returns that."""
        failed: list[CkptError] = []
        for step in (self._bring_home, *(visit.end for visit in self._visits)):
            try:
                step()
            except CkptError as error:
                failed.append(error)
        return failed


def _fetch(missing: list[Asked]) -> None:
    """Bring those home who have stopped otherwise than at the end of their batch."""
    hear(asked.one.tracee for asked in missing)
    failed: list[CkptError] = []
    orders = []
    for remote, one, batch, homeward in missing:
        try:
            remote.finish(batch)
        except CkptError as error:
            failed.append(error)
        if homeward:
            orders += remote.going_home(one.regs, one.sigmask)
    try:
        send(orders)
    except CkptError as error:
        failed.append(error)
    if failed:
        raise failed[0]
