# SPDX-License-Identifier: Apache-2.0
"""A task in the making: from a fork to what its image says, step by step.

It never runs code of ours but the stub: each step is a batch of its own system calls, made while
it is stopped. It is traced with PTRACE_O_EXITKILL, and dies with us, until it is let go.
"""

import errno
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ckpt import namespaces
from ckpt.errors import (
    CkptError,
    ImageError,
    KernelError,
    NoSuchTask,
    NotPermitted,
    PidTaken,
)
from ckpt.image import pb
from ckpt.image.directory import ImageDir
from ckpt.image.pages import PAGE, PE_LAZY, PageReader, PageRun
from ckpt.kernel import features, procfs
from ckpt.kernel.arch import NO_SYSCALL, NR, Regs
from ckpt.kernel.errands import Calls, Errands, Leave
from ckpt.kernel.ffi import check
from ckpt.kernel.gadget import Gadget, find_syscall
from ckpt.kernel.nsfs import entered
from ckpt.kernel.ptrace import EVENT_STOP, Options, Tracee
from ckpt.kernel.remote import Batch, BatchFull, Remote, Segment, Slot
from ckpt.kernel.threads import send
from ckpt.log import INFO
from ckpt.memory import inherit, layout, mm, shmem, sysv, vdso, vmas
from ckpt.memory.handover import Daemon
from ckpt.memory.inherit import Kept
from ckpt.memory.pages import Filler, by_mapping, can_be_late
from ckpt.memory.pair import WORTH_TWO, Pair
from ckpt.memory.vmas import GUARD, KERNELS_OWN, Status
from ckpt.namespaces import ipcshm
from ckpt.namespaces.kind import Restore
from ckpt.options import RestoreOptions
from ckpt.saved import Files, Saved, SavedTask
from ckpt.task import ended, process, regs, sched, seccomp, sigacts, signals, thread, timers

if TYPE_CHECKING:
    from ckpt.lazy import LateRuns, Lazy

_MADV_DONTNEED, _MADV_HUGEPAGE = 4, 14
_CLONE_THREAD = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000  # VM FS FILES SIGHAND ... SYSVSEM
_LEADER_ROOM, _ROOM_EACH, _THREAD_ROOM = 1 << 20, 1 << 10, 16 << 10
_SECOND_ROOM = 1 << 20
_AT_ONCE = 64 << 10
_SPARE_CALLS, _SPARE = 16, 4096
_TIMERS_AT_ONCE = 16
_NOT_MAPPED = KERNELS_OWN | GUARD | Status.SYSVIPC.value
_ALL = NO_SYSCALL  # signals
_TO_STOP = 0.1  # seconds that a task takes at most for it


class Room:
    """The memory that all tasks of a tree have in common while they are made: their slots."""

    def __init__(self, saved: Saved, ours: Iterable[layout.Range]) -> None:
        tasks = saved.tasks.values()
        self.busy = [*ours, *((entry.start, entry.end) for task in tasks for entry in task.vmas)]
        """What is mapped here, or will be in any of them."""
        threads = sum(len(task.tids) + 1 for task in tasks) + 2 * len(saved.items)
        size = sum(map(_leader_room, tasks)) + _SECOND_ROOM + threads * _THREAD_ROOM
        filters = seccomp.room(saved.filters)
        size += filters
        self.segment = Segment(size, layout.hole(size, self.busy), inherited=True)
        self.second = self.segment.slot(_SECOND_ROOM)
        self.actions = sigacts.own()
        """What all have from us: signal actions."""
        self.memories, self._exit_signal = saved.memories, saved.exit_signal
        self._filters = saved.filters
        self._programs = seccomp.place(saved.filters, Batch(self.segment.slot(filters)))

    @property
    def range(self) -> layout.Range:
        """Where it is."""
        return self.segment.base, self.segment.base + self.segment.size

    def install(self, wanted: seccomp.Wanted, batch: Batch, *, for_all: bool = False) -> None:
        """Add the calls that give a thread, or all of its process, their seccomp filters."""
        seccomp.restore(wanted, self._filters, self._programs, batch, for_all=for_all)

    def signals_of_ends(self, saved: SavedTask) -> list[int]:
        """Return which signals a task may have of its children by now: some queue."""
        ends = [self._exit_signal(child.pid) for child in saved.item.children]
        return [signal.SIGCHLD, *(signo for signo in ends if signo not in (0, signal.SIGCHLD))]

    def leader(self, saved: SavedTask) -> Slot:
        """Return the slot of a task's first thread."""
        return self.segment.slot(_leader_room(saved))

    def thread(self) -> Slot:
        """Return the slot of another thread, or of a task that does little."""
        return self.segment.slot(_THREAD_ROOM)


