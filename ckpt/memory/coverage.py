# SPDX-License-Identifier: Apache-2.0
"""Of which memory is the log of writes complete, and which pages were in it when that began?

Memory is seen in blocks, and only those that have pages: to protect what is not there takes page
tables, gigabytes for what some programs set aside and never use. What is not seen is looked at in
the freeze, which is quick where there is nothing.
"""

from collections.abc import Iterable

from ckpt.kernel.pagemap import NONE, Page, Region, scan
from ckpt.memory.layout import Range, intersect, subtract, union
from ckpt.memory.tracker import Tracker

_BLOCK = 2 << 20  # what one page table is for
_HERE = Page.PRESENT | Page.SWAPPED


class Coverage:
    """What a tracker sees of the ranges that are registered with it."""

    def __init__(self, tracker: Tracker, pagemap: int) -> None:
        self.seen: list[Range] = []
        """Where every page that comes up or is written to is in the log."""
        self.guarded = False
        """Whether there have been guard pages: others may come and go at any time."""
        self._tracker, self._pagemap = tracker, pagemap
        self._lost: list[Range] = []

    def lose(self, ranges: Iterable[Range]) -> None:
        """Take note of memory that has gone, or will have by the freeze: it is not seen again.

        The kernel tells of what is discarded before it does that: to protect it anew might be
        before, too, and then in vain.
        """
        self._lost = union([*self._lost, *ranges])
        self.seen = subtract(self.seen, self._lost)

    def distrust(self, ranges: Iterable[Range]) -> None:
        """Do not see the blocks that these are in."""
        self.lose(_around(ranges))

    def there(self) -> list[Range]:
        """Return where there are pages; nothing is protected by it."""
        found = self._scan(self._tracker.registered, _HERE)
        return union((run.start, run.end) for run in found)

    def look(self, within: Iterable[Range] | None = None) -> list[Range]:
        """Protect the blocks that have come to have pages, and return where those are.

        With within, only blocks that have a part in these ranges.

        Looked at twice: protection makes what is not there look like swapped out, and before it
        pages may come that nobody logs. Guard pages come and go without a word (madvise(2)): where
        there are any, nothing is seen.
        """
        unseen = subtract(self._tracker.registered, [*self.seen, *self._lost])
        if within is not None:
            unseen = intersect(unseen, _around(within))
        found = self._scan(unseen, _HERE | Page.GUARD)
        guarded = _blocks(run for run in found if run.categories & Page.GUARD)
        self.guarded |= bool(guarded)
        here = [run for run in found if not run.categories & Page.GUARD]
        blocks = subtract(intersect(_blocks(here), unseen), guarded)
        self._tracker.protect(blocks)
        self.seen = union([*self.seen, *blocks])
        here += self._scan(blocks, Page.PRESENT)
        return intersect(union((run.start, run.end) for run in here), blocks)

    def look_for_guards(self) -> None:
        """Lose sight of the blocks where guard pages have come up."""
        guarded = _blocks(self._scan(self.seen, Page.GUARD))
        self.guarded |= bool(guarded)
        self.lose(guarded)

    def unprotected(self) -> list[Range]:
        """Return the pages that are there and not protected.

        The log, if it is taken after this, has those that were written: who answers a fault
        unprotects the page and writes it down in one.
        """
        found = self._scan(self.seen, Page.WRITTEN, all_of=Page.PRESENT)
        return union((run.start, run.end) for run in found)

    def _scan(self, ranges: Iterable[Range], any_of: Page, all_of: Page = NONE) -> list[Region]:
        none_of, tell = Page.PFNZERO, Page.GUARD
        found = scan(
            self._pagemap, ranges, any_of=any_of, all_of=all_of, none_of=none_of, tell=tell
        )
        return list(found)


def _blocks(runs: Iterable[Region]) -> list[Range]:
    """Return the blocks that have a part in any of the runs."""
    return _around((run.start, run.end) for run in runs)


def _around(ranges: Iterable[Range]) -> list[Range]:
    return union((start & -_BLOCK, -(-end & -_BLOCK)) for start, end in ranges)
