# SPDX-License-Identifier: Apache-2.0
"""Stop all threads of processes together, and let them go again whatever happens.

A thread that stops in a system call is at once given registers with which it goes on by itself
(`task.restart`), so that from then on our death costs it nothing.
"""

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self

from ckpt.errors import NoSuchTask, NotPermitted, TargetDied
from ckpt.interrupt import uninterrupted
from ckpt.kernel import procfs
from ckpt.kernel.arch import NO_SYSCALL, Regs
from ckpt.kernel.ffi import ffi
from ckpt.kernel.glance import Glance, Seen
from ckpt.kernel.latency import Awake
from ckpt.kernel.ptrace import (
    EVENT_EXEC,
    EVENT_EXIT,
    EVENT_STOP,
    SYSCALL_STOP,
    Options,
    Stop,
    Tracee,
    await_any,
    has_heard,
    hear,
    reap,
)
from ckpt.kernel.threads import Order, Roll, State, Then, send
from ckpt.task.restart import Resumption, Sleep, Sleeps, Wait, is_urgent, resumption, wait_of

_PAUSE = 50e-6
# A thread that executes a program has the first one's id from then on, and nothing is told of its
# own; nor is it told when the first one has ended before the others.
_EXEC = Options.SYSGOOD | Options.EXEC
_EXIT = _EXEC | Options.EXIT
_GROUP_STOPS = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}


class FrozenThread:
    """A stopped thread: its tracee, what it is, and how it goes on, here and in the image.

    since is when it was stopped, CLOCK_MONOTONIC in ns; earlier what its last stop had interrupted.
    """

    __slots__ = ("_earlier", "_since", "_sleep", "_way", "state", "stop_signal", "tid", "tracee")

    def __init__(
        self, tracee: Tracee, stop_signal: int, state: State, since: int, earlier: Wait | None
    ) -> None:
        self.tracee, self.tid = tracee, tracee.tid
        self.stop_signal, self.state = stop_signal, state
        self._since, self._earlier = since, earlier
        self._sleep: Sleep | None = None
        self._way: Resumption | None = None

    def see_to(self, sleep: Sleep | None, seen: Seen) -> None:
        """See that it can go on from here; sleep is what it was in, seen what a glance has told."""
        self._sleep = sleep
        if not self._way and is_urgent(self.state):
            self._way = self._resumption(seen)

    def _resumption(self, seen: Seen | None = None) -> Resumption:
        return resumption(self.tracee, self.state, self._sleep, self._since, self._earlier, seen)

    @property
    def resumption(self) -> Resumption:
        """How it goes on; to be asked for before its memory is taken, where a time is put."""
        if not self._way:
            self._way = self._resumption()
        return self._way

    @property
    def wait(self) -> Wait | None:
        """The call that its stop has interrupted, if restart_syscall(2) is to go on with it."""
        return (
            self._way.wait
            if self._way
            else wait_of(self.state, self._sleep, self._since, self._earlier)
        )

    @property
    def sigmask(self) -> int:
        """Its blocked signals."""
        return self.state.sigmask

    @property
    def regs(self) -> Regs:
        """The registers that it goes on with here, by way of `arch.home`."""
        return self._way.regs if self._way else self.state.regs

    @property
    def raw_regs(self) -> bytes:
        """The same, as the kernel has them."""
        return self._way.regs.pack() if self._way else self.state.raw

    def call_again(self) -> None:
        """Have it make a call again, as in the image, that restart_syscall(2) would go on with."""
        if self.resumption.wait:
            again = self.resumption.image._replace(orig_ax=NO_SYSCALL)
            self.tracee.set_regs(again)
            self._way = Resumption(again, self.resumption.image)


class FrozenProcess:
    """A process of those that are stopped; its threads, the one by which it is reached first."""

    __slots__ = ("pid", "threads")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.threads: list[FrozenThread] = []

    @property
    def leader(self) -> FrozenThread:
        """The thread by which it is reached: the first one, if that has not ended."""
        return self.threads[0]

    def is_led_by(self, tid: int) -> bool:
        """Have a thread be the one by which it is reached, if that is there and stopped."""
        if self.leader.tid != tid:
            self.threads.sort(key=lambda thread: thread.tid != tid)
        return self.leader.tid == tid


