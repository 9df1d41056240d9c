# SPDX-License-Identifier: Apache-2.0
"""The story of a dump: look, freeze, ask, copy, let go, write, seal."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

from ckpt import namespaces
from ckpt.errors import CkptError, TargetDied
from ckpt.files.kind import NotNow
from ckpt.files.opened import OpenFiles
from ckpt.freeze import Frozen
from ckpt.hooks import Hooks
from ckpt.image import pb, stats
from ckpt.image.directory import ImageDir
from ckpt.interrupt import uninterrupted
from ckpt.kernel import procfs
from ckpt.kernel.glance import Glance, Seen
from ckpt.kernel.nsfs import entered, is_ours
from ckpt.kernel.way import is_over, way_to
from ckpt.log import INFO
from ckpt.memory import unchanged
from ckpt.memory.layout import Range
from ckpt.memory.pace import yielding
from ckpt.namespaces import ipcshm
from ckpt.namespaces.kind import Dump
from ckpt.options import DumpOptions
from ckpt.refuse import check_pid
from ckpt.round import Round
from ckpt.snapshot import Again, DumpReport, Snapshot
from ckpt.targets import Targets
from ckpt.task import cgroups, ids
from ckpt.write import write

_ATTEMPTS = 4


def dump(options: DumpOptions) -> DumpReport:
    """Write the process options.pid, and its descendants, into options.images_dir.

    Afterwards they are killed, run on or stay stopped, as the options say. Raises CkptError; then
    they run on as if nothing had been, and there is no image.
    """
    begun = time.monotonic_ns()
    unseen: list[Range] = []
    hooks = Hooks(options)
    left = _ATTEMPTS
    while True:
        try:
            report = _attempt(options, unseen, hooks)
            break
        except Again as error:
            left -= 1
            if not left:
                raise error.__cause__ or error from None
            options.log.line(INFO, f"once more: {error}")
            unseen += error.ranges
    report.total_ns = time.monotonic_ns() - begun
    return report


def _attempt(options: DumpOptions, unseen: list[Range], hooks: Hooks) -> DumpReport:
    pid, log = options.pid, options.log
    log.stage("check")
    check_pid(pid)
    with ExitStack() as held:
        opened = OpenFiles(options.kinds)
        targets = Targets(options, opened)
        held.enter_context(_telling_change(targets))
        held.enter_context(opened)
        held.enter_context(targets)
        with yielding():
            targets.find()
        log.stage("begin")
        with uninterrupted():  # or the directory would stay
            new = ImageDir.create(options.images_dir, options.prev_images_dir)
            image = held.enter_context(new)
        hooks.pre_dump(pid)
        snapshot = Snapshot(image, options, opened, unseen)
        try:
            _dump(snapshot, targets, options, hooks)
        except BaseException as error:
            snapshot.files.abandon()
            if isinstance(error, NotNow):
                raise Again(str(error)) from error
            raise
    return snapshot.report


@contextmanager
def _telling_change(targets: Targets) -> Iterator[None]:
    """Say of whatever fails when the root, or its program, has ended that it was that.

    It is no failure if it was a descendant, or a thread: then the dump has to begin anew.
    """
    pid = targets.root
    stack = _stack(pid)
    try:
        yield
    except Again:
        raise
    except (CkptError, OSError) as error:
        why = _end(pid, stack)
        lost = isinstance(error, TargetDied) or targets.ended() or targets.is_astray()
        if not why and lost:
            raise Again(str(error)) from error
        if why and isinstance(error, OSError):
            raise TargetDied(f"pid {pid} {why} ({error})") from error
        raise


def _end(pid: int, stack: int) -> str:
    """Say in which way a process is not what it was, if it is not."""
    if is_over(pid):
        return "ended while it was dumped"
    return "" if _stack(pid) == stack else "executed another program meanwhile"


def _stack(pid: int) -> int:
    """Return where the stack began, which each execve(2) places anew; 0 if there is none."""
    try:
        return procfs.stat(way_to(pid).tid).start_stack
    except CkptError:
        return 0


def _dump(snapshot: Snapshot, targets: Targets, options: DumpOptions, hooks: Hooks) -> None:
    log = options.log
    with Glance(aside=True) as glance:
        targets.begin(snapshot)  # the guard, and who answers faults, are not to come last
        with yielding():
            log.stage("prepare")
            targets.each(lambda target: target.memory.prepare())
            targets.catch_up()
            log.stage("look ahead")
            look_ahead(snapshot, targets, glance)
        log.stage("approach")
        with hooks.paused([target.pid for target in targets]):
            targets.each(lambda target: target.memory.approach())
            _freeze(snapshot, targets, options, glance, hooks)
    write_stats(snapshot, options)


def _freeze(
    snapshot: Snapshot, targets: Targets, options: DumpOptions, glance: Glance, hooks: Hooks
) -> None:
    log, pid = options.log, options.pid
    log.stage("freeze")
    with Frozen(pid, targets.generations(), targets.waits, glance) as frozen:
        with uninterrupted():
            seen = targets.settle(frozen, frozen.seen(), glance)
            snapshot.files.frozen()
            log.stage("tasks and files")
            take_tasks(snapshot, targets, frozen, seen)
        log.stage("memory")
        take_memory(targets, frozen, seen)
        log.stage("namespaces")
        take_namespaces(snapshot, targets, seen)
        if options.manage_cgroups != "ignore":
            for target in targets:
                target.snapshot.cgroups = cgroups.take(target.tid, seen.read)
        hooks.dump([target.pid for target in targets], snapshot.image)
        log.stage("write")
        if options.leave_running:
            frozen.release()
            hooks.resume()
        with yielding() if options.leave_running else nullcontext():
            write(snapshot, targets)
        log.stage("compare")
        snapshot.report.skipped = unchanged.leave_out(snapshot.image)
        log.stage("seal")
        snapshot.image.seal(ids.inventory())
        targets.taken = True
        hooks.post_dump(pid, snapshot.image)
        log.stage("let go")
        if options.leave_stopped:
            frozen.leave_stopped()
        elif not options.leave_running:
            snapshot.files.about_to_kill()
            frozen.kill()
            hooks.killed()
    snapshot.report.freezing_ns, snapshot.report.frozen_ns = frozen.freezing_ns, frozen.frozen_ns


def look_ahead(snapshot: Snapshot, targets: Targets, glance: Glance) -> None:
    """Take what will most likely be the same in the freeze, and open what will be read there."""
    targets.each(lambda target: target.look_ahead(glance))
    begin = glance.mark()
    for kind in namespaces.KINDS:
        # What it shows says which it is; the inode, with its times, is made anew (fs/nsfs.c).
        glance.link(f"/proc/{targets.way.tid}/ns/{kind.name}", stat=False)
    snapshot.namespaces = glance.since(begin)
    targets.together(snapshot.opened.look)
    snapshot.opened.look_ahead(snapshot.files, glance)
    targets.each(lambda target: target.snapshot.links.save(snapshot.files))
    snapshot.own_namespaces = own_namespaces(targets.way.tid)
    targets.together(targets.see_who_shares)


def take_tasks(snapshot: Snapshot, targets: Targets, frozen: Frozen, seen: Seen) -> None:
    """Take what tasks are: all of them answer while we look at open files, and at memory."""
    everybody = targets.frozen(frozen)
    with Round([target.questions.asked(process, seen) for target, process in everybody]) as asked:
        snapshot.opened.take(snapshot.files, seen)
        asked.poke()
        asked.ask()
        for target, process in everybody:
            target.snapshot.links.take(snapshot.files, seen, snapshot.opened.ahead)
            # Before its memory: there is where a time is put.
            registers = {one.tid: one.resumption.image for one in process.threads}
            target.snapshot.registers = registers
        asked.part()
        for target, _ in everybody:
            target.memory.see(seen)
            asked.poke()
        for target, _ in everybody:
            target.memory.beside(seen)
        seen.whole()


def take_memory(targets: Targets, frozen: Frozen, seen: Seen) -> None:
    """Have the engines take what they have not saved yet."""
    if any(target.memory.takes_long for target in targets):
        frozen.calm()
    for target, process in targets.frozen(frozen):
        target.memory.freeze(process, seen)


def own_namespaces(tid: int) -> list[str]:
    """Return the kinds of namespaces that a process has of its own."""
    return [kind.name for kind in namespaces.KINDS if not is_ours(kind.name, tid)]


def take_namespaces(snapshot: Snapshot, targets: Targets, seen: Seen) -> None:
    """Dump what is in their own namespaces; of our IPC namespace, what they have attached."""
    tid, image, save = targets.way.tid, snapshot.image, snapshot.files.save_shmem
    attached = {key: link for target in targets for key, link in target.snapshot.attached().items()}
    if not seen.same_answers(snapshot.opened.ahead, snapshot.namespaces):
        snapshot.own_namespaces = own_namespaces(tid)
    for kind in namespaces.KINDS:
        if kind.name in snapshot.own_namespaces:
            with entered(kind.name, tid):
                kind.dump(Dump(image, ids.namespace(kind.name, own=True), save, attached))
    if attached and "ipc" not in snapshot.own_namespaces:
        ipcshm.dump_attached(Dump(image, ids.namespace("ipc", own=False), save, attached))


def write_stats(snapshot: Snapshot, options: DumpOptions) -> None:
    """Write stats-dump, as CRIU does: times in us."""
    report = snapshot.report
    entry = pb.dump_stats_entry(
        freezing_time=report.freezing_ns // 1000,
        frozen_time=report.frozen_ns // 1000,
        memdump_time=report.copying_ns // 1000,
        memwrite_time=0,
        pages_scanned=report.memory.scanned,
        pages_skipped_parent=report.skipped.private,
        pages_written=report.memory.written - report.skipped.private,
        pages_lazy=0,
        shpages_scanned=report.shared.scanned,
        shpages_skipped_parent=report.skipped.shared,
        shpages_written=report.shared.written - report.skipped.shared,
    )
    stats.write_stats(options.stats_dir, pb.stats_entry(dump=entry), options.log)
