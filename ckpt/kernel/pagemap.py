# SPDX-License-Identifier: Apache-2.0
"""/proc/PID/pagemap by its PAGEMAP_SCAN ioctl (Linux 6.7): which pages are what.

One call walks page tables at some 10 ns a page and gives back runs, not pages.
"""

from collections.abc import Iterable, Iterator
from enum import IntFlag
from typing import NamedTuple

from ckpt.kernel.ffi import allocate, check, ffi, lib


class Page(IntFlag):
    """PAGE_IS_*: the categories of a page."""

    WPALLOWED = 1 << 0
    WRITTEN = 1 << 1
    FILE = 1 << 2
    PRESENT = 1 << 3
    SWAPPED = 1 << 4
    PFNZERO = 1 << 5
    HUGE = 1 << 6
    SOFT_DIRTY = 1 << 7
    GUARD = 1 << 8


NONE = Page(0)


class Region(NamedTuple):
    """Pages [start, end) that are of the same categories."""

    start: int
    end: int
    categories: Page


_ROOM = 1024


def scan(
    pagemap: int,
    ranges: Iterable[tuple[int, int]],
    *,
    any_of: Page,
    all_of: Page = NONE,
    none_of: Page = NONE,
    tell: Page = NONE,
) -> Iterator[Region]:
    """Yield the runs of ranges (start, end) of these categories.

    They have one of any_of, all of all_of and none of none_of; those that differ in a category of
    tell are told apart. pagemap is a descriptor of /proc/PID/pagemap. Raises KernelError, ENOTTY
    where the kernel has no PAGEMAP_SCAN.
    """
    left = [(start, end - start) for start, end in ranges]
    regions, done = allocate("struct core_region[]", _ROOM), ffi.new("size_t *")
    while left:
        array = ffi.new("struct core_range[]", left)
        got = lib.core_pagemap_scan(
            pagemap,
            array,
            len(left),
            all_of | none_of,
            any_of,
            none_of,
            tell or any_of,
            regions,
            _ROOM,
            done,
        )
        for region in regions[0 : check(got, "PAGEMAP_SCAN", addr=left[0][0])]:
            yield Region(region.start, region.end, Page(region.categories))
        start, length = left[done[0]] if done[0] < len(left) else (0, 0)
        left = left[done[0] + 1 :]
        if got == _ROOM and (on := regions[_ROOM - 1].end) < start + length:
            left.insert(0, (on, start + length - on))
