# SPDX-License-Identifier: Apache-2.0
"""The tasks of a restore: the root is forked by us, all others by tasks, as `pstree.plan` says.

All are traced from birth and stopped, and die with us (PTRACE_O_EXITKILL) until they are let go.
Some go before: who has ended in the image ends here, and stand-ins leave no trace.
"""

import os
import signal
import termios
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self

from ckpt import pstree
from ckpt.errors import KernelError, OptionsError, Unsupported
from ckpt.image import pb
from ckpt.image.directory import ImageDir
from ckpt.image.pages import PageReader
from ckpt.interrupt import uninterrupted
from ckpt.kernel import maps
from ckpt.kernel.arch import NO_SYSCALL, NR, Regs
from ckpt.kernel.errands import Errands, side_by_side
from ckpt.kernel.ffi import ffi, lib
from ckpt.kernel.ptrace import WALL, Options, Tracee, reap
from ckpt.kernel.remote import Remote, quiet_signal
from ckpt.kernel.subreaper import Subreaper
from ckpt.kernel.witness import Witness
from ckpt.memory import vdso
from ckpt.memory.handover import Daemon
from ckpt.options import RestoreOptions
from ckpt.pstree import Do, Item, State, Step
from ckpt.rebuild import Origin, Room, Task, clone_error
from ckpt.saved import Files, Saved
from ckpt.task import ending

_CLONE_VM, _CLONE_FS, _CLONE_FILES, _CLONE_SIGHAND = 0x100, 0x200, 0x400, 0x800
_CLONE_PARENT = 0x8000
_SHARED = {
    "files_id": _CLONE_FILES,
    "fs_id": _CLONE_FS,
    "vm_id": _CLONE_VM,
    "sighand_id": _CLONE_SIGHAND,
}
_PR_SET_CHILD_SUBREAPER = 36
_OPTIONS = Options.SYSGOOD | Options.FORK | Options.CLONE | Options.EXITKILL


