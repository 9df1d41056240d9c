# SPDX-License-Identifier: Apache-2.0
"""The story of a lazy-pages daemon: wait for a restore, take over the memory, bring all pages.

Each process gets a pager of its own, the same that a restore without a daemon gives it, and with
the same promises: the daemon itself may die.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

from ckpt.errors import CkptError, ImageError
from ckpt.image import pb
from ckpt.image.directory import ImageDir
from ckpt.image.pages import PE_LAZY, PageReader
from ckpt.lazy import LateRuns, Lazy
from ckpt.log import INFO, WARNING
from ckpt.memory import vmas
from ckpt.memory.handover import Handed, Listener, Restorer
from ckpt.memory.pages import by_mapping
from ckpt.options import RestoreOptions


class LazyReport(NamedTuple):
    """How many processes a daemon has served, and with how many pages of 4096 bytes."""

    tasks: int
    pages: int


def lazy_pages(options: RestoreOptions, ready: Callable[[], None]) -> LazyReport:
    """Serve one restore of options.images_dir; ready is called when it may begin.

    Returns when all pages are in, or all processes have ended. Raises CkptError.
    """
    log = options.log
    with ImageDir.open(options.images_dir) as image, ExitStack() as stack:
        items = {tree.pid: tree for tree, _ in image.records("pstree")}
        listener = stack.enter_context(Listener(options.stats_dir))
        ready()
        log.stage("wait")
        restorer = stack.enter_context(listener.accept())
        log.stage("take over")
        pagers = _take_over(restorer, image, items, options)
        for pager in pagers:
            stack.callback(pager.close)
            pager.wait()
        restorer.await_finish()
        log.stage("serve")
        for pager in pagers:
            pager.close()
        _see_them_end(pagers)
        log.stage("")
    return LazyReport(len(pagers), sum(pager.pages for pager in pagers))


def _take_over(
    restorer: Restorer,
    image: ImageDir,
    items: dict[int, pb.pstree_entry],
    options: RestoreOptions,
) -> list[Lazy]:
    """Start a pager for each process of the image, when all have been received."""
    received = [restorer.next() for _ in items]
    return [_start(handed, items, image, options) for handed in received if handed]


def _start(
    handed: Handed,
    items: dict[int, pb.pstree_entry],
    image: ImageDir,
    options: RestoreOptions,
) -> Lazy:
    pid, here, uffd = handed
    if pid not in items:
        raise ImageError(f"the restore speaks of pid {pid}, which is not in this image")
    if not here:
        text = f"pid {pid} is not known here: it will not be killed if its pagers are"
        options.log.line(WARNING, text)
    mm = image.read("mm", pid)
    mappings = vmas.checked(mm.vmas or (vma for vma, _ in image.records("vmas", pid)))
    owners = _owners(pid, here, items, image)
    pager = Lazy(pid, owners, [mm.mm_arg_start, mm.mm_env_start], options)
    with PageReader(image, "pagemap", pid) as reader:
        # What it maps is not known to be registered yet: nothing comes before it is asked for.
        pager.start(uffd, _late(mappings, reader), [], reader, here=here, beforehand=0)
    options.log.line(INFO, f"pid {pid}: {pager.pages} pages")
    return pager


def _owners(
    pid: int, here: int, items: dict[int, pb.pstree_entry], image: ImageDir
) -> Iterator[int]:
    """Yield whom to kill when the pagers of a memory die: a process, and who shares it, by pid.

    In a pid namespace of theirs the others' pids are not known here.
    """
    mine = image.read("ids", pid).vm_id
    for one in items if here else ():
        leads = one in (items[one].sid, items[one].pgid)
        if one == pid:
            yield -here if leads else here
        elif here == pid and image.exists("ids", one) and image.read("ids", one).vm_id == mine:
            yield -one if leads else one


def _late(mappings: list[pb.vma_entry], reader: PageReader) -> list[LateRuns]:
    """Return the pages that a restore leaves to us: those that are marked."""
    found: list[LateRuns] = []
    for entry, runs in by_mapping(mappings, reader):
        if late := [run for run in runs if run.flags & PE_LAZY]:
            found.append((entry, late))
    return found


def _see_them_end(pagers: list[Lazy]) -> None:
    """Wait until all have ended; raise the worst that any has come to."""
    ends = [pager.end() for pager in pagers]
    if any(code not in (0, Lazy.LOST) for code in ends):
        raise CkptError("a pager has died, and its process was killed", hint="the log says why")
    if any(ends):
        raise ImageError("some pages could not be read: SIGBUS for who touches them")
