# SPDX-License-Identifier: Apache-2.0
"""A task in the making: from an empty fork of ours to what its image says, step by step.

It never runs code of ours but the stub: each step is a batch of its own system calls, made while
it is stopped. Until `run` it is traced with PTRACE_O_EXITKILL, and dies with us.
"""

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ckpt import namespaces
from ckpt.errors import CkptError, ImageError, KernelError, NotPermitted, OptionsError, PidTaken
from ckpt.image import pb
from ckpt.image.directory import ImageDir
from ckpt.image.pages import PAGE, PE_LAZY, PageReader, PageRun
from ckpt.kernel import features, maps, procfs
from ckpt.kernel.arch import NO_SYSCALL, NR, Regs
from ckpt.kernel.ffi import check, ffi, lib
from ckpt.kernel.nsfs import entered
from ckpt.kernel.ptrace import Options, Tracee, reap
from ckpt.kernel.remote import Batch, BatchFull, Remote, Segment, find_syscall, quiet_signal
from ckpt.log import INFO
from ckpt.memory import layout, mm, shmem, sysv, vdso, vmas
from ckpt.memory.pages import Filler, can_be_late
from ckpt.memory.pair import WORTH_TWO, Pair
from ckpt.memory.vmas import KERNELS_OWN, Status
from ckpt.namespaces import ipcshm
from ckpt.namespaces.kind import Restore
from ckpt.options import RestoreOptions
from ckpt.saved import Files, Saved
from ckpt.task import process, regs, sched, signals, thread, timers

if TYPE_CHECKING:
    from ckpt.lazy import LateRuns, Lazy

_MADV_HUGEPAGE = 14
_CLONE_PARENT = 0x8000
_CLONE_THREAD = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000  # VM FS FILES SIGHAND ... SYSVSEM
_LEADER_ROOM, _ROOM_EACH, _THREAD_ROOM = 1 << 20, 1 << 10, 16 << 10
_SECOND_ROOM = 1 << 20
_AT_ONCE = 64 << 10


