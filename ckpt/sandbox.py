# SPDX-License-Identifier: Apache-2.0
"""The seccomp filters of a process's threads, and what may be asked of a thread that has some.

While we trace a thread its filters are suspended, so it answers whatever it is asked. Should we die
meanwhile, they count again for the next call that it makes on its way home; one that may only
fail does no harm there, one that it would be killed for does. So a thread is asked nothing that its
filters answer worse than by an error. And it is stopped only if they allow restart_syscall(2), by
which a sleep goes on that a stop has interrupted.

All that is seen before anything is asked. But filters can be read of a stopped thread alone: so
where there are any, another process of ours stops the threads for that, for an instant. If we are
killed it is not, and sets those right that must not go on by restart_syscall(2).
"""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import NamedTuple, Self

from ckpt.errors import CkptError, KernelError, NoSuchTask, TargetDied, Unsupported
from ckpt.freeze import Frozen, FrozenThread
from ckpt.interrupt import uninterrupted
from ckpt.kernel import procfs, seccomp
from ckpt.kernel.arch import NR
from ckpt.kernel.remote import ATTACHING, ENTERING, HELD, Batch, Draft, Slot
from ckpt.kernel.seccomp import ALLOW, LOG, Chain, Pattern
from ckpt.kernel.way import Way
from ckpt.memory import mm
from ckpt.task import creds, process, thread

_ROOM, _BASE = 64 << 10, 1 << 46
_RESTART = Pattern(NR.restart_syscall)


class Sandbox:
    """What filters the threads of a process have; none, mostly."""

    def __init__(self, way: Way) -> None:
        self.pid, self._leader = way
        self._chains: dict[int, Chain] = {}

    def look(self) -> None:
        """Find the filters. Raises Unsupported for some that make a dump a danger."""
        if any(_is_filtered(tid) for tid in procfs.threads(self.pid)):
            with uninterrupted():
                self._chains = _seen_by_another(self.pid)
            for tid, chain in self._chains.items():
                self._check(tid, chain)

    def _check(self, tid: int, chain: Chain) -> None:
        if not chain:
            return
        who = f"pid {tid}" if tid == self.pid else f"thread {tid} of pid {self.pid}"
        if seccomp.asks_others(chain):
            raise Unsupported(
                f"{who} has a seccomp filter that asks another process",
                hint="what a filter asks for (SECCOMP_RET_USER_NOTIF) cannot be made again",
            )
        if not seccomp.answers(chain, _RESTART) <= {ALLOW, LOG}:
            raise Unsupported(
                f"{who} could be harmed by its seccomp filter: it forbids restart_syscall(2)",
                hint="by that a sleep goes on after any stop, by SIGSTOP as well",
            )
        worst = seccomp.harmful(chain, _questions(leader=tid == self._leader))
        if not worst and seccomp.harmful(chain, (HELD,)):
            # On the way of who cannot be held, a segment that is not attached is a crash.
            worst = None if seccomp.answers(chain, ATTACHING) <= {ALLOW, LOG} else ATTACHING
        if worst:
            raise Unsupported(
                f"{who} could be harmed by its seccomp filter: for {_name(worst)}(2), which a "
                "dump has it call",
                hint="a filter that only refuses calls (SECCOMP_RET_ERRNO) does no harm",
            )

    def open(self, one: FrozenThread, status: bytes, calls: tuple[NR, ...] = ()) -> None:
        """Let a stopped thread make the calls of a dump, and these, as long as we trace it.

        Filters that are known are not read again. Raises what look() does, and what allow() does;
        and Unsupported where a signal handler may answer its calls (Syscall User Dispatch).
        """
        if one.state.dispatches:
            raise Unsupported(
                f"thread {one.tid} of pid {self.pid} uses Syscall User Dispatch: not supported"
            )
        mode, count = seccomp.of_status(status)
        chain = self._chains.get(one.tid, ())
        if not mode:
            chain = ()
        elif mode == seccomp.STRICT or len(chain) != count:
            chain = _read(one, status)
            self._check(one.tid, chain)
        self._chains[one.tid] = chain
        if chain:
            self.allow(one.tid, calls)
            one.tracee.suspend_seccomp()
            one.tracee.may_be_held = not seccomp.harmful(chain, (HELD,))

    def allow(self, tid: int, calls: tuple[NR, ...]) -> None:
        """Raise KernelError (EPERM) if a thread may not be asked to make these calls."""
        chain = self._chains.get(tid, ())
        if worst := seccomp.harmful(chain, tuple(Pattern(nr) for nr in calls)):
            what = f"{_name(worst)}, for which its seccomp filter could harm it"
            raise KernelError(errno.EPERM, what, pid=tid)

    def may_tell_keyrings(self, tid: int) -> bool:
        """Say whether a thread may be asked for its keyrings; who may not is dumped all the same.

        Filters that kill for keyctl(2) are common, and keyrings are not.
        """
        return not seccomp.harmful(self._chains.get(tid, ()), _keyrings())

    def chains(self, tids: Iterable[int]) -> dict[int, Chain]:
        """Return the filters that threads had when they were opened."""
        return {tid: self._chains.get(tid, ()) for tid in tids}