class Tree:
    """The tasks; leaving the `with` block before `run` has let them go kills them all."""

    def __init__(self, saved: Saved, options: RestoreOptions, daemon: Daemon | None = None) -> None:
        root = saved.items[0]
        if not root.leads_session and not options.shell_job:
            raise OptionsError(
                f"pid {root.pid} was in session {root.sid}, whose leader is not in the image",
                hint="--shell-job puts it into this session",
            )
        self.saved, self.options, self._daemon = saved, options, daemon
        self.tasks: list[Task] = []
        """In the order in which they are made: parents first."""
        self.forking_ns = 0
        self._plan = pstree.plan(saved.items)
        self._shares = _shared(self._plan, saved)
        self._remotes: dict[int, Remote] = {}
        # By pid: who has still its maker's memory, and who has its own; what those have from their
        # makers who never get any.
        self._empty: dict[int, Task] = {}
        self._made: dict[int, Task] = {}
        self._bare: dict[int, Origin] = {}
        self._readers: dict[int, PageReader] = {}
        self._room: Room
        self._regs: Regs
        self._started = False

    def __enter__(self) -> Self:
        # Orphans of a tree that fails are ours to wait for, then; those of a sibling are not.
        several = len(self._shares) > 1
        self._reaper = Subreaper(wanted=several and not self.options.sibling)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self.tasks:
            task.close(ok=self._started)
        if not self._started:
            self._kill()
        self._reaper.close()

    def _kill(self) -> None:
        """Kill all that was made, parents first: so the ends of all are told to us."""
        for pid in self._remotes:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in self._remotes:
            task = self.saved.tasks.get(pid)
            # A thread that clone3 made before it failed for another is ours to reap, too.
            for tid in (*task.tids[1:], pid) if task else (pid,):
                reap(tid)

    @property
    def pages(self) -> int:
        """How many pages were read into memory."""
        return sum(task.pages + task.shared_pages for task in self.tasks)

    @property
    def compared(self) -> int:
        """How many pages were compared with those of a maker."""
        return sum(task.compared for task in self.tasks)

    @property
    def inherited(self) -> int:
        """How many were the same, and are shared."""
        return sum(task.inherited for task in self.tasks)

    @property
    def late_pages(self) -> int:
        """How many are left to pagers."""
        return sum(task.late_pages for task in self.tasks)

    # --- the steps

    def begin(self, readers: dict[int, PageReader]) -> None:
        """Fork the root."""
        self._readers = readers
        ours = maps.maps("self")
        self._room = Room(self.saved, [(entry.start, entry.end) for entry in ours])
        since = time.monotonic_ns()
        root = self.saved.items[0]
        self._fork_root(root.pid)
        self.forking_ns = time.monotonic_ns() - since
        self._take(root, Origin(vdso.ours(ours)))

    def grow(self, files: Files, image: ImageDir) -> None:
        """Give the root its memory, then have every task forked, with its own.

        Who is forked is given its memory before it forks others itself, or with all at the end.
        """
        fill = partial(self._fill, files, image)
        for step in self._plan:
            match step.do:
                case Do.FORK | Do.ORPHAN if step.by:
                    if step.by in self._empty:
                        fill()
                    with uninterrupted():  # or one that was made would not be known
                        self._fork(step)
                case Do.SETSID:
                    self._lead_session(step.item, files)
                case Do.SETPGID:
                    self._call(step.item.pid, NR.setpgid, 0, step.by)
                case Do.END:
                    self._end(step.item)
        fill()
        self._set_foreground(files)
        for task in self.tasks:
            task.leave_to_pager(files, self._readers[task.saved.memory_of])
        if self._daemon:
            for pid in self.saved.dead:
                self._daemon.pass_over(pid)

    def _fork_root(self, pid: int) -> None:
        flags = _CLONE_PARENT if self.options.sibling else 0
        lifeline = os.pipe2(os.O_CLOEXEC)
        try:
            ret = lib.core_clone_paused(flags, ffi.new("int32_t[]", [pid]), 1, lifeline)
            if ret < 0:
                raise clone_error(-ret, pid)
            tracee = Tracee(pid, _OPTIONS)
            self._adopt(tracee)
            tracee.interrupt()
            tracee.wait()
        finally:
            os.close(lifeline[1])
            os.close(lifeline[0])
        self._regs = tracee.regs()._replace(orig_ax=NO_SYSCALL)

    def _fork(self, step: Step) -> None:
        """Have a task fork another: for itself, for its parent, or as an orphan."""
        item, since = step.item, time.monotonic_ns()
        flags = self._shares[item.pid]
        if step.do is Do.ORPHAN:
            self._fork_orphan(step)
        elif step.by == item.ppid:
            self._clone(self._remotes[step.by], item.pid, flags, self.saved.exit_signal(item.pid))
        else:  # a sibling has its maker's exit signal
            self._check_signal(item.pid, step.by)
            self._clone(self._remotes[step.by], item.pid, flags | _CLONE_PARENT, 0)
        self.forking_ns += time.monotonic_ns() - since
        if flags & _CLONE_VM:
            self._take_sharer(item, self._made[step.by])
        else:
            self._take(item, self._origin(step.by))

    def _check_signal(self, pid: int, maker: int) -> None:
        mine, its = (self.saved.exit_signal(one) for one in (pid, maker))
        if mine != its:
            raise Unsupported(
                f"pid {pid} ends with signal {mine} for its parent, and pid {maker}, which has to "
                f"make it, with {its}: not restored yet"
            )

    def _fork_orphan(self, step: Step) -> None:
        """Have a child of a task fork another, and end: its nearest subreaper is the new parent."""
        item, maker = step.item, self._remotes[step.by]
        self._call(item.ppid, NR.prctl, _PR_SET_CHILD_SUBREAPER, 1)
        between = self._clone(maker, 0, 0, signal.SIGCHLD)
        self._clone(self._remotes[between], item.pid, 0, signal.SIGCHLD)
        ending.end(self._remotes[between], self._regs, pb.task_core_entry())
        self._call(step.by, NR.wait4, between, 0, WALL, 0)
        del self._remotes[between]
        self._call(item.ppid, NR.prctl, _PR_SET_CHILD_SUBREAPER, 0)

    def _clone(self, maker: Remote, pid: int, flags: int, exit_signal: int) -> int:
        """Have a task make another, of this pid if it is not 0; returns the pid."""
        batch = maker.batch()
        wanted = batch.data(pid.to_bytes(4, "little")).address if pid else 0
        # struct clone_args: flags pidfd child_tid parent_tid exit_signal stack stack_size tls
        # set_tid set_tid_size cgroup
        words = [flags, 0, 0, 0, exit_signal, 0, 0, 0, wanted, int(pid > 0), 0]
        args = batch.data(b"".join(word.to_bytes(8, "little") for word in words))
        made = batch.call(NR.clone3, args, len(words) * 8, must=True, fork=True)
        try:
            maker.run(batch, self._regs, 0)
        except KernelError as error:
            raise clone_error(error.errno or 0, pid) from error
        self._adopt(Tracee.born(made.ret, maker.tracee))
        return made.ret

    def _adopt(self, tracee: Tracee) -> None:
        pid = tracee.tid
        task = self.saved.tasks.get(pid)
        slot, pending = (self._room.leader(task), task.pending()) if task else (None, 0)
        signo = quiet_signal(0, pending)
        self._remotes[pid] = Remote(tracee, pid, slot or self._room.thread(), signo=signo)

    def _take(self, item: Item, origin: Origin) -> None:
        """Take note of a task that was forked; who is only to end stays as it is."""
        if item.state is not State.ALIVE:
            self._bare[item.pid] = origin
            return
        self._empty[item.pid] = self._task(item.pid, origin)

    def _take_sharer(self, item: Item, maker: Task) -> None:
        """Take note of a task whose memory is there, as it is its maker's."""
        self._made[item.pid] = task = self._task(item.pid, maker.origin)
        task.share(maker)

    def _task(self, pid: int, origin: Origin) -> Task:
        saved, remote = self.saved.tasks[pid], self._remotes[pid]
        task = Task(saved, self.options, remote, self._room, self._regs, origin, self._daemon)
        self.tasks.append(task)
        return task

    def _origin(self, pid: int) -> Origin:
        """Return what forks of a task have from it."""
        return self._bare[pid] if pid in self._bare else self._made[pid].origin

    def _fill(self, files: Files, image: ImageDir) -> None:
        """Empty the tasks that were forked since, and give them their own memory."""
        tasks = list(self._empty.values())
        self._empty.clear()
        readers = self._readers
        self._together(task.begin(files, readers[task.saved.memory_of]) for task in tasks)
        for task in tasks:
            task.join_namespaces(image)
            self._made[task.saved.pid] = task
        self._together(task.map(files, readers[task.saved.memory_of]) for task in tasks)

    def _together(self, steps: Iterable[Errands]) -> None:
        side_by_side(steps, self._regs)

    def _call(self, pid: int, nr: NR, *args: int) -> None:
        batch = self._remotes[pid].batch()
        batch.call(nr, *args, must=True)
        self._remotes[pid].run(batch, self._regs, 0)

    def _end(self, item: Item) -> None:
        """Have a task end, as its record says; only its parent has still to hear of it."""
        remote, core = self._remotes[item.pid], self.saved.dead.get(item.pid)
        ending.end(remote, self._regs, core.tc if core else pb.task_core_entry())
        if item.state is State.STAND_IN:
            self._call(item.ppid, NR.wait4, item.pid, 0, WALL, 0)

    def _lead_session(self, item: Item, files: Files) -> None:
        """Have it lead a session and take its terminal, which it hands on to whom it forks."""
        self._call(item.pid, NR.setsid)
        terminal = files.terminals.get(item.pid)
        if terminal and item.state is State.ALIVE:
            self._call(item.pid, NR.ioctl, terminal.fd, termios.TIOCSCTTY, 0)

    def _set_foreground(self, files: Files) -> None:
        """Say which groups are in the foreground, now that all are there; one may be gone."""
        for session, terminal in files.terminals.items():
            if remote := self._remotes.get(session):
                batch = remote.batch()
                group = batch.data(terminal.foreground.to_bytes(4, "little"))
                batch.call(NR.ioctl, terminal.fd, termios.TIOCSPGRP, group)
                remote.run(batch, self._regs, 0)

    def become(self, files: Files) -> None:
        """Have all take on what is each process's own, and make their threads."""
        shares = self._shares
        self._together(
            task.become(
                files,
                shares_fs=bool(shares[task.saved.pid] & _CLONE_FS),
                shares_actions=bool(shares[task.saved.pid] & _CLONE_SIGHAND),
            )
            for task in self.tasks
        )
        self._together(task.make_threads() for task in self.tasks)

    def open(self, files: Files) -> None:
        """Put all descriptors in their places, close ours, and connect what hangs on numbers."""
        own = [task for task in self.tasks if not self._shares[task.saved.pid] & _CLONE_FILES]
        alone = [task for task in own if files.table(task.saved).opens_inside]
        for task in alone:  # one may have it from another
            self._together([task.place(files)])
        self._together(task.place(files) for task in own if task not in alone)
        files.close(ok=True)
        self._together(task.connect(files) for task in self.tasks)

    def finish(self) -> None:
        """Make every thread what it was."""
        self._together(task.install_filters() for task in self.tasks)
        self._together(step for task in self.tasks for step in task.finish())

    def run(self, ready: Callable[[int], None]) -> None:
        """Give all threads their registers, take the stub away, call ready(pid), let them go."""
        for task in self.tasks:
            task.await_pager()
        stopped = [task for task in reversed(self.tasks) if task.is_stopped]
        running = [task for task in self.tasks if not task.is_stopped]
        # Who is the last in a memory to go home takes the stub away.
        last = {task.saved.memory_of: task for task in [*stopped, *running]}.values()
        self._stop(stopped, last)
        self._together(task.arm() for task in running)
        self._together(task.go_home(last=task in last) for task in running)
        self._room.segment.close()
        if self._daemon:
            self._daemon.finish()
        ready(self.saved.pid)
        for task in self.tasks:
            task.close_namespaces(ok=True)
        try:
            with uninterrupted():
                self._let_go()
        except KeyboardInterrupt:
            if not self._started:
                raise  # else it is too late

    def _stop(self, tasks: Iterable[Task], last: Collection[Task]) -> None:
        """Have those stop who were: their parents are told, and forget that when they are armed."""
        for task in tasks:
            self._together([task.arm()])
            self._together([task.go_home(last=task in last)])

    def _let_go(self) -> None:
        """Let all go, or none: if we die on the way, what becomes of one becomes of all."""
        if len(self.tasks) > 1:
            with Witness(task.saved.pid for task in self.tasks) as witness:
                for task in self.tasks:
                    task.outlive_us()
                witness.all_is_well()
        self._started = True
        for task in reversed(self.tasks):  # who runs finds all below him as they were
            task.let_go()


def _shared(plan: list[Step], saved: Saved) -> dict[int, int]:
    """Return what each task shares with its maker, as flags of clone(2).

    Raises Unsupported if it shares with another one that is there before it.
    """
    flags = {step.item.pid: 0 for step in plan if step.do in (Do.FORK, Do.ORPHAN)}
    for field, flag in _SHARED.items():
        ids = {pid: getattr(task.ids, field) for pid, task in saved.tasks.items()}
        first: dict[int, int] = {}
        for do, item, by in plan:
            if do not in (Do.FORK, Do.ORPHAN) or item.pid not in ids:
                continue
            mine = ids[item.pid]
            if do is Do.FORK and ids.get(by) == mine:
                flags[item.pid] |= flag
            elif mine in first:
                raise Unsupported(
                    f"pid {item.pid} shares {field} with pid {first[mine]}, which cannot make it: "
                    "not restored yet"
                )
            first.setdefault(mine, item.pid)
    return flags
