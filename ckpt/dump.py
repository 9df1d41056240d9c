# SPDX-License-Identifier: Apache-2.0
"""The story of a dump: look, freeze, ask, copy, let go, write, seal."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ckpt import namespaces
from ckpt.engine import Engine, engine
from ckpt.errors import CkptError, TargetDied, Unsupported
from ckpt.files.opened import OpenFiles
from ckpt.freeze import Frozen
from ckpt.guard import Guard
from ckpt.hooks import Hooks
from ckpt.image import pb, stats
from ckpt.image.directory import ImageDir
from ckpt.infect import Questions
from ckpt.interrupt import uninterrupted
from ckpt.kernel import procfs
from ckpt.kernel.glance import Glance, Seen
from ckpt.kernel.nsfs import entered, is_ours
from ckpt.kernel.pidfd import pidfd_open
from ckpt.memory.layout import Range
from ckpt.namespaces import ipcshm
from ckpt.namespaces.kind import Dump
from ckpt.options import DumpOptions
from ckpt.refuse import check, check_pid
from ckpt.snapshot import DumpReport, Snapshot, Unseen
from ckpt.task import ids, regs

_ATTEMPTS = 4


def dump(options: DumpOptions) -> DumpReport:
    """Write the process options.pid into options.images_dir.

    Afterwards it is killed, runs on or stays stopped, as the options say. Raises CkptError; then
    the process runs on as if nothing had been, and there is no image.
    """
    begun = time.monotonic_ns()
    unseen: list[Range] = []
    for left in reversed(range(_ATTEMPTS)):
        try:
            report = _attempt(options, unseen)
        except Unseen as error:
            if not left:
                raise
            options.log.warning("dump", f"once more: {error}")
            unseen += error.ranges
        else:
            report.total_ns = time.monotonic_ns() - begun
            return report
    raise AssertionError


def _attempt(options: DumpOptions, unseen: list[Range]) -> DumpReport:
    pid, log = options.pid, options.log
    log.stage("check")
    check_pid(pid)
    with ExitStack() as held:
        pidfd = pidfd_open(pid)
        held.callback(os.close, pidfd)
        held.enter_context(_telling_death(pid))
        opened = held.enter_context(OpenFiles(pid, pidfd, options.kinds))
        check(pid, opened, options)
        log.stage("begin")
        image = held.enter_context(ImageDir.create(options.images_dir, options.prev_images_dir))
        hooks = Hooks(options)
        hooks.pre_dump(pid)
        guard = held.enter_context(Guard(pid, pidfd))
        snapshot = Snapshot(pid, pidfd, image, options, guard, opened, unseen)
        try:
            _dump(snapshot, options, hooks)
        except BaseException:
            snapshot.files.abandon()
            raise
    return snapshot.report


@contextmanager
def _telling_death(pid: int) -> Iterator[None]:
    """Say of whatever fails when the process, or its program, has ended that it was that."""
    stack = _stack(pid)
    try:
        yield
    except OSError as error:
        if procfs.is_ending(pid):
            raise TargetDied(f"pid {pid} ended while it was dumped ({error})") from error
        if _stack(pid) != stack:
            raise TargetDied(f"pid {pid} executed another program meanwhile ({error})") from error
        raise


def _stack(pid: int) -> int:
    """Return where the stack began, which each execve(2) places anew; 0 if there is none."""
    try:
        return procfs.stat(pid).start_stack
    except CkptError:
        return 0


def _dump(snapshot: Snapshot, options: DumpOptions, hooks: Hooks) -> None:
    log = options.log
    with engine(snapshot, options.engine, log) as memory:
        log.stage("prepare")
        memory.prepare()
        log.stage("look ahead")
        with Questions(snapshot.pid, snapshot.guard) as questions, Glance() as glance:
            look_ahead(snapshot, questions, memory, glance)
            log.stage("approach")
            with hooks.paused(snapshot.pid):
                memory.approach()
                _freeze(snapshot, options, memory, questions, glance, hooks)
    write_stats(snapshot, options)


def _freeze(
    snapshot: Snapshot,
    options: DumpOptions,
    memory: Engine,
    questions: Questions,
    glance: Glance,
    hooks: Hooks,
) -> None:
    log = options.log
    log.stage("freeze")
    with Frozen(snapshot.pid, snapshot.waits) as frozen:
        with uninterrupted():
            seen = glance.look()
            snapshot.files.frozen()
            log.stage("tasks and files")
            with questions.asked(frozen, seen):
                take_files(snapshot, seen)
            take_core(snapshot, questions, frozen, seen)
        log.stage("memory")
        memory.freeze(frozen, seen)
        log.stage("namespaces")
        take_namespaces(snapshot)
        hooks.dump(snapshot.pid, snapshot.image)
        log.stage("write")
        if options.leave_running:
            frozen.release()
            hooks.resume()
        put_core(snapshot, questions)
        memory.finish()
        write(snapshot)
        log.stage("seal")
        snapshot.image.seal(ids.inventory())
        hooks.post_dump(snapshot.pid, snapshot.image)
        log.stage("let go")
        if options.leave_stopped:
            frozen.leave_stopped()
        elif not options.leave_running:
            snapshot.files.about_to_kill()
            frozen.kill()
            hooks.killed()
    snapshot.report.freezing_ns, snapshot.report.frozen_ns = frozen.freezing_ns, frozen.frozen_ns


def look_ahead(snapshot: Snapshot, questions: Questions, memory: Engine, glance: Glance) -> None:
    """Take what will most likely be the same in the freeze, and open what will be read there."""
    questions.look_ahead(glance)
    memory.look_ahead(glance)
    snapshot.opened.look_ahead(snapshot.files, glance)
    snapshot.links.look_ahead(snapshot.files)


def take_core(snapshot: Snapshot, questions: Questions, frozen: Frozen, seen: Seen) -> None:
    """Take what a task is but for files and memory, as the kernel gives it."""
    questions.take(frozen, seen)
    snapshot.registers = {one.tid: one.resumption.image for one in frozen.threads}


def put_core(snapshot: Snapshot, questions: Questions) -> None:
    """Put together what was taken: the records of all threads, the leader's first."""
    pid = snapshot.pid
    snapshot.stat = procfs.parse_stat(questions.stat)
    snapshot.status = procfs.parse_status(questions.status)
    snapshot.mm = questions.of_mm()
    for tid, registers in snapshot.registers.items():
        if questions.has_seccomp(tid):
            raise Unsupported(f"thread {tid} of pid {pid} has just got a seccomp filter")
        state, record, clear_tid = questions.of_thread(tid)
        core = pb.core_entry(mtype=regs.MACHINE, thread_core=record)
        regs.dump(registers, state, clear_tid, core)
        if tid == pid:
            core.tc.CopyFrom(questions.of_process())
            core.tc.blk_sigset = state.sigmask
        else:
            core.thread_core.blk_sigset = state.sigmask
        snapshot.cores[tid] = core


