# SPDX-License-Identifier: Apache-2.0
"""The seccomp filters of a process's threads, and what may be asked of a thread that has some.

While we trace a thread its filters are suspended, so it answers whatever it is asked. Should we die
meanwhile, they count again for the next call that it makes on its way home; one that may only
fail does no harm there, one that it would be killed for does. So a thread is asked nothing that its
filters answer worse than by an error. That is seen before anything is asked: filters can be read
of a stopped thread alone, so a process that has some is stopped for an instant for that.
"""

import errno
from collections.abc import Iterable
from functools import cache

from ckpt.errors import KernelError, Unsupported
from ckpt.freeze import Frozen, FrozenThread
from ckpt.kernel import procfs, seccomp
from ckpt.kernel.arch import NR
from ckpt.kernel.remote import ENTERING, Batch, Draft, Slot
from ckpt.kernel.seccomp import Chain, Pattern
from ckpt.memory import mm
from ckpt.task import process, thread
from ckpt.task.restart import Wait

_ROOM, _BASE = 64 << 10, 1 << 46


class Sandbox:
    """What filters the threads of a process have; none, mostly."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.waits: dict[int, Wait] = {}
        """What looking has interrupted."""
        self._chains: dict[int, Chain] = {}

    def look(self) -> None:
        """Find the filters. Raises Unsupported for some that make a dump a danger."""
        if not any(seccomp.of_status(_status(tid))[0] for tid in procfs.threads(self.pid)):
            return
        with Frozen(self.pid) as frozen:
            for one in frozen.threads:
                self._look_at(one, _status(one.tid))
            self.waits = frozen.waits

    def _look_at(self, one: FrozenThread, status: bytes) -> Chain:
        """Return the filters of a stopped thread; those that are known are not read again."""
        mode, count = seccomp.of_status(status)
        known = self._chains.get(one.tid, ())
        chain = seccomp.AS_STRICT if mode == seccomp.STRICT else known
        if mode == seccomp.FILTER and len(chain) != count:
            chain = _read(one)
        if chain:
            self._check(one.tid, chain)
        self._chains[one.tid] = chain
        return chain

    def _check(self, tid: int, chain: Chain) -> None:
        if seccomp.asks_others(chain):
            raise Unsupported(
                f"{self._named(tid)} has a seccomp filter that asks another process",
                hint="what a filter asks for (SECCOMP_RET_USER_NOTIF) cannot be made again",
            )
        if worst := seccomp.harmful(chain, _questions(leader=tid == self.pid)):
            raise Unsupported(
                f"{self._named(tid)} could be killed by its seccomp filter: for {_name(worst)}, "
                "which a dump has it call",
                hint="a filter that only refuses calls (SECCOMP_RET_ERRNO) does no harm",
            )

    def _named(self, tid: int) -> str:
        return f"pid {tid}" if tid == self.pid else f"thread {tid} of pid {self.pid}"

    def open(self, one: FrozenThread, status: bytes, calls: tuple[NR, ...] = ()) -> None:
        """Let a stopped thread make the calls of a dump, and these, as long as we trace it.

        Raises what look() does, and what allow() does.
        """
        if self._look_at(one, status):
            self.allow(one.tid, calls)
            one.tracee.suspend_seccomp()

    def allow(self, tid: int, calls: tuple[NR, ...]) -> None:
        """Raise KernelError (EPERM) if a thread may not be asked to make these calls."""
        chain = self._chains.get(tid, ())
        if worst := seccomp.harmful(chain, tuple(Pattern(nr) for nr in calls)):
            what = f"{_name(worst)}, for which its seccomp filter could kill it"
            raise KernelError(errno.EPERM, what, pid=tid)

    def chains(self, tids: Iterable[int]) -> dict[int, Chain]:
        """Return the filters that threads had when they were opened."""
        return {tid: self._chains.get(tid, ()) for tid in tids}


def _status(tid: int) -> bytes:
    return procfs.read(tid, "status")


def _read(one: FrozenThread) -> Chain:
    try:
        return seccomp.read(one.tracee)
    except KernelError as error:
        raise Unsupported(
            f"the seccomp filters of pid {one.tid} cannot be read: {error}",
            hint="it takes CAP_SYS_ADMIN, and that ckpt itself has no filter",
        ) from error


def _name(call: Pattern) -> str:
    return NR(call.nr).name


@cache
def _questions(*, leader: bool) -> tuple[Pattern, ...]:
    """Return the calls that a thread makes for a dump."""
    batch = Batch(Slot(Draft(_ROOM, _BASE), 0, _ROOM))
    thread.ask(batch)
    if not leader:
        return (*batch.patterns(), *ENTERING)
    process.ask([], batch)
    mm.ask(batch)
    timers = Pattern(NR.timer_gettime), Pattern(NR.timer_getoverrun)
    return (*batch.patterns(), *ENTERING, *timers)