class Task:
    """The task; leaving the `with` block before `run` kills it."""

    def __init__(self, saved: Saved, options: RestoreOptions) -> None:
        self.saved, self.options = saved, options
        self.forking_ns = self.pages = self.shared_pages = 0
        self.late_pages = 0
        self._late: list[LateRuns] = []
        self._lazy: Lazy | None = None
        self._tracees: dict[int, Tracee] = {}
        self._remotes: dict[int, Remote] = {}
        self._regs: Regs
        self._code: list[layout.Range] = []
        self._segment: Segment
        self._namespaces: list[Restore] = []
        self._started = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._lazy:
            self._lazy.close()
        if not self._started:
            if self._tracees:
                self._kill()
            self._close_namespaces(ok=False)

    def _kill(self) -> None:
        pid = self.saved.pid
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        # A thread that clone3 made before it failed for another is ours to reap, too.
        for tid in sorted(self.saved.tids, key=lambda tid: tid == pid):
            reap(tid)

    @property
    def _leader(self) -> Remote:
        return self._remotes[self.saved.pid]

    def _batch(self) -> Batch:
        return self._leader.batch()

    def _run(self, batch: Batch) -> None:
        self._leader.run(batch, self._regs, 0)

    def _syscall(self, nr: NR, *args: int) -> int:
        batch = self._batch()
        call = batch.call(nr, *args)
        self._run(batch)
        return call.ret

    # --- the steps

    def begin(self, files: Files) -> None:
        """Fork it, stop it, and empty its memory of all but the vDSO, put in its place.

        The exe link is set while nothing is mapped: the kernel refuses it (EBUSY) while a mapping
        of the old one is left, which is ours, but may be the new one as well.
        """
        saved = self.saved
        ours = maps.maps("self")
        group = vdso.ours(ours)
        wanted = vdso.wanted(saved.vmas)
        place = vdso.moved(group, wanted) if group and wanted else None
        busy = [(entry.start, entry.end) for entry in ours]
        busy += [(entry.start, entry.end) for entry in saved.vmas]
        self._make_segment(busy)
        self._fork()
        kept = [(self._segment.base, self._segment.base + self._segment.size)]
        if group and place:
            kept.append(group.range)
        batch = self._batch()
        if rseq := self._tracees[saved.pid].rseq():
            thread.forget_rseq(rseq, batch)
        self._join_session(batch)
        for start, end in layout.gaps(kept):
            batch.call(NR.munmap, start, end - start, must=True)
        if group and place:
            vdso.move(group, place, [*busy, *kept], batch)
        mm.restore(saved.mm, files.exe, batch)
        self._run(batch)
        self._code = self._kept_code(place)

    def _make_segment(self, busy: list[layout.Range]) -> None:
        saved = self.saved
        items = len(saved.vmas) + len(saved.fdinfo) + len(saved.leader.tc.timers.posix)
        leader_room = _LEADER_ROOM + items * _ROOM_EACH
        size = leader_room + _SECOND_ROOM + (len(saved.tids) + 1) * _THREAD_ROOM
        self._segment = Segment(size, layout.hole(size, busy), inherited=True)
        self._leader_slot = self._segment.slot(leader_room)

    def _fork(self) -> None:
        pid, since = self.saved.pid, time.monotonic_ns()
        flags = _CLONE_PARENT if self.options.sibling else 0
        lifeline = os.pipe2(os.O_CLOEXEC)
        try:
            ret = lib.core_clone_paused(flags, ffi.new("int32_t[]", [pid]), 1, lifeline)
            if ret < 0:
                raise _clone_error(-ret, pid)
            options = Options.SYSGOOD | Options.CLONE | Options.EXITKILL
            tracee = self._tracees[pid] = Tracee(pid, options)
            tracee.interrupt()
            tracee.wait()
        finally:
            os.close(lifeline[1])
            os.close(lifeline[0])
        self._regs = tracee.regs()._replace(orig_ax=NO_SYSCALL)
        signo = quiet_signal(0, self.saved.pending())
        self._remotes[pid] = Remote(tracee, pid, self._leader_slot, signo=signo)
        self.forking_ns = time.monotonic_ns() - since

    def _join_session(self, batch: Batch) -> None:
        """A session or group that it led it leads again; else it is in ours."""
        tree, pid = self.saved.tree, self.saved.pid
        if tree.sid == pid:
            batch.call(NR.setsid, must=True)
            return
        if not self.options.shell_job:
            raise OptionsError(
                f"pid {pid} was in session {tree.sid}, whose leader is not in the image",
                hint="--shell-job puts it into this session",
            )
        if tree.pgid == pid:
            batch.call(NR.setpgid, 0, 0, must=True)

    def _kept_code(self, place: vdso.Group | None) -> list[layout.Range]:
        """Return where the task keeps code: in it is the call that takes the stub away."""
        code = [(entry.start, entry.end) for entry in self.saved.vmas if entry.prot & 4]
        return [(place.code.start, place.code.end), *code] if place else code

    def join_namespaces(self, image: ImageDir) -> None:
        """Make the namespaces that are its own, and attach it to System V segments again.

        Those come before all other mappings: see `sysv.attach`.
        """
        own = self.saved.own_namespaces
        kinds = [kind for kind in namespaces.KINDS if kind.name in own]
        if kinds:
            flags = sum(kind.flag for kind in kinds)
            check(self._syscall(NR.unshare, flags), f"unshare {flags:#x}")
        for kind in kinds:
            make = self._make_in(image, own[kind.name])
            with entered(kind.name, self.saved.pid):
                kind.restore(make)
        if attachments := sysv.attachments(self.saved.vmas):
            self._attach(attachments, self._make_in(image, self.saved.ipc_id))

    def _make_in(self, image: ImageDir, ns_id: int) -> Restore:
        load = partial(self._load_segment, image)
        self._namespaces.append(Restore(image, ns_id, load, self._syscall))
        return self._namespaces[-1]

    def _load_segment(self, image: ImageDir, shmid: int, fd: int) -> None:
        self.shared_pages += shmem.load(image, shmid, fd)

    def _attach(self, attachments: list[sysv.Attachment], make: Restore) -> None:
        segments = ipcshm.read(make)
        if "ipc" not in self.saved.own_namespaces:
            ipcshm.restore_attached(segments, make)
        sizes = {segment.desc.id: segment.size for segment in segments}
        batch = self._batch()
        for one in attachments:
            if one.shmid not in sizes:
                raise ImageError(f"ipcns-shm-{make.id}: no segment {one.shmid}, mapped by the task")
            sysv.attach(one, sizes[one.shmid], batch)
        self._run(batch)

    def _close_namespaces(self, *, ok: bool) -> None:
        for make in self._namespaces:
            make.close(ok=ok)

    def map(self, files: Files, reader: PageReader) -> None:
        """Make all mappings and fill them; what may come late is left to a pager."""
        filled = [(entry, self._eager(entry, runs)) for entry, runs in self._saved_pages(reader)]
        batch = self._batch()
        for entry, runs in filled:
            if not entry.status & (KERNELS_OWN | Status.GUARD | Status.SYSVIPC):
                vmas.map_in(entry, files.mapped(entry), batch, fill=bool(runs))
        for entry, runs in filled:
            if runs and entry.madv >> _MADV_HUGEPAGE & 1:  # now, to be filled with huge pages
                batch.call(NR.madvise, entry.start, entry.end - entry.start, _MADV_HUGEPAGE)
        self._run(batch)
        self._fill([run for _, runs in filled for run in runs], reader)
        batch = self._batch()
        for entry, runs in filled:
            if not entry.status & KERNELS_OWN:
                vmas.finish(entry, batch, fill=bool(runs))
        self._run(batch)
        if self._late or files.contents.late:
            # Before anything else: a thread's rseq area, say, is written to once it is known.
            self._begin_lazy(files, reader)

    def _begin_lazy(self, files: Files, reader: PageReader) -> None:
        from ckpt.lazy import Lazy, fetch  # an eager restore starts sooner without it

        saved = self.saved
        self._lazy = Lazy(saved.pid, saved.kill_all, saved.first_touched(), self.options)
        uffd = fetch(self._leader, self._regs)
        self._lazy.start(uffd, self._late, files.contents.late, reader)
        self.late_pages = self._lazy.pages
        self.options.log.line(INFO, f"{self.late_pages} pages come late, {self.pages} are there")

    def _eager(self, entry: pb.vma_entry, runs: list[PageRun]) -> list[PageRun]:
        """Return the runs to be filled in at once; put the others aside for the pager."""
        if not self.options.lazy_pages or not can_be_late(entry):
            return runs
        # What we and it touch first is there at once: the pager is only starting meanwhile.
        first = [(at & -_AT_ONCE, (at & -_AT_ONCE) + _AT_ONCE) for at in self.saved.first_touched()]
        now, late = [], []
        for run in runs:
            whole = [(run.vaddr, run.end)]
            at_once = layout.intersect(whole, first) if run.flags & PE_LAZY else whole
            now += [run.part(*one) for one in at_once]
            late += [run.part(*one) for one in layout.subtract(whole, at_once)]
        if late:
            self._late.append((entry, late))
        return now

    def _fill(self, runs: list[PageRun], reader: PageReader) -> None:
        if sum(run.nr_pages for run in runs) * PAGE >= WORTH_TWO and (os.cpu_count() or 1) > 1:
            with Pair(self._leader, self._regs, self._segment.slot(_SECOND_ROOM)) as pair:
                self.pages += pair.fill(runs, reader)
            return
        filler = Filler(reader)
        while runs:
            batch = self._batch()
            taken = filler.ask(runs, batch)
            self._run(batch)
            self.pages += filler.check()
            runs = runs[taken:]

    def _saved_pages(self, reader: PageReader) -> Iterator[tuple[pb.vma_entry, list[PageRun]]]:
        """Yield each mapping with the saved runs in it, cut to it."""
        runs = iter(reader)
        run = next(runs, None)
        for entry in self.saved.vmas:
            found = []
            while run and run.vaddr < entry.end:
                if run.end > entry.start and vmas.is_private(entry):
                    found.append(run.part(entry.start, entry.end))
                if run.end > entry.end:
                    break
                run = next(runs, None)
            yield entry, found

    def become(self, files: Files) -> None:
        """Take on what the whole process shares."""
        saved = self.saved
        batch = self._batch()
        process.restore(saved.leader.tc, batch)
        files.restore_fs(saved.fs, batch)
        self._run(batch)
        process.restore_outside(saved.leader.tc, saved.pid)

    def open(self, files: Files) -> None:
        """Put all descriptors in their places, close ours, and connect what hangs on numbers.

        Ours first: while a pipe's other end is open here, an epoll set would not see it closed.
        """
        batch = self._batch()
        files.table.place(batch)
        files.table.close_rest(batch)
        self._run(batch)
        files.close(ok=True)
        self._in_batches(files.table.connect)
        batch = self._batch()
        process.restore_limits(self.saved.leader.tc, self.saved.pid, batch)
        self._run(batch)
        files.table.lock(self.saved.pid, self._batch, self._run)

    def _in_batches(self, add: Callable[[Batch], None]) -> None:
        """Have calls added and made, by as many batches as it takes."""
        while True:
            batch = self._batch()
            try:
                add(batch)
            except BatchFull:
                if not batch.calls:
                    raise
                self._run(batch)
                continue
            self._run(batch)
            return

    def make_threads(self) -> None:
        """Make the other threads, stopped before their first instruction."""
        others = [tid for tid in self.saved.tids if tid != self.saved.pid]
        batch = self._batch()
        for tid in others:
            pid = batch.data(tid.to_bytes(4, "little"))
            # struct clone_args: flags pidfd child_tid parent_tid exit_signal stack stack_size
            # tls set_tid set_tid_size cgroup
            words = [_CLONE_THREAD, 0, 0, 0, 0, 0, 0, 0, pid.address, 1, 0]
            args = batch.data(b"".join(word.to_bytes(8, "little") for word in words))
            batch.call(NR.clone3, args, 88, must=True)
        try:
            self._run(batch)
        except KernelError as error:
            raise _clone_error(error.errno or 0, others[-1]) from error
        for tid in others:
            tracee = self._tracees[tid] = Tracee.born(tid)
            slot = self._segment.slot(_THREAD_ROOM)
            self._remotes[tid] = Remote(tracee, self.saved.pid, slot, signo=self._leader.signo)

    def finish(self) -> None:
        """Make every thread what it was; last of all what would go off, or what others see."""
        saved, ours = self.saved, procfs.status("self")
        for tid, remote in self._remotes.items():
            core = saved.cores[tid]
            batch = remote.batch()
            thread.restore(core.thread_core, regs.clear_tid(core), ours, batch)
            # Only a thread itself may queue what the kernel or tgkill(2) has sent it.
            signals.restore(core.thread_core.signals_p, saved.pid, tid, batch)
            remote.run(batch, self._regs, 0)
            sched.restore(tid, core.thread_core)
        batch = self._batch()
        mm.restore_dumpable(saved.mm, batch)
        task_timers = saved.leader.tc.timers
        timers.create(task_timers, batch, restore_ids=features.timer_cr_ids())
        signals.restore(saved.leader.tc.signals_s, saved.pid, None, batch)
        timers.arm(task_timers, batch)
        self._run(batch)

    def run(self, ready: Callable[[int], None]) -> None:
        """Give all threads their registers, take the stub away, call ready(pid), let them go."""
        pid = self.saved.pid
        if self._lazy:
            self._lazy.wait()
        for tid, remote in self._remotes.items():
            core = self.saved.cores[tid]
            wanted = regs.registers(core)._replace(orig_ax=NO_SYSCALL)
            size = len(remote.tracee.xstate())
            remote.tracee.set_xstate(regs.xstate(core, size))
            regs.restore_tls(core, remote.tracee)
            if tid == pid:
                mem = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    gadget = find_syscall(mem, self._code)
                finally:
                    os.close(mem)
                remote.cure(wanted, self.saved.sigmask(tid), gadget)
            else:
                remote.go_home(wanted, self.saved.sigmask(tid))
        self._segment.close()
        ready(pid)
        self._close_namespaces(ok=True)
        self._started = True
        if self.saved.leader.tc.task_state == process.TASK_STOPPED:
            os.kill(pid, signal.SIGSTOP)
        for tracee in self._tracees.values():
            tracee.detach()


def _clone_error(number: int, pid: int) -> CkptError:
    if number == errno.EEXIST:
        return PidTaken(
            f"pid {pid} is taken",
            hint="end that process first, or restore in a pid namespace of its own",
        )
    if number == errno.EPERM:
        return NotPermitted(
            number, "clone3", pid=pid, hint="run as root: a pid of one's choice takes CAP_SYS_ADMIN"
        )
    return KernelError(number, "clone3", pid=pid)
