# SPDX-License-Identifier: Apache-2.0
"""What was taken in the freeze, put together and written: every image file but the pages."""

import time

from ckpt.image import pb
from ckpt.image.text import set_text
from ckpt.kernel import procfs
from ckpt.kernel.kcmp import Kcmp
from ckpt.snapshot import Snapshot
from ckpt.targets import SHARED, Target, Targets
from ckpt.task import cgroups, ending, ids, regs
from ckpt.task.process import TASK_DEAD
from ckpt.task.seccomp import Filters


def write(snapshot: Snapshot, targets: Targets) -> None:
    """Write all of it; the inventory is not there yet, so this is no image yet."""
    image, filters = snapshot.image, Filters()
    for target in targets:
        put_core(target, filters)
    snapshot.files.settle()
    snapshot.opened.close_copies()  # memory may take long to write
    for target in targets:
        target.memory.finish()
    for target in targets:
        if target.memory_of == target.pid:
            put_mm(target)
    numbers = {target.pid: number for number, target in enumerate(targets)}
    cgroups.dump([target.snapshot for target in targets], image)
    for target in targets:
        write_task(snapshot, target, numbers)
    for pid, stat in targets.zombies.items():
        image.write("core", _zombie(stat), id=pid)
    image.write("files", *snapshot.entries)
    trees = [_item(one.pid, one.snapshot.stat, [*one.snapshot.cores]) for one in targets]
    trees[0].ppid = 0
    zombies = [_item(pid, stat, [pid]) for pid, stat in targets.zombies.items()]
    image.write("pstree", *trees, *zombies)
    image.write("seccomp", filters.entry)
    image.write("timens", timens(), id=0)
    snapshot.files.close()


def put_core(target: Target, filters: Filters) -> None:
    """Put together what was taken: the records of all threads, the leader's first."""
    pid, snapshot, questions = target.pid, target.snapshot, target.questions
    snapshot.stat = procfs.parse_stat(questions.stat)
    snapshot.status = procfs.parse_status(questions.status)
    snapshot.mm = questions.of_mm()
    if target.way.is_another:
        snapshot.cores[pid] = questions.of_ended()
        snapshot.cores[pid].mtype = regs.MACHINE
    for tid, registers in snapshot.registers.items():
        state, record, clear_tid = questions.of_thread(tid)
        core = pb.core_entry(mtype=regs.MACHINE, thread_core=record)
        regs.dump(registers, state, clear_tid, core)
        if tid == pid:
            core.tc.CopyFrom(questions.of_process())
            core.tc.blk_sigset = state.sigmask
        else:
            core.thread_core.blk_sigset = state.sigmask
        snapshot.cores[tid] = core
    filters.dump(pid, target.sandbox.chains(snapshot.cores), snapshot.cores)


def put_mm(target: Target) -> None:
    """Complete the record of an address space."""
    task = target.snapshot
    task.mm.exe_file_id = task.links.ids["exe"]
    task.mm.vmas.extend(task.vmas)


def write_task(snapshot: Snapshot, target: Target, numbers: dict[int, int]) -> None:
    """Write the records of one process; numbers are those of all."""
    pid, image, task = target.pid, snapshot.image, target.snapshot
    links = task.links.ids
    image.write("mm", snapshot.tasks[target.memory_of].mm, id=pid)
    for tid, core in task.cores.items():
        image.write("core", core, id=tid)
    fs = pb.fs_entry(cwd_id=links["cwd"], root_id=links["root"], umask=task.status.umask)
    image.write("fs", fs, id=pid)
    files, directories, memory, handlers = (numbers[target.owners[kind]] for kind in SHARED)
    record = ids.task_ids(files, directories, memory, handlers, snapshot.own_namespaces)
    image.write("ids", record, id=pid)
    if target.owners[Kcmp.FILES] == pid:
        image.write("fdinfo", *snapshot.opened.entries(target.tid), id=record.files_id)


def _item(pid: int, stat: procfs.Stat, threads: list[int]) -> pb.pstree_entry:
    return pb.pstree_entry(
        pid=pid, ppid=stat.ppid, pgid=stat.pgrp, sid=stat.session, threads=threads
    )


def _zombie(stat: procfs.Stat) -> pb.core_entry:
    """Return the record of a process that has ended, but was not waited for."""
    core = pb.core_entry(mtype=regs.MACHINE)
    core.tc.task_state, core.tc.exit_code = TASK_DEAD, stat.exit_code
    core.tc.personality = core.tc.flags = core.tc.blk_sigset = 0
    set_text(core.tc, "comm", stat.comm)
    ending.dump_signal(stat, core.tc)
    return core


def timens() -> pb.timens_entry:
    """Return the clocks of the moment, which a restore on another boot would need."""
    monotonic, boottime = time.clock_gettime_ns(time.CLOCK_MONOTONIC), time.clock_gettime_ns(7)
    return pb.timens_entry(
        monotonic=pb.timespec(tv_sec=monotonic // 10**9, tv_nsec=monotonic % 10**9),
        boottime=pb.timespec(tv_sec=boottime // 10**9, tv_nsec=boottime % 10**9),
    )