@contextmanager
def refused_unharmed(threads: list[FrozenThread]) -> Iterator[None]:
    """See that threads can go on, should it turn out that they had better not been stopped."""
    try:
        yield
    except CkptError:
        for one in threads:
            one.call_again()
        raise


def _status(tid: int) -> bytes:
    return procfs.read(tid, "status")


def _is_filtered(tid: int) -> bool:
    with suppress(NoSuchTask):  # a thread may end at any time
        return seccomp.of_status(_status(tid))[0] != seccomp.DISABLED
    return False


def _read(one: FrozenThread, status: bytes) -> Chain:
    """Return the filters of a stopped thread."""
    mode, _ = seccomp.of_status(status)
    if mode != seccomp.FILTER:
        return seccomp.AS_STRICT if mode else ()
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
    batch = _draft()
    thread.ask(batch, keyrings=False)
    if not leader:
        return (*batch.patterns(), *ENTERING)
    process.ask([], batch)
    mm.ask(batch)
    timers = Pattern(NR.timer_gettime), Pattern(NR.timer_getoverrun)
    return (*batch.patterns(), *ENTERING, *timers)


@cache
def _keyrings() -> tuple[Pattern, ...]:
    batch = _draft()
    creds.ask_keyrings(batch)
    return batch.patterns()


def _draft() -> Batch:
    return Batch(Slot(Draft(_ROOM, _BASE), 0, _ROOM))


# --- in another process


def _seen_by_another(pid: int) -> dict[int, Chain]:
    """Have another process of ours read the filters of all threads."""
    import pickle  # which most dumps do without

    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if not child:
        try:
            os.setsid()
            with open(writer, "wb") as file:
                file.write(pickle.dumps(_seen(pid)))
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        told = file.read()
    with suppress(ChildProcessError):  # who ignores SIGCHLD has nobody to wait for
        os.waitpid(child, 0)
    found: dict[int, Chain] | _Failure = pickle.loads(told) if told else _Failure.of(pid)
    if isinstance(found, _Failure):
        raise found.kind(found.message, hint=found.hint)
    return found


class _Failure(NamedTuple):
    """An error, as it is told."""

    kind: type[CkptError]
    message: str
    hint: str | None = None

    @classmethod
    def of(cls, pid: int) -> Self:
        return cls(CkptError, f"looking for the seccomp filters of pid {pid}: nobody has told")


def _seen(pid: int) -> "dict[int, Chain] | _Failure":
    try:
        with Frozen(pid) as frozen:
            for one in frozen.threads:
                one.call_again()
            return {one.tid: _read(one, _status(one.tid)) for one in frozen.threads}
    except (NoSuchTask, TargetDied, Unsupported) as error:
        return _Failure(type(error), error.message, error.hint)
    except CkptError as error:
        return _Failure(CkptError, error.message, error.hint)
