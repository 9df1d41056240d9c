# SPDX-License-Identifier: Apache-2.0
"""Ranges of addresses: what they have in common, what lies between, where there is room."""

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


def subtract(ranges: Iterable[Range], holes: Iterable[Range]) -> list[Range]:
    """Return what is left of sorted ranges without the holes."""
    found, cuts, at = [], union(holes), 0
    for start, end in ranges:
        while at < len(cuts) and cuts[at][1] <= start:
            at += 1
        here = at
        while here < len(cuts) and cuts[here][0] < end:
            if cuts[here][0] > start:
                found.append((start, cuts[here][0]))
            start = max(start, cuts[here][1])
            here += 1
        if start < end:
            found.append((start, end))
    return found


def intersect(ranges: Iterable[Range], others: Iterable[Range]) -> list[Range]:
    """Return what sorted ranges have in common with the others."""
    ranges = list(ranges)
    return subtract(ranges, subtract(ranges, others))


def union(ranges: Iterable[Range]) -> list[Range]:
    """Return ranges sorted, with those that touch or overlap put together."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found
