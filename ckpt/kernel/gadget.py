# SPDX-License-Identifier: Apache-2.0
"""System call instructions in a task's own code, by which it can be had make a call of ours."""

import errno
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ckpt.errors import KernelError
from ckpt.kernel.arch import find_gadget, find_hold


class Gadget(NamedTuple):
    """A `syscall` instruction in the task's code, and how the stack rises to its `ret`.

    hold is another one, after which a thread waits until it is given its registers; 0 if the
    code has none, or nobody would come to do so.
    """

    address: int
    risen: int
    hold: int = 0


def find_syscall(mem: int, ranges: Sequence[tuple[int, int]]) -> Gadget:
    """Find a gadget in the task's executable ranges (start, end), in their order.

    mem is a descriptor of its /proc/PID/mem. Raises KernelError if there is none.
    """
    for at, code in _code(mem, ranges):
        if found := find_gadget(code):
            return Gadget(at + found[0], found[1])
    raise KernelError(errno.ENOEXEC, "looking for a syscall instruction in the task's code")


def find_holding(mem: int, ranges: Sequence[tuple[int, int]]) -> int:
    """Find what Gadget.hold is, likewise; 0 if there is none."""
    for at, code in _code(mem, ranges):
        if (found := find_hold(code)) is not None:
            return at + found
    return 0


def _code(mem: int, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
    for start, end in ranges:
        for at in range(start, min(end, start + (4 << 20)), 1 << 20):
            try:
                yield at, os.pread(mem, min(end - at, 1 << 20), at)
            except OSError:
                break
