# SPDX-License-Identifier: Apache-2.0
"""The story of a dump: look, freeze, ask, copy, let go, write, seal."""

import os
import time
from functools import partial

from ckpt.errors import KernelError
from ckpt.files import table
from ckpt.files.kind import Dump
from ckpt.files.mapped import save_mapped
from ckpt.freeze import Frozen
from ckpt.image import pb, stats
from ckpt.image.directory import ImageDir
from ckpt.image.pages import PAGE, PageWriter
from ckpt.infect import Questions
from ckpt.kernel import procfs
from ckpt.kernel.maps import SmapsEntry, smaps
from ckpt.kernel.pagemap import Region
from ckpt.kernel.pidfd import pidfd_open
from ckpt.memory import pages, shmem, vmas
from ckpt.memory.pages import Counts
from ckpt.options import DumpOptions
from ckpt.refuse import check, check_pid
from ckpt.task import ids, regs


class DumpReport:
    """What a dump did. Times in ns; pages of 4096 bytes."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.freezing_ns = self.frozen_ns = self.copying_ns = self.total_ns = 0
        self.memory, self.shared = Counts(), Counts()


class Snapshot:
    """What is taken of a frozen process, to be written when it runs again."""

    def __init__(self, pid: int, pidfd: int, image: ImageDir, options: DumpOptions) -> None:
        self.pid, self.pidfd, self.image = pid, pidfd, image
        self.report = DumpReport(pid)
        self.entries: list[pb.file_entry] = []
        self.fdinfo: list[pb.fdinfo_entry] = []
        self.vmas: list[pb.vma_entry] = []
        self.exe_id = self.cwd_id = self.root_id = 0
        self.cores: dict[int, pb.core_entry] = {}
        self.mm: pb.mm_entry
        self.stat: procfs.Stat
        self.status: procfs.Status
        self._ids = self._pages_ids = 0
        self.files = Dump(
            image, options, self._save_shmem, self._next_id, self.entries.append, root="/"
        )

    def _next_id(self) -> int:
        self._ids += 1
        return self._ids

    def pages_id(self) -> int:
        """Return the next number of a pages-N.img."""
        self._pages_ids += 1
        return self._pages_ids

    def _save_shmem(self, shmid: int, fd: int, size: int) -> None:
        if self.files.first("shmem", shmid):
            counts = shmem.save(self.image, shmid, self.pages_id(), fd, size)
            self.report.shared.scanned += counts.scanned
            self.report.shared.written += counts.written


def dump(options: DumpOptions) -> DumpReport:
    """Write the process options.pid into options.images_dir.

    Afterwards it is killed, runs on or stays stopped, as the options say. Raises CkptError; then
    the process runs on as if nothing had been, and there is no image.
    """
    begun = time.monotonic_ns()
    pid, log = options.pid, options.log
    log.stage("check")
    check_pid(pid)
    pidfd = pidfd_open(pid)
    try:
        check(pid, pidfd, options)
        log.stage("freeze")
        with ImageDir.create(options.images_dir, options.prev_images_dir) as image:
            snapshot = Snapshot(pid, pidfd, image, options)
            try:
                _dump(snapshot, options)
            except BaseException:
                snapshot.files.abandon()
                raise
    finally:
        os.close(pidfd)
    snapshot.report.total_ns = time.monotonic_ns() - begun
    return snapshot.report


def _dump(snapshot: Snapshot, options: DumpOptions) -> None:
    log = options.log
    with Questions(snapshot.pid) as questions, Frozen(snapshot.pid) as frozen:
        log.stage("tasks")
        questions.ask(frozen)
        take_core(snapshot, questions, frozen)
        log.stage("files")
        take_files(snapshot)
        log.stage("memory")
        take_memory(snapshot)
        log.stage("write")
        if options.leave_running:
            frozen.release()
        write(snapshot)
        log.stage("seal")
        snapshot.image.seal(ids.inventory())
        log.stage("let go")
        if options.leave_stopped:
            frozen.leave_stopped()
        elif not options.leave_running:
            snapshot.files.about_to_kill()
            frozen.kill()
    snapshot.report.freezing_ns, snapshot.report.frozen_ns = frozen.freezing_ns, frozen.frozen_ns
    write_stats(snapshot, options)


def take_core(snapshot: Snapshot, questions: Questions, frozen: Frozen) -> None:
    """Take what a task is but for files and memory; the leader's record comes first."""
    pid = snapshot.pid
    snapshot.stat, snapshot.status = procfs.stat(pid), procfs.status(pid)
    snapshot.mm = questions.mm(snapshot.stat, procfs.auxv(pid))
    for one in frozen.threads:
        record, clear_tid = questions.thread(one.tracee)
        core = pb.core_entry(mtype=regs.MACHINE, thread_core=record)
        regs.dump(regs.take(one.tracee, one.resumption.image), clear_tid, core)
        if one is frozen.leader:
            core.tc.CopyFrom(questions.process(one.tracee))
            core.tc.blk_sigset = one.sigmask
        else:
            core.thread_core.blk_sigset = one.sigmask
        snapshot.cores[one.tid] = core


