# SPDX-License-Identifier: Apache-2.0
"""A child of the process that is dumped, ours from birth; and how it goes without a trace.

It never runs the program. Its first instruction is the stub's, and there it ends by itself if its
tracer is gone. It is cloned without an exit signal, so that no wait() of the process finds it and
no SIGCHLD tells of its end; but its parent has to wait for it all the same, with __WALL, for it to
be gone. So when we are done the process is stopped once more, for that one call. Should we be
killed before, the child dies with us, and another process of ours does that errand.
"""

import errno
import os
import select
import signal
import time
from collections.abc import Sequence
from contextlib import suppress

from ckpt.errors import NoSuchTask, NotPermitted
from ckpt.freeze import Frozen
from ckpt.guard import Ward
from ckpt.infect import Errand
from ckpt.interrupt import uninterrupted
from ckpt.kernel.arch import NO_SYSCALL, NR
from ckpt.kernel.pidfd import pidfd_open
from ckpt.kernel.ptrace import WALL, Options, Tracee, reap
from ckpt.kernel.remote import Batch, Call, Remote, Slot
from ckpt.kernel.way import way_to
from ckpt.memory.layout import Range
from ckpt.sandbox import Sandbox

_CLONE_FILES, _UNSHARE = 0x400, 2
_CLONE_ARGS = 11  # words of struct clone_args
_PATIENCE = 10.0
CALLS = (NR.clone3, NR.wait4, NR.exit_group)
"""What the process has to call for it."""


def ask(batch: Batch) -> Call:
    """Add the call that makes a child; it shares the descriptors, which takes no time."""
    words = [_CLONE_FILES] + [0] * (_CLONE_ARGS - 1)
    args = batch.data(b"".join(word.to_bytes(8, "little") for word in words))
    return batch.call(NR.clone3, args, len(words) * 8, must=True, fork=True)


class Child:
    """The child: stopped, traced, without descriptors, and dying with us."""

    def __init__(self, pid: int, slot: Slot, maker: Remote) -> None:
        self.pid = pid
        self._tracee = Tracee.born(pid, maker.tracee)
        self._tracee.set_options(
            self._tracee.options & ~(Options.CLONE | Options.EXIT) | Options.EXITKILL
        )
        self._regs = self._tracee.regs()._replace(orig_ax=NO_SYSCALL)
        self._remote = Remote(self._tracee, pid, slot, signo=maker.signo)
        self._remote.born()

    def begin(self) -> None:
        """Close all its descriptors: until here they are the process's own table."""
        batch = self._remote.batch()
        batch.call(NR.close_range, 0, 0xFFFFFFFF, _UNSHARE, must=True)
        self._run(batch)
        # When memory gets short, it should go before the process does.
        with suppress(OSError), open(f"/proc/{self.pid}/oom_score_adj", "w") as file:
            file.write("1000")

    def _run(self, batch: Batch) -> None:
        self._remote.run(batch, self._regs, 0)

    def forget(self, call: NR, ranges: list[Range], *more: int) -> None:
        """Have it call(start, length, *more) for all ranges; raises TargetDied if it is dead."""
        batch = self._remote.batch()
        for start, length in ranges:
            if not batch.fits(1):
                self._run(batch)
                batch = self._remote.batch()
            batch.call(call, start, length, *more)
        self._run(batch)


def kill(child: int) -> None:
    """Kill a child, and see it dead; it stays the zombie of its parent."""
    os.kill(child, signal.SIGKILL)
    reap(child)


def bury(
    pid: int,
    child: int,
    stub: Range | None = None,
    guard: Ward | None = None,
    sandbox: Sandbox | None = None,
    sharers: Sequence[int] = (),
) -> None:
    """Have a process wait for a child that no wait() of its own finds, as soon as that is dead.

    stub is a segment that may have been left attached in it, to be detached as well. The sharers
    have its memory, too, and are stopped with it.
    """
    with suppress(NoSuchTask):  # the process has ended: the child is init's
        _await_end(child)
        while not _has_buried(pid, child, stub or (0, 0), guard, sandbox, sharers):
            time.sleep(0.001)


def _has_buried(
    pid: int,
    child: int,
    stub: Range,
    guard: Ward | None,
    sandbox: Sandbox | None,
    sharers: Sequence[int],
) -> bool:
    """Do it, unless the thread is in the stub, from where it goes home, or the guard is at work."""
    with (
        suppress(NotPermitted),  # the guard traces it just now
        uninterrupted(),  # or their segment would stay
        Errand(way_to(pid), guard, sandbox, CALLS) as errand,
        Frozen(pid, [[one] for one in sharers]) as frozen,
    ):
        one = frozen.leader
        if any(stub[0] <= place < stub[1] for place in (one.regs.ip, one.regs.sp)):
            return False
        with errand.lent(frozen) as visit:
            remote = visit.remote
            batch = remote.batch()
            batch.call(NR.wait4, child, 0, WALL | os.WNOHANG, 0)
            if stub[0]:
                batch.call(NR.shmdt, stub[0])
            remote.infect(one.regs, one.sigmask, errand.gadget, batch)
        return True
    return False


def _await_end(pid: int) -> None:
    pidfd = pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(_PATIENCE * 1000)
    finally:
        os.close(pidfd)


class Undertaker:
    """A process of ours that buries the child if we are killed; it waits for nothing else."""

    def __init__(
        self, pid: int, slot: Slot, clone: Call, stub: Range, sharers: Sequence[int]
    ) -> None:
        reader, self._writer = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if not self._pid:
            try:
                os.setsid()
                os.closerange(0, reader)
                os.closerange(reader + 1, 1 << 30)
                if not os.read(reader, 1):
                    self._work(pid, slot, clone, stub, sharers)
            finally:
                os._exit(0)
        os.close(reader)

    @staticmethod
    def _work(pid: int, slot: Slot, clone: Call, stub: Range, sharers: Sequence[int]) -> None:
        """Bury it, once we know it: the call may be still on its way, if it was set off to."""
        deadline = time.monotonic() + _PATIENCE
        while clone.ret == -errno.EINPROGRESS and slot.was_used and time.monotonic() < deadline:
            time.sleep(0.001)
        if clone.ret > 0:
            bury(pid, clone.ret, stub, sharers=sharers)

    def dismiss(self) -> None:
        """Send it away."""
        with suppress(BrokenPipeError):
            os.write(self._writer, b".")
        os.close(self._writer)
        os.waitpid(self._pid, 0)
