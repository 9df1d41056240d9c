# SPDX-License-Identifier: Apache-2.0
"""Stop all threads of a process together, and let them go again whatever happens.

A thread that stops in a system call is at once given registers with which it goes on by itself
(`task.restart`), so that from then on our death costs it nothing.
"""

import os
import signal
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from ckpt.errors import NoSuchTask, TargetDied
from ckpt.interrupt import uninterrupted
from ckpt.kernel import procfs
from ckpt.kernel.arch import Regs
from ckpt.kernel.ptrace import EVENT_STOP, Options, Tracee, await_any, reap
from ckpt.task.restart import Sleep, Wait, resumption, sleeps

_GROUP_STOPS = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}


class FrozenThread:
    """A stopped thread: its tracee, its signal mask, and how it goes on, here and in the image."""

    __slots__ = ("resumption", "sigmask", "stop_signal", "tracee")

    def __init__(
        self,
        tracee: Tracee,
        stop_signal: int,
        sleep: Sleep | None,
        now: int,
        earlier: Wait | None,
    ) -> None:
        self.tracee = tracee
        self.stop_signal = stop_signal
        self.sigmask = tracee.sigmask()
        self.resumption = resumption(tracee, self.sigmask, sleep, now, earlier)

    @property
    def regs(self) -> Regs:
        """The registers that it goes on with here, by way of `arch.home`."""
        return self.resumption.regs

    @property
    def tid(self) -> int:
        """The thread's id."""
        return self.tracee.tid


class Frozen:
    """A process that is stopped as long as the `with` block lasts, unless it is killed in it.

    earlier are the waits of a stop before this one. threads has the leader first. frozen_ns is how
    long it was stopped, freezing_ns how long it took until the last thread had stopped. Raises
    NoSuchTask, NotPermitted (traced by somebody else), TargetDied.
    """

    def __init__(self, pid: int, earlier: dict[int, Wait] | None = None) -> None:
        self.pid = pid
        self._earlier = earlier or {}
        self.threads: list[FrozenThread] = []
        self.freezing_ns = self.frozen_ns = 0
        self._since = 0
        self._seized: dict[int, Tracee] = {}
        self._sleeps: dict[int, Sleep] = {}
        self._policy: tuple[int, os.sched_param] | None = None

    def __enter__(self) -> Self:
        try:
            self._seize(procfs.threads(self.pid))
            self._sleeps = sleeps(list(self._seized))
            self._hurry()
            self._since = time.monotonic_ns()
            with uninterrupted():
                self._stop()
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

    @property
    def waits(self) -> dict[int, Wait]:
        """What this stop has interrupted and the kernel goes on with, for the next stop."""
        found = {one.tid: one.resumption.wait for one in self.threads}
        return {tid: wait for tid, wait in found.items() if wait}

    @property
    def leader(self) -> FrozenThread:
        """The thread whose id is the process's."""
        return self.threads[0]

    def _seize(self, tids: list[int]) -> list[Tracee]:
        fresh = []
        for tid in tids:
            if tid in self._seized:
                continue
            with suppress(NoSuchTask):  # a thread may end at any time
                self._seized[tid] = Tracee(tid, Options.SYSGOOD)
                fresh.append(self._seized[tid])
        return fresh

    def _stop(self) -> None:
        """Stop every thread, and those that they still made meanwhile."""
        fresh = list(self._seized.values())
        while fresh:
            for tracee in fresh:
                with suppress(NoSuchTask):
                    tracee.interrupt()
            self._await_all(fresh)
            fresh = self._seize(procfs.threads(self.pid))
        if not self.threads or self.leader.tid != self.pid:
            raise NoSuchTask(f"pid {self.pid}: it ended, or its first thread did")

    def _await_all(self, fresh: list[Tracee]) -> None:
        """Wait for the stops we asked for, as they come.

        In no order: a thread that executes a program waits until we have taken note of the end of
        all the others (de_thread in fs/exec.c), and the end of a first thread is told last.
        """
        while left := [tracee for tracee in fresh if not self._has_stopped(tracee)]:
            self.threads = [one for one in self.threads if not self._is_dead(one.tracee)]
            if len(left) == len(fresh):
                await_any()
            fresh = left

    def _living(self) -> list[Tracee]:
        return [tracee for tracee in [*self._seized.values()] if not self._is_dead(tracee)]

    def _is_dead(self, tracee: Tracee) -> bool:
        """Say whether a thread is no more, and take note of it."""
        try:
            tracee.poll()
        except (TargetDied, NoSuchTask):
            del self._seized[tracee.tid]
            return True
        return False

    def _has_stopped(self, tracee: Tracee) -> bool:
        """Say whether a thread has stopped, or is no more; signals that come first it gets."""
        try:
            stop = tracee.poll()
            if stop and stop.event != EVENT_STOP:
                tracee.cont(0 if stop.event else stop.signo)
        except (TargetDied, NoSuchTask):
            del self._seized[tracee.tid]
            return True
        if not stop or stop.event != EVENT_STOP:
            return False
        group_stop = stop.signo if stop.signo in _GROUP_STOPS else 0
        sleep, now = self._sleeps.get(tracee.tid), self._since
        earlier = self._earlier.get(tracee.tid)
        self.threads.append(FrozenThread(tracee, group_stop, sleep, now, earlier))
        self.threads.sort(key=lambda thread: thread.tid != self.pid)
        return True

    def _hurry(self) -> None:
        """Come before all ordinary tasks: while we wait for a CPU, the process stands still."""
        self._policy = os.sched_getscheduler(0), os.sched_getparam(0)
        with suppress(OSError):  # without the right to it, we take our turn
            os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))

    def calm(self) -> None:
        """Take turns again: what comes now takes long, and others need the CPU."""
        if self._policy:
            with suppress(OSError):
                os.sched_setscheduler(0, *self._policy)
            self._policy = None

    def release(self) -> None:
        """Let all threads go; does nothing the second time."""
        for tracee in self._seized.values():
            if not tracee.stopped:
                with suppress(NoSuchTask):
                    tracee.interrupt()
        while not all(tracee.stopped for tracee in self._living()):
            await_any()
        for tracee in self._seized.values():
            tracee.detach()
        self._seized.clear()
        self._thawed()
        self.calm()

    def _thawed(self) -> None:
        if self._since:
            self.frozen_ns = time.monotonic_ns() - self._since
            self._since = 0

    def leave_stopped(self) -> None:
        """Let the process go, but into a group stop: only SIGCONT makes it run again."""
        os.kill(self.pid, signal.SIGSTOP)
        self.release()

    def kill(self) -> None:
        """Kill the process and see it dead."""
        os.kill(self.pid, signal.SIGKILL)
        # The leader's end is told last, when all other threads have been waited for.
        for tid in sorted(self._seized, key=lambda tid: tid == self.pid):
            reap(tid)
        self._seized.clear()
        self._thawed()
        self.calm()
