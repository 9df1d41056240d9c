# SPDX-License-Identifier: Apache-2.0
"""Batches of many stopped threads, side by side: while one makes its calls, so do others, and we.

What a thread has to do is a generator. It yields an errand, and goes on when that is done; if it
has failed, by the error that is raised where it was yielded.
"""

from collections.abc import Generator, Iterable
from typing import NamedTuple

from ckpt.errors import CkptError
from ckpt.kernel.arch import Regs
from ckpt.kernel.ptrace import hear
from ckpt.kernel.remote import Batch, Remote


class Errand(NamedTuple):
    """A batch to be made by a thread. One without calls is done already."""

    remote: Remote
    batch: Batch


Errands = Generator[Errand, None, None]


def side_by_side(steps: Iterable[Errands], regs: Regs) -> None:
    """Have all of it done, one errand of each at a time; regs are any of the threads' own.

    After an error others may be anywhere in their batches.
    """
    given = [(step, errand) for step in steps if (errand := _set_off(next(step, None), regs))]
    while given:
        _await(errand.remote for _, errand in given if errand.batch.calls)
        given = [
            (step, errand) for step, done in given if (errand := _set_off(_next(step, done), regs))
        ]


def _set_off(errand: Errand | None, regs: Regs) -> Errand | None:
    """Have a thread begin at once: while it is at it we look for something to do for others."""
    if errand and errand.batch.calls:
        errand.remote.start(regs, 0, errand.batch)
    return errand


def _await(away: Iterable[Remote]) -> None:
    """Wait until each has stopped at the end of its batch."""
    remotes = list(away)
    while remotes:
        hear(remote.tracee for remote in remotes)
        remotes = [remote for remote in remotes if not remote.is_back()]


def _next(step: Errands, done: Errand) -> Errand | None:
    """Have a generator go on behind an errand; None if there are no more."""
    try:
        if done.batch.calls:
            done.remote.check(done.batch)
    except CkptError as error:
        step.throw(error)
        raise
    return next(step, None)
