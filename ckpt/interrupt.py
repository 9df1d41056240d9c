# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM unwind a story, except from the few places where half a step would do harm."""

from collections.abc import Iterator
from contextlib import contextmanager


class _Interrupt:
    """How deep we are in what must not be interrupted, and the signal that came meanwhile."""

    depth = 0
    signo = 0
    late = False


def interrupt(signo: int) -> None:
    """Raise KeyboardInterrupt(signo), now or as soon as that does no harm: a handler's body."""
    if _Interrupt.late:
        return
    if not _Interrupt.depth:
        raise KeyboardInterrupt(signo)
    _Interrupt.signo = signo


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put an interrupt off to the end of the block: a thread is away, a socket not itself."""
    _Interrupt.depth += 1
    try:
        yield
    finally:
        _Interrupt.depth -= 1
    if _Interrupt.signo and not _Interrupt.depth:
        signo, _Interrupt.signo = _Interrupt.signo, 0
        raise KeyboardInterrupt(signo)


def too_late() -> None:
    """Take no notice of interrupts any more: what was begun is as good as done."""
    _Interrupt.late = True


def is_too_late() -> bool:
    """Say whether an interrupt would not be taken notice of."""
    return _Interrupt.late


def heed() -> None:
    """Take notice again, but not of what has come meanwhile."""
    _Interrupt.late = False