def take_files(snapshot: Snapshot, seen: Seen) -> None:
    """Dump all open files, and what exe, cwd and root are."""
    snapshot.opened.take(snapshot.files, seen)
    snapshot.links.take(snapshot.files)


def take_namespaces(snapshot: Snapshot) -> None:
    """Dump what is in its own namespaces; of our IPC namespace, the segments it has attached."""
    pid, image, save = snapshot.pid, snapshot.image, snapshot.files.save_shmem
    attached = snapshot.attached()
    for kind in namespaces.KINDS:
        if not is_ours(kind.name, pid):
            snapshot.own_namespaces.append(kind.name)
            with entered(kind.name, pid):
                kind.dump(Dump(image, ids.namespace(kind.name, own=True), save, attached))
    if "ipc" not in snapshot.own_namespaces:
        ipcshm.dump_attached(Dump(image, ids.namespace("ipc", own=False), save, attached))


def write(snapshot: Snapshot) -> None:
    """Write every image file but the pages, which are there, and the inventory."""
    pid, image, stat = snapshot.pid, snapshot.image, snapshot.stat
    snapshot.files.settle()
    links = snapshot.links.ids
    snapshot.mm.exe_file_id = links["exe"]
    snapshot.mm.vmas.extend(snapshot.vmas)
    image.write("mm", snapshot.mm, id=pid)
    for tid, core in snapshot.cores.items():
        image.write("core", core, id=tid)
    fs = pb.fs_entry(cwd_id=links["cwd"], root_id=links["root"], umask=snapshot.status.umask)
    image.write("fs", fs, id=pid)
    image.write("ids", ids.task_ids(snapshot.own_namespaces), id=pid)
    image.write("fdinfo", *snapshot.opened.entries(), id=ids.FILES_ID)
    image.write("files", *snapshot.entries)
    tree = pb.pstree_entry(
        pid=pid, ppid=0, pgid=stat.pgrp, sid=stat.session, threads=list(snapshot.cores)
    )
    image.write("pstree", tree)
    image.write("seccomp", pb.seccomp_entry())
    image.write("timens", timens(), id=0)
    snapshot.files.close()


def timens() -> pb.timens_entry:
    """Return the clocks of the moment, which a restore on another boot would need."""
    monotonic, boottime = time.clock_gettime_ns(time.CLOCK_MONOTONIC), time.clock_gettime_ns(7)
    return pb.timens_entry(
        monotonic=pb.timespec(tv_sec=monotonic // 10**9, tv_nsec=monotonic % 10**9),
        boottime=pb.timespec(tv_sec=boottime // 10**9, tv_nsec=boottime % 10**9),
    )


def write_stats(snapshot: Snapshot, options: DumpOptions) -> None:
    """Write stats-dump, as CRIU does: times in us."""
    report = snapshot.report
    entry = pb.dump_stats_entry(
        freezing_time=report.freezing_ns // 1000,
        frozen_time=report.frozen_ns // 1000,
        memdump_time=report.copying_ns // 1000,
        memwrite_time=0,
        pages_scanned=report.memory.scanned,
        pages_skipped_parent=0,
        pages_written=report.memory.written,
        pages_lazy=0,
        shpages_scanned=report.shared.scanned,
        shpages_skipped_parent=0,
        shpages_written=report.shared.written,
    )
    stats.write_stats(options.stats_dir, pb.stats_entry(dump=entry), options.log)