def _has_more(process: FrozenProcess, seen: Seen) -> bool:
    """Say whether a process has made threads after we looked for them.

    A first thread that has ended counts as well, as long as others live.
    """
    count = procfs.thread_count(seen.read(process.leader.tid, "status"))
    return count != len(process.threads) + (process.leader.tid != process.pid)


class Frozen:
    """Processes that are stopped as long as the `with` block lasts, unless they are killed in it.

    pid is the root of a tree; below are its descendants, generation by generation. They are stopped
    in this order: who has called vfork(2) stops when its child executes, so that has to run. Who
    has ended meanwhile is not among the processes. earlier are the waits of a stop before this one.
    glance is begun when all have stopped: `seen` is to be called then. frozen_ns is how long they
    were stopped, freezing_ns how long it took until the last thread had stopped. Raises
    NoSuchTask, NotPermitted (traced by somebody else), TargetDied.
    """

    def __init__(
        self,
        pid: int,
        below: Iterable[Iterable[int]] = (),
        earlier: dict[int, Wait] | None = None,
        glance: Glance | None = None,
    ) -> None:
        self.pid, self._glance = pid, glance
        self._generations = [[FrozenProcess(one) for one in pids] for pids in ([pid], *below)]
        self.processes: dict[int, FrozenProcess] = {}
        self._earlier = earlier or {}
        self.freezing_ns = self.frozen_ns = 0
        self._since = 0
        self._seized: dict[int, Tracee] = {}
        self._process: dict[int, FrozenProcess] = {}  # by tid
        self._leaving: dict[int, Tracee] = {}
        """First threads that have begun to end: nothing more may be told of them."""
        self._sleeps = Sleeps(glance)
        self._ready = ffi.NULL
        self._awake: Awake | None = None
        self._policy: tuple[int, os.sched_param] | None = None

    def __enter__(self) -> Self:
        try:
            rolls = [Roll(self._seize(generation)) for generation in self._generations]
            self._sleeps.look(self._seized)
            self._see_who_leaves(self._seized)
            if self._glance:
                self._ready = self._glance.ready()
            self._hurry()
            self._since = time.monotonic_ns()
            with uninterrupted():
                for generation, roll in zip(self._generations, rolls, strict=True):
                    self._stop(roll, generation, last=roll is rolls[-1], told=bool(self._glance))
                if not self._glance:
                    self._see_to(self._sleeps.glance.look())
            self.freezing_ns = time.monotonic_ns() - self._since
        except BaseException:
            self.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def add(self, pids: Iterable[int]) -> None:
        """Stop others as well: children that there were not when we looked."""
        new = [FrozenProcess(pid) for pid in pids]
        fresh = self._seize(new)
        self._see_who_leaves(one.tid for one in fresh)
        self._stop(Roll(fresh), new)
        self._see_to(Seen())
        self.freezing_ns = time.monotonic_ns() - self._since

    def seen(self) -> Seen:
        """Return what the glance has told since all have stopped."""
        assert self._glance
        seen = self._glance.seen()
        while more := self._seize(one for one in self.processes.values() if _has_more(one, seen)):
            self._ready = self._glance.ready()
            self._stop(Roll(more), [*self.processes.values()], last=True, told=True)
            seen = self._glance.seen()
        self._see_to(seen)
        return seen

    def _see_to(self, seen: Seen) -> None:
        for process in self.processes.values():
            for one in process.threads:
                one.see_to(self._sleeps.still(one.tid, seen), seen)

    @property
    def waits(self) -> dict[int, Wait]:
        """What this stop has interrupted and the kernel goes on with, for the next stop."""
        everybody = [one for process in self.processes.values() for one in process.threads]
        found = {one.tid: one.wait for one in everybody}
        return {tid: wait for tid, wait in found.items() if wait}

    @property
    def threads(self) -> list[FrozenThread]:
        """The root's threads, the one by which it is reached first."""
        return self.processes[self.pid].threads

    @property
    def leader(self) -> FrozenThread:
        """The thread by which the root is reached."""
        return self.threads[0]

    def _seize(self, processes: Iterable[FrozenProcess]) -> list[Tracee]:
        """Seize the threads that are not yet; those and whole processes may end at any time."""
        fresh = []
        for process in processes:
            with suppress(NoSuchTask):
                tids = procfs.threads(process.pid)
                for tid in tids:
                    first = tid == process.pid
                    options = Options.SYSGOOD if len(tids) == 1 else _EXIT if first else _EXEC
                    if tid not in self._seized and (tracee := self._seize_one(tid, options)):
                        self._process[tid] = process
                        fresh.append(tracee)
        return fresh

    def _seize_one(self, tid: int, options: Options) -> Tracee | None:
        try:
            self._seized[tid] = Tracee(tid, options)
            self._leaving.pop(tid, None)
        except NoSuchTask:
            return None
        except NotPermitted:  # so it is for who has ended and was not waited for, too
            if procfs.is_ending(tid):
                return None
            if tid not in self._leaving:
                raise
            self._seized[tid] = self._leaving.pop(tid)  # another has executed, and is the first now
        return self._seized[tid]

    def _see_who_leaves(self, tids: Iterable[int]) -> None:
        """Find the first threads that had begun to end before they could tell."""
        for tid in tids:
            tracee = self._seized[tid]
            if Options.EXIT in tracee.options and procfs.is_ending(tid):
                self._leaving[tid] = tracee

    def _poll(self, tracee: Tracee) -> Stop | None:
        stop = tracee.poll()
        if stop and stop.event == EVENT_EXIT:
            self._leaving[tracee.tid] = tracee
        return stop

    def _has_left(self, tracee: Tracee) -> bool:
        """Say whether a first thread has ended by now, and take note of it; it may take a while."""
        if procfs.is_zombie(tracee.tid):
            self._seized.pop(tracee.tid, None)
            return True
        time.sleep(_PAUSE)
        return False

    def _stop(
        self,
        roll: Roll,
        processes: list[FrozenProcess],
        *,
        last: bool = False,
        told: bool = False,
    ) -> None:
        """Stop every thread of processes, and those that they have made meanwhile.

        With last the glance begins when they have stopped; with told it tells who has made more.
        """
        self.processes.update((process.pid, process) for process in processes)
        while roll.tracees:
            self._await_all(roll, last=last)
            roll = Roll([] if told else self._seize(processes))
        for process in processes:
            self._check(process)

    def _check(self, process: FrozenProcess) -> None:
        """See that there is a thread, the first one ahead; a child that has ended is left out."""
        pid = process.pid
        process.threads.sort(key=lambda thread: thread.tid != pid)
        if process.threads:
            return
        if pid == self.pid:
            raise NoSuchTask(f"pid {pid}: it has ended")
        del self.processes[pid]

    def _await_all(self, roll: Roll, *, last: bool) -> None:
        """Wait for the stops we asked for."""
        glance = self._glance if last else None
        stopped = dict.fromkeys(roll.tracees, 0)
        unusual = has_heard() or self._leaving
        if unusual or not roll.stop(self._ready if glance else ffi.NULL):
            stopped = self._await_each(roll.tracees)
            if glance:
                glance.begin()
            roll = Roll([*stopped])
            roll.take()
        elif glance:
            glance.begun()
        for (tracee, signo), state in zip(stopped.items(), roll.states(), strict=True):
            one = FrozenThread(tracee, signo, state, self._since, self._earlier.get(tracee.tid))
            self._process[tracee.tid].threads.append(one)

    def _await_each(self, fresh: list[Tracee]) -> dict[Tracee, int]:
        """Wait for stops of which one or another is for something else first.

        They come in no order: a thread that executes a program waits until we have taken note of
        the end of all the others (de_thread in fs/exec.c).
        """
        stopped: dict[Tracee, int] = {}
        interrupt = True
        while fresh:
            hear((one for one in fresh if one.tid not in self._leaving), interrupt=interrupt)
            interrupt = False
            signals = {tracee: self._stopped_by(tracee) for tracee in fresh}
            stopped |= {tracee: signo for tracee, signo in signals.items() if signo is not None}
            fresh = [one for one in fresh if one not in stopped and one.tid in self._seized]
            for process in self.processes.values():
                process.threads = [one for one in process.threads if not self._is_dead(one.tracee)]
        return stopped

    def _is_dead(self, tracee: Tracee) -> bool:
        """Say whether a thread is no more, and take note of it."""
        try:
            self._poll(tracee)
        except (TargetDied, NoSuchTask):
            self._seized.pop(tracee.tid, None)
            return True
        return not tracee.stopped and tracee.tid in self._leaving and self._has_left(tracee)

    def _stopped_by(self, tracee: Tracee) -> int | None:
        """Return the signal of the group stop that a thread is in, 0 if it has stopped for us.

        None if it has not, or is no more; signals that come first it gets.
        """
        try:
            stop = self._poll(tracee)
            if stop and stop.event == EVENT_EXEC:
                self._leaving.pop(tracee.tid, None)
                tracee.interrupt()  # any stop takes back what we had asked for before
            if stop and stop.event not in (EVENT_STOP, EVENT_EXIT):
                tracee.cont(0 if stop.event or stop.signo == SYSCALL_STOP else stop.signo)
        except (TargetDied, NoSuchTask):
            del self._seized[tracee.tid]
            return None
        if not stop or stop.event != EVENT_STOP:
            if tracee.tid in self._leaving:
                self._has_left(tracee)
            return None
        return stop.signo if stop.signo in _GROUP_STOPS else 0

    def _hurry(self) -> None:
        """Come before all ordinary tasks: while we wait for a CPU, the process stands still."""
        self._awake = Awake()
        self._policy = os.sched_getscheduler(0), os.sched_getparam(0)
        with suppress(OSError):  # without the right to it, we take our turn
            os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))

    def calm(self) -> None:
        """Take turns again: what comes now takes long, and others need the CPU."""
        if self._awake:
            self._awake.close()
        if self._policy:
            with suppress(OSError):
                os.sched_setscheduler(0, *self._policy)
            self._policy = None

    def release(self) -> None:
        """Let all threads go; does nothing the second time."""
        seized = [*self._seized.values()]
        running = [tracee for tracee in seized if not tracee.stopped]
        if running:
            self._stop_again(running)
        with suppress(NoSuchTask):
            send(Order(tracee, Then.DETACH) for tracee in seized if tracee.stopped)
        self._thawed()
        for tracee in seized:
            if tracee.stopped:  # it has been killed
                tracee.detach()
        self._seized.clear()
        self._sleeps.close()
        self.calm()

    def _stop_again(self, running: list[Tracee]) -> None:
        """Stop those that are on their way, to be let go; who has ended is left out."""
        for tracee in running:
            with suppress(NoSuchTask):
                tracee.interrupt()
        left = running
        while left := [one for one in left if not self._has_stopped(one)]:
            if any(one.tid not in self._leaving for one in left):
                await_any()

    def _has_stopped(self, tracee: Tracee) -> bool:
        return self._stopped_by(tracee) is not None or tracee.tid not in self._seized

    def _thawed(self) -> None:
        if self._since:
            self.frozen_ns = time.monotonic_ns() - self._since
            self._since = 0

    def leave_stopped(self) -> None:
        """Let them go, but into a group stop: only SIGCONT makes them run again."""
        for pid in self.processes:
            os.kill(pid, signal.SIGSTOP)
        self.release()

    def kill(self) -> None:
        """Kill the processes and see them dead."""
        for pid in self.processes:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # A leader's end is told last, when all other threads have been waited for.
        for tid in sorted({*self._seized, *self._leaving}, key=lambda tid: tid in self.processes):
            reap(tid)
        self._seized.clear()
        self._thawed()
        self._sleeps.close()
        self.calm()
