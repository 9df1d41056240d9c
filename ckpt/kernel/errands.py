# SPDX-License-Identifier: Apache-2.0
"""Batches of many stopped threads, side by side: while one makes its calls, so do others, and we.

What a thread has to do is a generator. It yields an errand, and goes on when that is done; if it
has failed, by the error that is raised where it was yielded.
"""

from collections.abc import Generator, Iterable
from typing import Protocol

from ckpt.errors import CkptError
from ckpt.kernel.arch import Regs, home
from ckpt.kernel.gadget import Gadget
from ckpt.kernel.ptrace import SYSCALL_STOP, Tracee, hear
from ckpt.kernel.remote import Batch, Remote
from ckpt.kernel.threads import Order, Then, send


class Errand(Protocol):
    """What a stopped thread is to do until it stops again."""

    tracee: Tracee

    def set_off(self, regs: Regs) -> bool:
        """Have it begin; regs are any of its own. Say whether there is anything to wait for."""

    def is_back(self) -> bool:
        """Say whether it is done, now that the thread has stopped; if not, have it go on."""

    def check(self) -> None:
        """Raise if it has failed."""


class Calls:
    """A batch of system calls, perhaps none."""

    def __init__(self, remote: Remote, batch: Batch) -> None:
        self.tracee = remote.tracee
        self._remote, self._batch = remote, batch

    def set_off(self, regs: Regs) -> bool:
        """Have it make the calls."""
        if self._batch.calls:
            self._remote.start(regs, 0, self._batch)
        return bool(self._batch.calls)

    def is_back(self) -> bool:
        """Say whether it has."""
        return self._remote.is_back()

    def check(self) -> None:
        """Raise for a call that had to succeed."""
        if self._batch.calls:
            self._remote.check(self._batch)


class Leave:
    """Going home, with these registers and signals blocked, from a segment that is to be gone."""

    def __init__(self, remote: Remote, regs: Regs, sigmask: int, gadget: Gadget) -> None:
        self.tracee = remote.tracee
        self._remote, self._gadget = remote, gadget
        self._order = Order(self.tracee, Then.STAY, home(regs).pack(), sigmask)
        self._regs, self._stops = regs, 0

    def set_off(self, _: Regs) -> bool:
        """Have it detach the segment."""
        send([self._remote.leaving(self._regs, self._gadget)])
        return True

    def is_back(self) -> bool:
        """Say whether it has: the call begins with a stop, and ends with one."""
        stop = self.tracee.poll()
        if stop and stop.signo == SYSCALL_STOP:
            self._stops += 1
        if stop and self._stops < 2:
            self.tracee.syscall()
        return bool(stop) and self._stops == 2

    def check(self) -> None:
        """Have it at home."""
        ret = self.tracee.regs().result
        send([self._order])
        self._remote.left(ret)


Errands = Generator[Errand, None, None]


def side_by_side(steps: Iterable[Errands], regs: Regs) -> None:
    """Have all of it done, one errand of each at a time; regs are any of the threads' own.

    After an error others may be anywhere in their errands.
    """
    away: list[Errand] = []
    given = [(step, done) for step in steps if (done := _set_off(next(step, None), regs, away))]
    while given:
        while away:
            hear(errand.tracee for errand in away)
            away = [errand for errand in away if not errand.is_back()]
        given = [
            (step, errand)
            for step, done in given
            if (errand := _set_off(_next(step, done), regs, away))
        ]


def _set_off(errand: Errand | None, regs: Regs, away: list[Errand]) -> Errand | None:
    """Have a thread begin at once: while it is at it we look for something to do for others."""
    if errand and errand.set_off(regs):
        away.append(errand)
    return errand


def _next(step: Errands, done: Errand) -> Errand | None:
    """Have a generator go on behind an errand; None if there are no more."""
    try:
        done.check()
    except CkptError as error:
        step.throw(error)
        raise
    return next(step, None)
