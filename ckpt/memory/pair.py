# SPDX-License-Identifier: Apache-2.0
"""A second thread of a task in the making, which fills memory beside the first, and then ends.

Copying pages from the page cache is the work of one CPU for each thread; where there is another
CPU, two threads take little more than half the time.
"""

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self

from ckpt.errors import NoSuchTask, TargetDied
from ckpt.image.pages import PAGE, PageReader, PageRun
from ckpt.kernel.arch import NR, Regs
from ckpt.kernel.ptrace import Tracee
from ckpt.kernel.remote import Remote, Slot
from ckpt.memory.pages import Filler

WORTH_TWO = 32 << 20
"""Bytes to be filled from which on a second thread is worth it."""
_CLONE_THREAD = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000  # VM FS FILES SIGHAND THREAD


class Pair:
    """A stopped task and its second thread, which has ended when the `with` block is left."""

    def __init__(self, first: Remote, regs: Regs, slot: Slot) -> None:
        self._regs, self._slot = regs, slot
        self._remotes = [first]

    def __enter__(self) -> Self:
        first = self._remotes[0]
        batch = first.batch()
        words = [_CLONE_THREAD, *[0] * 10]  # struct clone_args
        args = batch.data(b"".join(word.to_bytes(8, "little") for word in words))
        made = batch.call(NR.clone3, args, 88, must=True)
        first.run(batch, self._regs, 0)
        tracee = Tracee.born(made.ret, first.tracee)
        self._remotes.append(Remote(tracee, first.tgid, self._slot, signo=first.signo))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        second = self._remotes.pop()
        if kind is not None:
            # It is somewhere in its batch; the first one's end is told only after its own.
            os.kill(second.tgid, signal.SIGKILL)
        else:
            batch = second.batch()
            batch.call(NR.exit, 0)
            second.start(self._regs, 0, batch)
        with suppress(TargetDied, NoSuchTask):
            while True:
                second.tracee.wait()
                second.tracee.cont()

    def fill(self, runs: list[PageRun], reader: PageReader) -> int:
        """Read pages into their places; returns how many."""
        halves, pages = _halved(runs), 0
        while any(halves):
            begun = []
            for index, remote in enumerate(self._remotes):
                filler, batch = Filler(reader), remote.batch()
                halves[index] = halves[index][filler.ask(halves[index], batch) :]
                remote.start(self._regs, 0, batch)
                begun.append((remote, filler, batch))
            for remote, filler, batch in begun:
                remote.finish(batch)
                pages += filler.check()
        return pages


def _halved(runs: Iterable[PageRun]) -> list[list[PageRun]]:
    """Return runs as two lists, of as many pages each."""
    runs = list(runs)
    left = sum(run.nr_pages for run in runs) // 2
    first: list[PageRun] = []
    for at, run in enumerate(runs):
        if run.nr_pages > left:
            middle = run.vaddr + left * PAGE
            cut = [run.part(run.vaddr, middle)] if left else []
            return [first + cut, [run.part(middle, run.end), *runs[at + 1 :]]]
        first.append(run)
        left -= run.nr_pages
    return [first, []]