def take_files(snapshot: Snapshot) -> None:
    """Dump all open files, and what exe, cwd and root are."""
    pid, out = snapshot.pid, snapshot.files
    snapshot.fdinfo = table.dump(pid, snapshot.pidfd, out)
    snapshot.exe_id, snapshot.cwd_id, snapshot.root_id = (
        _save_link(f"/proc/{pid}/{link}", out) for link in ("exe", "cwd", "root")
    )


def _save_link(link: str, out: Dump) -> int:
    """Save what a link of /proc leads to, as a path; returns its id."""
    try:
        fd = os.open(link, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(error.errno or 0, f"opening {link}") from error
    try:
        return save_mapped(fd, os.readlink(link), out)
    finally:
        os.close(fd)


def take_memory(snapshot: Snapshot) -> None:
    """Copy all private pages; shared objects are saved as their mappings come up."""
    pid, report = snapshot.pid, snapshot.report
    since = time.monotonic_ns()
    pagemap = _open(pid, "pagemap")
    mem = _open(pid, "mem")
    try:
        file_id = partial(_mapped_file, snapshot)
        snapshot.vmas = [vmas.dump(mapping, file_id) for mapping in smaps(pid)]
        runs: list[Region] = []
        guards: list[pb.vma_entry] = []
        writer = PageWriter(snapshot.image, "pagemap", pid, snapshot.pages_id())
        with writer:
            for entry in snapshot.vmas:
                found, guarded = pages.dumped(pagemap, entry)
                guards += guarded
                for run in found:
                    size = (run.end - run.start) // PAGE
                    writer.add(run.start, size, pages.flags_of(entry))
                    report.memory.written += size
                runs += found
                report.memory.scanned += (entry.end - entry.start) // PAGE
            pages.copy(pid, mem, runs, writer)
        snapshot.vmas = vmas.merged_vvar(snapshot.vmas) + guards
    finally:
        os.close(pagemap)
        os.close(mem)
    report.copying_ns = time.monotonic_ns() - since


def _open(pid: int, name: str) -> int:
    try:
        return os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(error.errno or 0, f"opening /proc/{pid}/{name}") from error


def _mapped_file(snapshot: Snapshot, mapping: SmapsEntry, flags: int) -> int:
    """Save the file behind a mapping, by the link that map_files has for it."""
    link = f"/proc/{snapshot.pid}/map_files/{mapping.start:x}-{mapping.end:x}"
    return _save_link(link, snapshot.files)


def write(snapshot: Snapshot) -> None:
    """Write every image file but the pages, which are there, and the inventory."""
    pid, image, stat = snapshot.pid, snapshot.image, snapshot.stat
    snapshot.mm.exe_file_id = snapshot.exe_id
    snapshot.mm.vmas.extend(snapshot.vmas)
    image.write("mm", snapshot.mm, id=pid)
    for tid, core in snapshot.cores.items():
        image.write("core", core, id=tid)
    fs = pb.fs_entry(cwd_id=snapshot.cwd_id, root_id=snapshot.root_id, umask=snapshot.status.umask)
    image.write("fs", fs, id=pid)
    image.write("ids", ids.task_ids(), id=pid)
    image.write("fdinfo", *snapshot.fdinfo, id=ids.FILES_ID)
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
