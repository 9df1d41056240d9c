# SPDX-License-Identifier: Apache-2.0
"""The story of a restore: read, make the files, make stopped tasks what they were, let them go."""

import time
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from ckpt.hooks import Hooks
from ckpt.image import pb, stats
from ckpt.image.directory import ImageDir
from ckpt.image.pages import PageReader
from ckpt.interrupt import too_late
from ckpt.memory.handover import found
from ckpt.options import RestoreOptions
from ckpt.saved import Files, read
from ckpt.task.cgroups import Cgroups
from ckpt.tree import Tree


class RestoreReport(NamedTuple):
    """What a restore did. Times in ns; pages of 4096 bytes."""

    pid: int
    forking_ns: int
    total_ns: int
    pages: int
    late_pages: int
    compared: int
    inherited: int


def restore(options: RestoreOptions) -> RestoreReport:
    """Make the processes of options.images_dir again; they run when this returns.

    Interrupts are not heeded then until the caller says so (`interrupt.heed`).
    The root is our child (our sibling with options.sibling). Raises CkptError; then there is no
    process, and nothing of them is left.
    """
    begun, log = time.monotonic_ns(), options.log
    log.stage("read")
    with ExitStack() as stack:
        image = stack.enter_context(ImageDir.open(options.images_dir))
        saved = read(image)
        readers = {
            pid: stack.enter_context(PageReader(image, "pagemap", pid)) for pid in saved.memories
        }
        hooks = Hooks(options)
        hooks.pre_restore()
        log.stage("files")
        daemon = stack.enter_context(found(options.stats_dir, wanted=options.lazy_pages))
        late = options.lazy_pages and daemon is None  # a daemon knows of private memory only
        files = stack.enter_context(Files(image, saved, options, late=late))
        groups = stack.enter_context(Cgroups(image, saved.tasks[saved.pid].leader, options))
        tree = stack.enter_context(Tree(saved, options, daemon))
        log.stage("fork")
        tree.begin(readers)
        groups.join(saved.pid, saved.tasks[saved.pid].leader)
        log.stage("memory")
        tree.grow(files, image)
        for task in saved.tasks.values():
            groups.join(task.pid, task.leader)
        hooks.namespaces(saved.pid, saved.tasks[saved.pid].own_namespaces)
        log.stage("state")
        tree.become(files)
        tree.open(files)
        hooks.post_restore(list(saved.tasks), image)
        tree.finish()
        log.stage("let go")
        tree.run(partial(_last_point, hooks))
    hooks.post_resume(list(saved.tasks))
    report = RestoreReport(
        pid=saved.pid,
        forking_ns=tree.forking_ns,
        total_ns=time.monotonic_ns() - begun,
        pages=tree.pages + files.contents.pages,
        late_pages=tree.late_pages,
        compared=tree.compared,
        inherited=tree.inherited,
    )
    write_stats(report, options)
    return report


def _last_point(hooks: Hooks, pid: int) -> None:
    """Tell that all is there; who interrupts us afterwards would hear of a failure that is none."""
    hooks.pre_resume(pid)
    too_late()


def write_stats(report: RestoreReport, options: RestoreOptions) -> None:
    """Write stats-restore, as CRIU does: times in us."""
    entry = pb.restore_stats_entry(
        pages_compared=report.compared,
        pages_skipped_cow=report.inherited,
        forking_time=report.forking_ns // 1000,
        restore_time=report.total_ns // 1000,
        pages_restored=report.pages,
    )
    stats.write_stats(options.stats_dir, pb.stats_entry(restore=entry), options.log)
