# SPDX-License-Identifier: Apache-2.0
"""Free places in address spaces."""

from collections.abc import Iterable

from ckpt.errors import Unsupported
from ckpt.kernel.arch import TASK_SIZE

Range = tuple[int, int]
_LOWEST = 1 << 20
_APART = 1 << 20  # keep clear of stacks that may grow


def hole(size: int, busy: Iterable[Range]) -> int:
    """Return the lowest address with size free bytes, given the busy ranges [start, end)."""
    at = _LOWEST
    for start, end in sorted(busy):
        if start >= at + size + _APART:
            break
        at = max(at, end + _APART)
    if at + size > TASK_SIZE:
        raise Unsupported(f"no {size} bytes of address space are free")
    return at


def gaps(kept: Iterable[Range]) -> list[Range]:
    """Return all of the address space but the kept ranges."""
    found, at = [], 0
    for start, end in sorted(kept):
        if start > at:
            found.append((at, start))
        at = max(at, end)
    return [*found, (at, TASK_SIZE)]


def overlap(one: Range, others: Iterable[Range]) -> bool:
    """Say whether a range has an address in common with any of the others."""
    return any(one[0] < end and start < one[1] for start, end in others)
