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
from ckpt.kernel.ptrace import Rseq, Tracee, has_heard, heard

_XSTATE_ROOM = 16 << 10
"""Bytes of an XSAVE area, at most: with all that CPUs have today, AMX tiles too, 11 KiB."""
_THREAD = Struct("<ii216sQQIIIxxxxQQQQ48s56sqQ")
_REGS_AT, _SECTION_AT, _DISPATCH_AT = 2, 8, 11  # in a record
_ORDER = Struct("<iiiiQ216s")
pack_lent = Struct("<216sQQQQQQQiiii").pack
"""Pack a struct core_lent: its fields, in their order."""
_NO_REGS = bytes(216)
_REGS, _MASK, _MASK_FIRST = 1, 2, 4


class State:
    """A stopped thread: all that its tracer may read of it by itself, as it came.

    In a freeze there is no time to make more of it than is needed there.
    """

    __slots__ = ("_areas", "_at", "_record", "critical_section", "raw", "sigmask")

    def __init__(self, record: tuple[Any, ...], areas: "ffi.buffer", at: int) -> None:
        self._record, self._areas, self._at = record, areas, at
        self.raw: bytes = record[_REGS_AT]
        """Its registers, as the kernel has them."""
        self.sigmask: int = record[_REGS_AT + 1]
        self.critical_section: int = record[_SECTION_AT]
        """The address of its struct rseq_cs, 0 outside of one."""

    @property
    def regs(self) -> Regs:
        """Its registers."""
        return Regs.unpack(self.raw)

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


class Lent(NamedTuple):
    """A stopped thread that is lent to us to make a batch; lent is its struct core_lent."""

    tracee: Tracee
    lent: bytes


class Away:
    """Threads that make their batches side by side."""

    def __init__(self, lent: list[Lent]) -> None:
        self._lent = lent
        self._array = ffi.new("struct core_lent[]", len(lent))
        ffi.buffer(self._array)[:] = b"".join([one.lent for one in lent])
        self._told = ffi.new("struct core_told[]", [(one.tracee.tid,) for one in lent])

    def fill(self) -> None:
        """Write down in their slots what they need, for who gets to the stub otherwise."""
        for one in self._array:
            lib.core_fill_slot(ffi.addressof(one))

    def set_out(self) -> None:
        """Set all off. Raises NoSuchTask for one that has been killed, after the others."""
        failed = lib.core_set_out(self._array, len(self._lent))
        for number, one in enumerate(self._lent):
            one.tracee.stopped = bool(failed and self._array[number].back)
        if failed:
            for one in self._array:
                check(one.back, "setting a stopped thread off", pid=one.tid)

    def come_back(self) -> list[int]:
        """Wait for all; returns the numbers of those that are not back at the end of their batch.

        They have been told something else of, or nothing yet: they are to be heard. The others
        are at home again, if they were to go there.
        """
        count = 0 if has_heard() else lib.core_come_back(self._array, self._told, len(self._lent))
        if count == len(self._lent):
            for one in self._lent:
                one.tracee.stopped = True
            return []
        return self._missing()

    def _missing(self) -> list[int]:
        """Take note of those that are back; returns the others."""
        missing = []
        for number, (one, told) in enumerate(zip(self._lent, self._told, strict=True)):
            if self._array[number].back == 1:
                one.tracee.stopped = True
                told.told = 0
            else:
                missing.append(number)
        heard(self._told)
        return missing


class Running:
    """A system call that a stopped thread is set off to, and makes, and not an instruction more.

    It stops before the call, too: whoever has something else to do meanwhile pokes it now and then.
    """

    def __init__(self, order: Order) -> None:
        self._tracee = order.tracee
        self._errand = ffi.new("struct core_errand *")
        ffi.buffer(self._errand)[: _ORDER.size] = order.pack()
        self._done = lib.core_errand(self._errand, 0)

    def poke(self) -> None:
        """Have it go on, if it has stopped; does not wait."""
        if not self._done and not has_heard():
            self._done = lib.core_errand(self._errand, 0)

    def result(self) -> int:
        """Wait for the call; returns what it has. Raises TargetDied."""
        tracee, errand = self._tracee, self._errand
        while not (self._done or self._go_on()):
            stop = tracee.wait()  # which takes first what others have to tell
            errand.told.told, errand.told.status = 1, stop.status
        if self._done == -errno.ECHILD:
            tracee.told(errand.told.status)
        check(self._done, "a system call of a stopped thread", pid=tracee.tid)
        tracee.stopped = True
        regs = ffi.buffer(errand)[_ORDER.size - len(_NO_REGS) : _ORDER.size]
        return Regs.unpack(regs).result

    def _go_on(self) -> bool:
        if not has_heard() or self._errand.told.told:
            self._done = lib.core_errand(self._errand, 1)
        return bool(self._done)
