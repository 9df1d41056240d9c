# SPDX-License-Identifier: Apache-2.0
"""Many stopped threads at once: what they are, and what they are to do next, in one call each.

From Python, one ptrace(2) after the other, this would take most of a freeze.
"""

import errno
from collections.abc import Iterable
from enum import IntEnum
from struct import Struct
from typing import Any, NamedTuple

from ckpt.kernel.arch import Regs
from ckpt.kernel.ffi import check, ffi, lib
from ckpt.kernel.ptrace import Rseq, Tracee, heard

_XSTATE_ROOM = 16 << 10
"""Bytes of an XSAVE area, at most: with all that CPUs have today, AMX tiles too, 11 KiB."""
_THREAD = Struct("<ii216sQQIIIxxxxQQQQ48s56sqQ")
_REGS_AT, _SECTION_AT, _DISPATCH_AT = 2, 8, 11  # in a record
_ORDER = Struct("<iiiiQ216s")
_NO_REGS = bytes(216)
_REGS, _MASK, _MASK_FIRST = 1, 2, 4


class State:
    """A stopped thread: all that its tracer may read of it by itself, as it came.

    In a freeze there is no time to make more of it than is needed there.
    """

    __slots__ = ("_areas", "_at", "_record", "critical_section", "regs", "sigmask")

    def __init__(self, record: tuple[Any, ...], areas: "ffi.buffer", at: int) -> None:
        self._record, self._areas, self._at = record, areas, at
        self.regs = Regs.unpack(record[_REGS_AT])
        self.sigmask: int = record[_REGS_AT + 1]
        self.critical_section: int = record[_SECTION_AT]
        """The address of its struct rseq_cs, 0 outside of one."""

    @property
    def rseq(self) -> Rseq | None:
        """Its rseq area, if it has registered one."""
        pointer, size, signature, flags = self._record[_REGS_AT + 2 : _SECTION_AT]
        return Rseq(pointer, size, signature, flags) if pointer else None

    @property
    def robust_list(self) -> tuple[int, int]:
        """The head and the length of its list of robust futexes."""
        head, length = self._record[_SECTION_AT + 1 : _DISPATCH_AT]
        return head, length

    @property
    def dispatches(self) -> bool:
        """Whether calls of its own are for its signal handler (Syscall User Dispatch)."""
        return bool(self._record[_DISPATCH_AT])

    @property
    def tls(self) -> bytes:
        """Three struct user_desc (x86)."""
        return bytes(self._record[-4])

    @property
    def sched_attr(self) -> bytes:
        """Its struct sched_attr."""
        return bytes(self._record[-3])

    @property
    def ioprio(self) -> int:
        """Its priority of I/O, as ioprio_get(2) has it."""
        return int(self._record[-2])

    @property
    def xstate(self) -> bytes:
        """Its XSAVE area."""
        return bytes(self._areas[self._at : self._at + self._record[-1]])


class Roll:
    """Threads that are to be stopped together, and room for what they are, made beforehand."""

    def __init__(self, tracees: list[Tracee]) -> None:
        self.tracees = tracees
        self._told = ffi.new("struct core_told[]", [(one.tid, 0, 0, 0, 1) for one in tracees])
        self._threads = ffi.new("struct core_thread[]", [(one.tid,) for one in tracees])
        self._xstate = ffi.new("uint8_t[]", len(tracees) * _XSTATE_ROOM)  # touched by now

    def stop(self, aside: "ffi.CData") -> bool:
        """Stop them all, and have aside (or NULL) begin to look just then; say whether that was it.

        If not, because something else has to be told of one first, they are to be heard, one by
        one, and then taken; aside has not begun.
        """
        count, room = len(self.tracees), _XSTATE_ROOM
        stopped = lib.core_stop(self._told, self._threads, count, self._xstate, room, aside)
        if not stopped:
            heard(self._told)
            return False
        for tracee in self.tracees:
            tracee.stopped = True
        return True

    def take(self) -> None:
        """Read what they are, now that they have stopped otherwise."""
        count = len(self.tracees)
        lib.core_take_threads(self._threads, count, self._xstate, _XSTATE_ROOM)

    def states(self) -> list[State]:
        """Return what they are. Raises NoSuchTask for one that has been killed."""
        areas = ffi.buffer(self._xstate)
        records = [*_THREAD.iter_unpack(ffi.buffer(self._threads))]
        for tid, error, *_ in records:
            check(error, "reading a stopped thread", pid=tid)
        return [State(record, areas, i * _XSTATE_ROOM) for i, record in enumerate(records)]


class Then(IntEnum):
    """What a thread does after an order."""

    STAY = 0
    CONT = 7
    DETACH = 17
    SYSCALL = 24


class Order(NamedTuple):
    """Registers and signal mask for a stopped thread, if any, and what it is to do then.

    The mask comes after the registers, unless mask_first: see `kernel.remote` for which.
    """

    tracee: Tracee
    then: Then
    regs: bytes | None = None
    sigmask: int | None = None
    mask_first: bool = False

    def pack(self) -> bytes:
        """Return the struct core_order."""
        flags = _REGS if self.regs else 0
        if self.sigmask is not None:
            flags |= _MASK_FIRST if self.mask_first else _MASK
        regs = self.regs or _NO_REGS
        return _ORDER.pack(self.tracee.tid, self.then, flags, 0, self.sigmask or 0, regs)


def send(orders: Iterable[Order]) -> None:
    """Carry out all orders. Raises NoSuchTask for one that has been killed, after the others."""
    everybody = list(orders)
    array = ffi.new("struct core_order[]", len(everybody))
    ffi.buffer(array)[:] = b"".join(order.pack() for order in everybody)
    failed = lib.core_order(array, len(everybody))
    done = [0] * len(everybody) if not failed else [one.error for one in array]
    for order, error in zip(everybody, done, strict=True):
        if not error:
            _note(order)
    for order, error in zip(everybody, done, strict=True):
        check(error, "setting a stopped thread off", pid=order.tracee.tid)


def _note(order: Order) -> None:
    if order.then == Then.DETACH:
        order.tracee.forget()
    else:
        order.tracee.stopped = order.then == Then.STAY


def run_call(order: Order) -> int:
    """Let a thread make the system call that an order leads it to, and no instruction more.

    Returns the call's result. Raises TargetDied.
    """
    tracee = order.tracee
    errand = ffi.new("struct core_errand *")
    ffi.buffer(errand)[: _ORDER.size] = order.pack()
    while not (done := lib.core_errand(errand)):
        stop = tracee.wait()  # which takes first what others have to tell
        errand.told.told, errand.told.status = 1, stop.status
    if done == -errno.ECHILD:
        tracee.told(errand.told.status)
    check(done, "a system call of a stopped thread", pid=tracee.tid)
    tracee.stopped = True
    regs = ffi.buffer(errand)[_ORDER.size - len(_NO_REGS) : _ORDER.size]
    return Regs.unpack(regs).result
