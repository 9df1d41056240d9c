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
from ckpt.kernel.ffi import allocate, check, ffi, lib
from ckpt.kernel.ptrace import Rseq, Tracee

_XSTATE_ROOM = 16 << 10
"""Bytes of an XSAVE area, at most: with all that CPUs have today, AMX tiles too, 11 KiB."""
_THREAD = Struct("<ii216sQQIIIxxxxQQQQ48s56sqQ")
_ORDER = Struct("<iiiiQ216s")
_NO_REGS = bytes(216)
_REGS, _MASK, _MASK_FIRST = 1, 2, 4


class State(NamedTuple):
    """A stopped thread: all that its tracer may read of it by itself.

    critical_section is the address of its struct rseq_cs, 0 outside of one; robust_list its head
    and length; dispatches says whether it has calls of its own handled by a signal handler of its
    own (Syscall User Dispatch); tls three struct user_desc (x86); sched_attr a struct sched_attr.
    """

    regs: Regs
    sigmask: int
    rseq: Rseq | None
    critical_section: int
    robust_list: tuple[int, int]
    dispatches: bool
    tls: bytes
    sched_attr: bytes
    ioprio: int
    xstate: bytes


def take(tracees: list[Tracee]) -> list[State]:
    """Read what stopped threads are. Raises NoSuchTask for one that has been killed."""
    count = len(tracees)
    threads = ffi.new("struct core_thread[]", count)
    xstate = allocate("uint8_t[]", count * _XSTATE_ROOM)
    for thread, tracee in zip(threads, tracees, strict=True):
        thread.tid = tracee.tid
    lib.core_take_threads(threads, count, xstate, _XSTATE_ROOM)
    areas = ffi.buffer(xstate)
    records = _THREAD.iter_unpack(ffi.buffer(threads))
    return [_state(record, areas, i * _XSTATE_ROOM) for i, record in enumerate(records)]


def _state(record: tuple[Any, ...], areas: "ffi.buffer", at: int) -> State:
    (tid, error, regs, sigmask, pointer, size, signature, flags, section, robust, length,
     dispatch, tls, sched_attr, ioprio, xstate) = record  # fmt: skip
    check(error, "reading a stopped thread", pid=tid)
    return State(
        Regs.unpack(regs),
        sigmask,
        Rseq(pointer, size, signature, flags) if pointer else None,
        section,
        (robust, length),
        dispatch != 0,
        tls,
        sched_attr,
        ioprio,
        areas[at : at + xstate],
    )


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