def _leader_room(saved: SavedTask) -> int:
    items = len(saved.vmas) + len(saved.fdinfo) + len(saved.leader.tc.timers.posix)
    return _LEADER_ROOM + items * _ROOM_EACH


class Origin(NamedTuple):
    """What a task has from its maker: where the vDSO is, and memory, by its records and pages."""

    vdso: vdso.Group | None
    saved: SavedTask | None = None
    reader: PageReader | None = None


class Task:
    """A task: forked, and stopped; in the end it has become what its records say."""

    def __init__(
        self,
        saved: SavedTask,
        options: RestoreOptions,
        remote: Remote,
        room: Room,
        regs: Regs,
        origin: Origin,
        daemon: Daemon | None,
    ) -> None:
        self.saved, self.options = saved, options
        self.pages = self.shared_pages = self.late_pages = self.compared = self.inherited = 0
        self._late: list[LateRuns] = []
        self._shared_filters = 0
        self._lazy: Lazy | None = None
        self._tracees: dict[int, Tracee] = {saved.pid: remote.tracee}
        self._remotes: dict[int, Remote] = {saved.pid: remote}
        self._room, self._regs, self._origin, self._daemon = room, regs, origin, daemon
        self._kept: dict[int, list[Kept]] = {}
        self._code: list[layout.Range] = []
        self.origin: Origin
        """What forks of it have from it, once it has begun."""
        self._namespaces: list[Restore] = []
        self._shares_memory = False

    def share(self, maker: "Task") -> None:
        """Have its maker's memory, in which all is done."""
        self.origin, self._code, self._shares_memory = maker.origin, maker._code, True

    def close(self, *, ok: bool) -> None:
        """Let go of what was needed to make it, and of its pager."""
        self.close_namespaces(ok=ok)
        if self._lazy:
            self._lazy.close()

    def close_namespaces(self, *, ok: bool) -> None:
        """Let go of what it had to take over from us."""
        for make in self._namespaces:
            make.close(ok=ok)

    @property
    def is_stopped(self) -> bool:
        """Say whether it stood still, by a signal."""
        tc = self.saved.leader.tc
        return tc.task_state == process.TASK_STOPPED or (
            not self.saved.is_led and tc.HasField("stop_signo")
        )

    @property
    def _leader(self) -> Remote:
        return self._remotes[self.saved.pid]

    def _batch(self) -> Batch:
        return self._leader.batch()

    def _run(self, batch: Batch) -> None:
        if batch.calls:
            self._leader.run(batch, self._regs, 0)

    def _many(self, batch: Batch, nr: NR, ranges: Iterable[layout.Range], *more: int) -> Batch:
        """Add a call for each range, by as many batches as it takes; returns the last one."""
        for start, end in ranges:
            if not batch.fits(_SPARE_CALLS, _SPARE):
                self._run(batch)
                batch = self._batch()
            batch.call(nr, start, end - start, *more, must=True)
        return batch

    def _syscall(self, nr: NR, *args: int) -> int:
        batch = self._batch()
        call = batch.call(nr, *args)
        self._run(batch)
        return call.ret

    # --- the steps

    def begin(self, files: Files, reader: PageReader) -> Errands:
        """Empty its memory of all but the vDSO, put in its place, and what it has of its maker's.

        The exe link is set while nothing is mapped: the kernel refuses it (EBUSY) while a mapping
        of the old one is left, which is ours, but may be the new one as well.
        """
        saved, group, maker = self.saved, self._origin.vdso, self._origin.saved
        wanted = vdso.wanted(saved.vmas)
        place = vdso.moved(group, wanted) if group and wanted else None
        same_exe = maker is not None and maker.mm.exe_file_id == saved.mm.exe_file_id
        if maker and same_exe and not self.options.lazy_pages:
            self._kept = inherit.kept(saved.vmas, maker.vmas)
        kept = [self._room.range, *([group.range] if group and place else [])]
        kept += [piece[:2] for pieces in self._kept.values() for piece in pieces]
        batch = self._batch()
        if rseq := self._tracees[saved.pid].rseq():
            thread.forget_rseq(rseq, batch)
        sigacts.be_told_of_children(batch)
        batch = self._many(batch, NR.munmap, layout.gaps(kept))
        if group and place:
            vdso.move(group, place, [*self._room.busy, *kept], batch)
        mm.restore(saved.mm, files.exe(saved.mm), batch, maker.mm if maker else None)
        yield Calls(self._leader, batch)
        self._code = self._kept_code(place)
        self.origin = Origin(place, saved, reader)

    def _kept_code(self, place: vdso.Group | None) -> list[layout.Range]:
        """Return where the task keeps code: in it is the call that takes the stub away."""
        code = [(entry.start, entry.end) for entry in self.saved.vmas if entry.prot & 4]
        return [(place.code.start, place.code.end), *code] if place else code

    def join_namespaces(self, image: ImageDir) -> None:
        """Make the namespaces that are its own, and attach it to System V segments again.

        Those come before all other mappings: see `sysv.attach`.
        """
        own = self.saved.own_namespaces
        new = () if self.saved.item.ppid else own  # the root's are all others', too
        kinds = [kind for kind in namespaces.KINDS if kind.name in new]
        if kinds:
            flags = sum(kind.flag for kind in kinds)
            check(self._syscall(NR.unshare, flags), f"unshare {flags:#x}")
        for kind in kinds:
            make = self._make_in(image, own[kind.name])
            with entered(kind.name, self.saved.pid):
                kind.restore(make)
        if attachments := sysv.attachments(self.saved.vmas):
            self._attach(attachments, self._make_in(image, self.saved.ids.ipc_ns_id))

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

    def map(self, files: Files, reader: PageReader) -> Errands:
        """Make all mappings and fill them, but for what may come late."""
        saved = by_mapping(self.saved.vmas, reader)
        filled = [(entry, self._eager(entry, runs)) for entry, runs in saved]
        batch = self._many(self._batch(), NR.madvise, self._share(filled), _MADV_DONTNEED)
        for entry, runs in filled:
            if pieces := self._kept.get(entry.start):
                inherit.complete(entry, pieces, files.mapped(entry), batch, fill=bool(runs))
            elif not entry.status & _NOT_MAPPED:
                vmas.map_in(entry, files.mapped(entry), batch, fill=bool(runs))
        for entry, runs in filled:
            if runs and entry.madv >> _MADV_HUGEPAGE & 1:  # now, to be filled with huge pages
                batch.call(NR.madvise, entry.start, entry.end - entry.start, _MADV_HUGEPAGE)
        yield Calls(self._leader, batch)
        yield from self._fill([run for _, runs in filled for run in runs], reader)
        batch = self._batch()
        for entry, runs in filled:
            if not entry.status & KERNELS_OWN:
                vmas.finish(entry, batch, fill=bool(runs))
        yield Calls(self._leader, batch)

    def _share(self, filled: list[tuple[pb.vma_entry, list[PageRun]]]) -> list[layout.Range]:
        """Leave those pages to be filled that differ from its maker's; return what it lacks."""
        gone: list[layout.Range] = []
        makers = self._origin.reader.runs if self._origin.reader else []
        for at, (entry, runs) in enumerate(filled):
            if pieces := self._kept.get(entry.start):
                found = inherit.difference(runs, makers, pieces)
                filled[at] = entry, found.runs
                gone += found.gone
                self.compared += found.compared
                self.inherited += found.same
        return gone

    def leave_to_pager(self, files: Files, reader: PageReader) -> None:
        """Have the daemon, if there is one, or a pager bring what comes late.

        Before anything else: a thread's rseq area, say, is written to once it is known.
        """
        if self._shares_memory:
            if self._daemon:
                self._daemon.pass_over(self.saved.pid)
            return
        if not (self._late or files.contents.late or self._daemon):
            return
        from ckpt.lazy import Lazy, fetch, register  # an eager restore starts sooner without it

        saved, shared = self.saved, files.contents.late
        uffd = fetch(self._leader, self._regs)
        register(uffd, [entry for entry, _ in self._late])
        if self._daemon:
            self._daemon.take(saved.memory_of, uffd)
            self.late_pages = sum(run.nr_pages for _, runs in self._late for run in runs)
        else:
            for _, entries in shared:
                register(uffd, entries)
            owners = [one.kill_all for one in self._sharers]
            self._lazy = Lazy(saved.memory_of, owners, self._first_touched(), self.options)
            self._lazy.start(uffd, self._late, shared, reader, here=saved.pid)
            self.late_pages = self._lazy.pages
        self.options.log.line(INFO, f"{self.late_pages} pages come late, {self.pages} are there")

    def _eager(self, entry: pb.vma_entry, runs: list[PageRun]) -> list[PageRun]:
        """Return the runs to be filled in at once; put the others aside for the pager."""
        if not self.options.lazy_pages or not can_be_late(entry):
            return runs
        # What we and it touch first is there at once: the pager is only starting meanwhile. CRIU's
        # daemon runs, and never comes to an end where a page is there that is marked as late.
        touched = [] if self._daemon else self._first_touched()
        first = [(at & -_AT_ONCE, (at & -_AT_ONCE) + _AT_ONCE) for at in touched]
        now, late = [], []
        for run in runs:
            whole = [(run.vaddr, run.end)]
            at_once = layout.intersect(whole, first) if run.flags & PE_LAZY else whole
            now += [run.part(*one) for one in at_once]
            late += [run.part(*one) for one in layout.subtract(whole, at_once)]
        if late:
            self._late.append((entry, late))
        return now

    @property
    def _sharers(self) -> list[SavedTask]:
        """All that have its memory."""
        return self._room.memories[self.saved.memory_of]

    def _first_touched(self) -> list[int]:
        return [address for one in self._sharers for address in one.first_touched()]

    def _fill(self, runs: list[PageRun], reader: PageReader) -> Errands:
        if sum(run.nr_pages for run in runs) * PAGE >= WORTH_TWO and (os.cpu_count() or 1) > 1:
            with Pair(self._leader, self._regs, self._room.second) as pair:
                self.pages += pair.fill(runs, reader)
            return
        filler = Filler(reader)
        while runs:
            batch = self._batch()
            taken = filler.ask(runs, batch)
            yield Calls(self._leader, batch)
            self.pages += filler.check()
            runs = runs[taken:]

    def become(self, files: Files, *, shares_fs: bool, shares_actions: bool) -> Errands:
        """Take on what the whole process shares; its maker sees to what both do."""
        saved = self.saved
        batch = self._batch()
        if not shares_actions:
            sigacts.restore(saved.leader.tc.sigactions, self._room.actions, batch)
        process.restore(saved.leader.tc, batch)
        if not shares_fs:
            files.restore_fs(saved.fs, batch)
        yield Calls(self._leader, batch)
        process.restore_outside(saved.leader.tc, saved.pid)

    def place(self, files: Files) -> Errands:
        """Put all descriptors in their places, and close the others that it has from us."""
        batch = self._batch()
        table = files.table(self.saved)
        table.place(self.saved.pid, batch)
        table.close_rest(batch)
        yield Calls(self._leader, batch)

    def connect(self, files: Files) -> Errands:
        """Connect what hangs on numbers.

        Ours are closed by now, in all tasks: while a pipe's other end is open somewhere, an epoll
        set would not see it closed.
        """
        table = files.table(self.saved)
        batch = self._last_of(table.connect)
        yield Calls(self._leader, batch)
        batch = self._batch()
        process.restore_limits(self.saved.leader.tc, self.saved.pid, batch)
        yield Calls(self._leader, batch)
        table.lock(self.saved.pid, self._batch, self._run)

    def _last_of(self, add: Callable[[Batch], None]) -> Batch:
        """Have calls added and made, by as many batches as it takes; return what is left to run."""
        while True:
            batch = self._batch()
            try:
                add(batch)
                return batch
            except BatchFull:
                if not batch.calls:
                    raise
                self._run(batch)

    def make_threads(self) -> Errands:
        """Make the other threads, stopped before their first instruction."""
        others = [tid for tid in self.saved.tids if tid != self.saved.pid]
        batch, calls = self._batch(), []
        for tid in others:
            pid = batch.data(tid.to_bytes(4, "little"))
            # struct clone_args: flags pidfd child_tid parent_tid exit_signal stack stack_size
            # tls set_tid set_tid_size cgroup
            words = [_CLONE_THREAD, 0, 0, 0, 0, 0, 0, 0, pid.address, 1, 0]
            args = batch.data(b"".join(word.to_bytes(8, "little") for word in words))
            calls.append(batch.call(NR.clone3, args, 88, must=True))
        try:
            yield Calls(self._leader, batch)
        except KernelError as error:
            made = sum(call.ret > 0 for call in calls)
            raise clone_error(error.errno or 0, others[made]) from error
        for tracee in Tracee.all_born(others, self._leader.tracee):
            self._tracees[tracee.tid] = tracee
            slot, signo = self._room.thread(), self._leader.signo
            self._remotes[tracee.tid] = Remote(tracee, self.saved.pid, slot, signo=signo)

    def install_filters(self) -> Errands:
        """Install the seccomp filters that all threads have, suspended."""
        everybody = self.saved.filters
        for tid, tracee in self._tracees.items():
            if everybody[tid]:
                tracee.suspend_seccomp()
        common = seccomp.in_common(everybody)
        self._shared_filters = len(common)
        if common:
            batch = self._batch()
            self._room.install(seccomp.Wanted(common), batch, for_all=True)
            yield Calls(self._leader, batch)

    def finish(self) -> Iterator[Errands]:
        """Make every thread what it was: yield what each has to do."""
        ours = procfs.status("self")
        for tid, remote in self._remotes.items():
            if tid in self.saved.lives:
                yield self._finish(tid, remote, ours)
            else:
                yield self._finish_ended(remote, ours)

    def _finish(self, tid: int, remote: Remote, ours: procfs.Status) -> Errands:
        core, own = self.saved.cores[tid], self.saved.filters[tid]
        batch = remote.batch()
        self._room.install(own._replace(filters=own.filters[self._shared_filters :]), batch)
        thread.restore(core.thread_core, regs.clear_tid(core), ours, batch)
        # Only a thread itself may queue what the kernel or tgkill(2) has sent it.
        signals.restore(core.thread_core.signals_p, self.saved.pid, tid, batch)
        yield Calls(remote, batch)
        sched.restore(tid, core.thread_core)

    def _finish_ended(self, remote: Remote, ours: procfs.Status) -> Errands:
        batch = remote.batch()
        ended.restore(self.saved.leader.thread_core, ours, batch)
        yield Calls(remote, batch)

    def arm(self) -> Errands:
        """Last of all, what would go off, or what others see."""
        saved = self.saved
        batch = self._batch()
        mm.restore_dumpable(saved.mm, batch)
        task_timers = saved.leader.tc.timers
        timers.create(task_timers, batch, restore_ids=features.timer_cr_ids())
        for signo in self._room.signals_of_ends(saved):  # children have ended, or stopped, for us
            signals.forget(signo, batch)
        free = {tid: self._free(tid) for tid in self._remotes}
        counted = timers.counted(task_timers, saved.pid, free)
        if counted:
            yield Calls(self._leader, batch)
            yield from self._count(counted)
            batch = self._batch()
        signals.restore(saved.leader.tc.signals_s, saved.pid, None, batch)
        timers.arm(task_timers, counted, batch)
        yield Calls(self._leader, batch)

    def _free(self, tid: int) -> int:
        """Return the signals that a thread blocks for us, and that do not wait for it alone."""
        waiting = signals.mask([self.saved.cores[tid].thread_core.signals_p])
        return self._remotes[tid].blocked & ~waiting

    def _count(self, counted: timers.Counted) -> Errands:
        """Make the overrun counts of timers, before any signal waits for all threads."""
        for tid, some in counted.items():
            for at in range(0, len(some), _TIMERS_AT_ONCE):
                batch = self._remotes[tid].batch()
                timers.count(some[at : at + _TIMERS_AT_ONCE], batch)
                yield Calls(self._remotes[tid], batch)

    def await_pager(self) -> None:
        """Wait until the pager, if there is one, serves."""
        if self._lazy:
            self._lazy.wait()

    def go_home(self, *, last: bool) -> Errands:
        """Give all threads their registers; it stays stopped.

        The last one of those who share a memory takes the stub away. A first thread that is to end
        goes to the call by which it does.
        """
        saved, orders, wanted = self.saved, [], {}
        for tid in saved.lives:
            core, remote = saved.cores[tid], self._remotes[tid]
            wanted[tid] = regs.registers(core)._replace(orig_ax=NO_SYSCALL), saved.sigmask(tid)
            size = len(remote.tracee.xstate())
            remote.tracee.set_xstate(regs.xstate(core, size))
            regs.restore_tls(core, remote.tracee)
        if not saved.is_led:
            wanted[saved.pid] = ended.last_call(saved.leader, self._regs, self._gadget()), _ALL
        for tid, home in wanted.items():
            if tid != saved.pid or not last:
                orders += self._remotes[tid].going_home(*home)
        send(orders)
        if last:
            yield Leave(self._leader, *wanted[saved.pid], self._gadget())
        if not saved.is_led:
            self._end_leader()
        if self.is_stopped:
            self._stop()

    def _end_leader(self) -> None:
        """Have the first thread end, untraced: of a tracee's end its parent would hear late.

        The others are stopped, and still die with us.
        """
        pid = self.saved.pid
        self._tracees.pop(pid).detach()
        while procfs.stat(pid).state not in "ZX":
            time.sleep(_TO_STOP / 1000)

    def _gadget(self) -> Gadget:
        mem = os.open(f"/proc/{self.saved.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return find_syscall(mem, self._code)
        finally:
            os.close(mem)

    def _stop(self) -> None:
        """Have it stand still as a shell's ^Z has left it; its parent hears of it now."""
        os.kill(self.saved.pid, signal.SIGSTOP)
        for tid, tracee in self._tracees.items():
            tracee.set_sigmask(NO_SYSCALL)  # whatever is pending waits
            tracee.cont()
            while (stop := tracee.wait()).event != EVENT_STOP:
                tracee.cont(signal.SIGSTOP if stop.signo == signal.SIGSTOP else 0)
            tracee.set_sigmask(self.saved.sigmask(tid))

    def outlive_us(self) -> None:
        """Have it run, not die, should we die from now on."""
        for tracee in self._tracees.values():
            tracee.set_options(Options.SYSGOOD)

    def let_go(self) -> None:
        """Have it run, if it did; else see it stopped, or already told to go on."""
        for tracee in self._tracees.values():
            tracee.detach()
        deadline = time.monotonic() + _TO_STOP
        with suppress(NoSuchTask):  # somebody has killed it
            while self.is_stopped and time.monotonic() < deadline:
                if procfs.stat(self.saved.lives[0]).state == "T":
                    break
                time.sleep(_TO_STOP / 1000)


def clone_error(number: int, pid: int) -> CkptError:
    """Return why a task could not be made."""
    if number == errno.EEXIST:
        return PidTaken(
            f"pid {pid} is taken",
            hint="end that process first, or restore in a pid namespace of its own",
        )
    if number == errno.EPERM:
        return NotPermitted(
            number, "clone3", pid=pid, hint="run as root: a pid of one's choice takes CAP_SYS_ADMIN"
        )
    if number == errno.EINVAL:
        return KernelError(number, "clone3", pid=pid, hint="kernel.pid_max may be too low for it")
    return KernelError(number, "clone3", pid=pid)
