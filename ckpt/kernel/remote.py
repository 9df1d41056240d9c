# SPDX-License-Identifier: Apache-2.0
"""System calls made inside a stopped task, many in one round trip.

A `Segment` of SysV shared memory, attached here and there, holds the stub (core/remote_*.c) and
one slot per thread: a batch of calls and the thread's own registers. It is attached and detached
by a `syscall` instruction of the task's own code behind which a thread waits: it is held there
until it is given other registers. So there is no moment at which the death of the tracer leaves a
thread lost, or running its own code with our signal mask: it is held, or in the stub, which ends
by putting back the thread's own, or it is itself. Who is held is brought home by a `ckpt.guard`,
which also takes away what the stub cannot, the memory that it is in. Until a thread is back it has
its own stack, where signals would push their frames: so registers that lead away are set before
the mask, and the mask is given back before the registers that lead home. SysV because it takes no
descriptor in the task, because attaching is one call, and because Linux still attaches a segment
marked for removal, so that nothing outlives us.

Where the code has no place to be held at, a `ret` leads from the attaching call into the stub, by a
stack inside the segment.

The stub stops by sending itself a signal that the task ignores, so it is nothing when nobody
traces. A task that handles all of those is run from call to call with PTRACE_SYSCALL instead.
"""

import errno
import os
import signal
from contextlib import suppress
from functools import cache, reduce
from operator import or_
from struct import Struct
from types import TracebackType
from typing import NamedTuple

from ckpt.errors import CkptError, KernelError, NoSuchTask, Unsupported
from ckpt.kernel.arch import NO_SYSCALL, NR, Regs, hold, home_of
from ckpt.kernel.ffi import check, ffi, lib, syscall
from ckpt.kernel.gadget import Gadget
from ckpt.kernel.nsfs import entered, is_ours
from ckpt.kernel.ptrace import SYSCALL_STOP, Stop, Tracee
from ckpt.kernel.seccomp import Pattern
from ckpt.kernel.threads import Away, Lent, Order, Running, Then, pack_lent, send

_IPC_CREAT, _IPC_RMID, _IPC_SET, _SHM_EXEC, _SHM_NORESERVE = 0o1000, 0, 1, 0o100000, 0o10000
_STUB_ROOM = 1024
_STUB_ENTRY = int(lib.core_stub_entry())
_MUST, _FORK = 0x40, 0x80
_NOT_MADE = -errno.EINPROGRESS

_PIVOT_END = ffi.offsetof("struct core_slot", "call")
_DONE = ffi.offsetof("struct core_slot", "done")
TID, COUNT = (ffi.offsetof("struct core_slot", field) for field in ("tid", "count"))
LEFT = NO_SYSCALL
"""What a slot's count is when its thread has gone home."""
_CALL = Struct("<7QqQ")
_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS)
_BLOCKED = NO_SYSCALL & ~sum(1 << n - 1 for n in (*_FAULTS, signal.SIGKILL, signal.SIGSTOP))
_SI_TKILL = -6
ENTERING = (
    *(Pattern(NR.shmat, (None, None, _SHM_EXEC)), Pattern(NR.shmdt)),
    *(Pattern(NR.pause), Pattern(NR.rt_sigprocmask, (signal.SIG_SETMASK, None, 0, 8))),
    Pattern(NR.tgkill),
)
"""The calls that it takes besides those of a batch."""
ATTACHING, HELD = ENTERING[0], Pattern(_SHM_EXEC)
"""The call that attaches a segment, and what a thread may call that is held after it."""
_QUIET = (signal.SIGURG, signal.SIGWINCH, signal.SIGCHLD)


class Segment:
    """Executable memory of `size` bytes that a stopped task can attach at address `base`.

    pid is the task that is to attach it, in whose IPC namespace it is made, uid and gid are its
    own. With inherited it is attached at base here, so that a child of ours has it there.

    It is gone with its last user, and that must not be us before the task has it: its call would
    fail. So with lasting it stays until `remove`, and if we die somebody else has to see to that.
    """

    def __init__(
        self,
        size: int,
        base: int,
        *,
        pid: int = 0,
        uid: int = 0,
        gid: int = 0,
        inherited: bool = False,
        lasting: bool = False,
    ) -> None:
        size = -(-size // 4096) * 4096
        self.size, self.base, self.pid = size, base, pid or os.getpid()
        self._next = _STUB_ROOM
        self.lasting = True
        self.elsewhere = not is_ours("ipc", self.pid)
        with entered("ipc", self.pid):
            self._make(uid, gid, inherited=inherited, lasting=lasting)
        self.memory = memoryview(ffi.buffer(ffi.cast("uint8_t *", self.at), size)).cast("B")
        code = ffi.new("uint8_t const **")
        length = lib.core_stub(code)
        self.memory[:length] = ffi.buffer(code[0], length)

    def _make(self, uid: int, gid: int, *, inherited: bool, lasting: bool) -> None:
        flags = _IPC_CREAT | _SHM_NORESERVE | 0o700
        self.id = syscall(NR.shmget, 0, self.size, flags)
        if self.id == -errno.ENOSPC:
            hint = "raise kernel.shmmni or kernel.shmall in the IPC namespace of the task"
            raise KernelError(errno.ENOSPC, "shmget", hint=hint)
        check(self.id, "shmget")
        try:
            # Anywhere will do for us, unless a restored task is to inherit it.
            at = self.base if inherited else 0
            self.at = check(syscall(NR.shmat, self.id, at, _SHM_EXEC), "shmat")
            self._own(uid, gid)
        except BaseException:
            lasting = False
            raise
        finally:
            if not lasting:
                self._remove()

    def _remove(self) -> None:
        syscall(NR.shmctl, self.id, _IPC_RMID, 0)
        self.lasting = False

    def remove(self) -> None:
        """Have it go with its last user; does nothing the second time."""
        if self.lasting and self.elsewhere:
            with entered("ipc", self.pid):
                self._remove()
        elif self.lasting:
            self._remove()

    def _own(self, uid: int, gid: int) -> None:
        # struct ipc64_perm of IPC_SET: key, uid, gid, cuid, cgid, mode
        perm = ffi.new("uint32_t[64]", [0, uid, gid, 0, 0, 0o700])
        address = int(ffi.cast("uintptr_t", perm))
        check(syscall(NR.shmctl, self.id, _IPC_SET, address), "IPC_SET")

    def slot(self, room: int) -> "Slot":
        """Set aside the next room bytes for a thread."""
        start = self._next
        self._next += room + 63 & ~63
        if self._next > self.size:
            raise BatchFull(f"segment of {self.size} bytes: no room for {room} more")
        return Slot(self, start, room)

    def close(self) -> None:
        """Detach it here; a task that has it keeps it."""
        with suppress(NoSuchTask):  # the namespace may be gone with the task
            self.remove()
        if self.at:
            self.memory.release()
            syscall(NR.shmdt, self.at)
            self.at = 0

    def __enter__(self) -> "Segment":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Draft(Segment):
    """Memory that no task attaches: a batch in it only tells which calls it would be."""

    def __init__(self, size: int, base: int) -> None:
        self.size, self.base, self.memory = size, base, memoryview(bytearray(size))


class Slot(NamedTuple):
    """A thread's part of a segment: offset and room in bytes."""

    segment: Segment
    offset: int
    room: int

    @property
    def address(self) -> int:
        """Where the task sees it."""
        return self.segment.base + self.offset

    @property
    def was_used(self) -> bool:
        """Whether a thread has ever been set off to it, or was about to be."""
        at = self.offset + TID
        return self.segment.memory[at : at + 8] != bytes(8)


class Buffer:
    """Memory of a batch, as the task's calls see it and as we do."""

    __slots__ = ("_slot", "_start", "address", "size")

    def __init__(self, slot: Slot, start: int, size: int) -> None:
        self._slot, self._start, self.size = slot, start, size
        self.address = slot.segment.base + start

    @property
    def bytes(self) -> bytes:
        """What it holds now."""
        return self._slot.segment.memory[self._start : self._start + self.size].tobytes()


class Call:
    """A system call of a batch; as an argument of a later one it stands for its result."""

    __slots__ = ("_at", "_nr", "_slot", "pointer")

    def __init__(self, slot: Slot, at: int, nr: NR) -> None:
        self._slot, self._at, self._nr = slot, at, nr
        self.pointer = slot.segment.base + at + 56

    @property
    def name(self) -> str:
        """Its name, as the kernel has it."""
        return self._nr.name

    @property
    def ret(self) -> int:
        """Its result: >= 0 or -errno, which is -EINPROGRESS until it has been made."""
        return int(_CALL.unpack_from(self._slot.segment.memory, self._at)[7])

    @property
    def args(self) -> tuple[int, ...]:
        """Its arguments as they were written."""
        return _CALL.unpack_from(self._slot.segment.memory, self._at)[1:7]


class At(NamedTuple):
    """As an argument: the word that is at this address of the task when the call is made."""

    pointer: int


Argument = int | Call | At | Buffer


class Batch:
    """Calls to be made in a task, in order. Filling one costs the task nothing."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._next: int = slot.offset + _PIVOT_END
        self._top = slot.offset + slot.room
        self.calls: list[Call] = []

    def call(self, nr: NR, *args: Argument, must: bool = False, fork: bool = False) -> Call:
        """Add a call; with must, a failure ends the batch there and run() raises.

        With fork it makes a process, which is to be traced from birth. Should its tracer have
        died, it ends there, and does not run on as the task.
        """
        if self._next + _CALL.size > self._top:
            raise BatchFull(f"batch of {len(self.calls)} calls: no room for {nr.name}")
        flags, values = (_MUST if must else 0) | (_FORK if fork else 0), [0] * 6
        for i, arg in enumerate(args):
            if isinstance(arg, int):
                values[i] = arg & NO_SYSCALL
            elif isinstance(arg, Buffer):
                values[i] = arg.address
            else:
                flags, values[i] = flags | 1 << i, arg.pointer
        _CALL.pack_into(self._slot.segment.memory, self._next, nr, *values, _NOT_MADE, flags)
        self.calls.append(Call(self._slot, self._next, nr))
        self._next += _CALL.size
        return self.calls[-1]

    def room(self, size: int) -> Buffer:
        """Set aside size zeroed bytes (64-byte aligned) for calls to read or write."""
        start = (self._top - size) & ~63
        if start < self._next:
            raise BatchFull(f"batch of {len(self.calls)} calls: no room for {size} bytes")
        self._top = start
        self._slot.segment.memory[start : start + size] = bytes(size)
        return Buffer(self._slot, start, size)

    def data(self, content: bytes) -> Buffer:
        """Set aside room that holds content."""
        buffer = self.room(len(content))
        start = buffer.address - self._slot.segment.base
        self._slot.segment.memory[start : start + len(content)] = content
        return buffer

    def fits(self, calls: int, size: int = 0) -> bool:
        """Say whether so many calls and bytes more would fit."""
        return self._next + calls * (_CALL.size + 64) + size <= self._top

    def patterns(self) -> tuple[Pattern, ...]:
        """Return the calls as a filter sees them; what is in the segment may be anywhere."""
        segment = self._slot.segment
        memory = range(segment.base, segment.base + segment.size)
        found = []
        for call in self.calls:
            nr, *args, _, flags = _CALL.unpack_from(segment.memory, call._at)
            known = (None if flags >> i & 1 or arg in memory else arg for i, arg in enumerate(args))
            found.append(Pattern(nr, tuple(known)))
        return tuple(found)


class BatchFull(CkptError):
    """A batch that does not fit its slot: run what there is, begin another."""


@cache
def _blocked(signo: int) -> int:
    """Return all signals but ours and those of faults.

    For a fault that is blocked the kernel would forget the task's handler.
    """
    return _BLOCKED & ~(1 << signo - 1) if signo else _BLOCKED


class Remote:
    """One stopped thread, lent to us to make system calls in."""

    def __init__(self, tracee: Tracee, tgid: int, slot: Slot, *, signo: int) -> None:
        self.tracee, self.tgid, self.slot, self.signo = tracee, tgid, slot, signo
        self.tid = tracee.tid
        self.blocked = _blocked(signo)
        """The signals that are blocked while it is away."""
        self._stub = slot.segment.base
        self._away = False

    def batch(self) -> Batch:
        """Begin a batch; the last one's results are gone once the new one is filled."""
        return Batch(self.slot)

    def born(self) -> None:
        """Take note that the thread was made with the segment in place, and is never to go back."""
        self._away = True

    def infect(self, regs: Regs, sigmask: int, gadget: Gadget, batch: Batch) -> None:
        """Attach the segment by way of the task's own code and run a first batch.

        regs and sigmask are what the thread is to go home with.
        """
        if self.attach(regs, sigmask, gadget, batch):
            self.run(batch, regs, sigmask)
        self.slot.segment.remove()

    def attach(self, regs: Regs, sigmask: int, gadget: Gadget, batch: Batch) -> bool:
        """Attach the segment; say whether the batch has still to be made.

        Where the code has no place to be held at, it is made on the way; and where filters would
        count again and do harm then: a thread that is held may make calls that there are not.
        """
        if call := self.attaching(regs.pack(), gadget):
            self.attached(call)
            return True
        self._fall_in(regs, sigmask, gadget, batch)
        self.finish(batch)
        return False

    def attaching(self, regs: bytes, gadget: Gadget) -> Running | None:
        """Begin to attach the segment; None where that has to be done with a batch at once."""
        if not gadget.hold or not self.tracee.may_be_held:
            return None
        segment = self.slot.segment
        away = hold(regs, gadget.hold, NR.shmat, segment.id, segment.base, _SHM_EXEC)
        self._away = True
        return Running(Order(self.tracee, Then.SYSCALL, away, self.blocked))

    def attached(self, call: Running) -> None:
        """Wait until it is attached."""
        ret = call.result()
        if ret == -errno.EACCES:
            raise Unsupported(
                f"pid {self.tid} may have no memory that is written and executed: not supported",
                hint="it has said so itself (PR_SET_MDWE), or a security module does",
            )
        check(ret, "shmat", pid=self.tid)

    def _fall_in(self, regs: Regs, sigmask: int, gadget: Gadget, batch: Batch) -> None:
        """Set the thread off on a batch by way of shmat and a `ret`."""
        top = self.slot.address + _PIVOT_END
        at = self.slot.offset + _PIVOT_END - 8
        self.slot.segment.memory[at : at + 8] = self._stub.to_bytes(8, "little")
        entry = regs._replace(
            ip=gadget.address,
            # The gadget's ret must leave rsp just above the pivot, where the stub expects it.
            sp=top - 8 - gadget.risen,
            ax=NR.shmat,
            di=self.slot.segment.id,
            si=self._stub,
            dx=_SHM_EXEC,
            orig_ax=NO_SYSCALL,
        )
        Away([self.lent(regs.pack(), sigmask, batch)]).fill()
        # Signals first: one that came now would push its frame where there is no stack.
        self.tracee.set_sigmask(self.blocked)
        self._away = True
        self.tracee.set_regs(entry)
        self._cont()

    def start(self, regs: Regs, sigmask: int, batch: Batch) -> None:
        """Set the thread off on a batch; finish() waits for it."""
        Away([self.lent(regs.pack(), sigmask, batch)]).set_out()

    def lent(self, regs: bytes, sigmask: int, batch: Batch, *, homeward: bool = True) -> Lent:
        """Return it as it is lent for a batch; regs and sigmask are what it goes home with."""
        self._away = True
        segment, offset, _ = self.slot
        base = segment.base
        return Lent(
            self.tracee,
            pack_lent(
                *(regs, sigmask, self.blocked, segment.at + offset, base + offset),
                *(base + _STUB_ENTRY, self.tgid, len(batch.calls)),
                *(self.tid, self.signo, homeward, 0),
            ),
        )

    def is_home(self) -> None:
        """Take note that it has come home by itself."""
        self._away = False

    def _cont(self) -> None:
        if self.signo:
            self.tracee.cont()
        else:
            self.tracee.syscall()

    def finish(self, batch: Batch) -> None:
        """Wait until the batch has been made; raises for a call that had to succeed."""
        while not self._at_end(self.tracee.wait()):
            self._cont()
        self.check(batch)

    def is_back(self) -> bool:
        """Say whether it has made its batch, now that it has stopped; if not, have it go on."""
        stop = self.tracee.poll()
        if stop and self._at_end(stop):
            return True
        if stop:
            self._cont()
        return False

    def check(self, batch: Batch) -> None:
        """Raise for a call of a batch that had to succeed and has not."""
        done = int.from_bytes(self._peek(_DONE, 8), "little")
        if done and done <= len(batch.calls):
            self._check(batch.calls[done - 1])

    def _peek(self, at: int, size: int) -> bytes:
        start = self.slot.offset + at
        return self.slot.segment.memory[start : start + size].tobytes()

    def _at_end(self, stop: Stop) -> bool:
        """Say whether this stop is the stub's own."""
        signo = stop.signo
        if stop.event:
            return False
        if self.signo and signo == self.signo:
            return stop.code == _SI_TKILL or (stop.code is None and self._is_own_signal())
        if signo == SYSCALL_STOP:
            regs = self.tracee.regs()
            return (regs.orig_ax, regs.di, regs.dx) == (NR.tgkill, self.tgid, 0)
        if signo in _FAULTS:
            regs = self.tracee.regs()
            raise KernelError(
                -regs.result if -4096 < regs.result < 0 else errno.EFAULT,
                f"system calls in the task (signal {signo} at {regs.ip:#x})",
                pid=self.tid,
            )
        return False

    def _is_own_signal(self) -> bool:
        info = self.tracee.siginfo()
        # struct siginfo: si_signo, si_errno, si_code
        return int.from_bytes(info[8:12], "little", signed=True) == _SI_TKILL

    def _check(self, last: Call) -> None:
        flags = _CALL.unpack_from(self.slot.segment.memory, last._at)[8]
        if flags & _MUST and last.ret < 0:
            raise KernelError(-last.ret, _described(last), pid=self.tid)

    def pause(self, batch: Batch) -> None:
        """Have it stop at this point of a batch: finish() returns there; then go_on()."""
        batch.call(NR.tgkill, self.tgid, self.tid, self.signo)

    def go_on(self, batch: Batch) -> None:
        """Make the rest of a batch that has paused; without a tracer it would go on by itself."""
        if not self.signo:
            self._to_syscall_stop()
        self._cont()
        self.finish(batch)

    def _to_syscall_stop(self) -> None:
        self.tracee.syscall()
        while self.tracee.wait().signo != SYSCALL_STOP:
            self.tracee.syscall()

    def run(self, batch: Batch, regs: Regs, sigmask: int) -> None:
        """Make a batch of calls and wait for their results."""
        self.start(regs, sigmask, batch)
        self.finish(batch)

    def go_home(self, regs: Regs, sigmask: int) -> None:
        """Give the thread its own registers and signal mask again; it stays stopped."""
        send(self.going_home(regs, sigmask))

    def going_home(self, regs: Regs, sigmask: int) -> list[Order]:
        """Return the order for that; none if it is at home."""
        if not self._away:
            return []
        count = self.slot.offset + COUNT
        self.slot.segment.memory[count : count + 8] = LEFT.to_bytes(8, "little")
        self._away = False
        return [Order(self.tracee, Then.STAY, home_of(regs.pack()), sigmask, mask_first=True)]

    def cure(self, regs: Regs, sigmask: int, gadget: Gadget) -> None:
        """Detach the segment from the task, if it got as far as having it; then go home."""
        self.left(self.detaching(regs, sigmask, gadget).end())

    def detaching(self, regs: Regs, sigmask: int, gadget: Gadget) -> "Detaching":
        """Begin to do so; left() is to be told how that has ended."""
        return Detaching(self.tracee, self._stub, regs, sigmask, gadget, self.blocked)

    def leaving(self, regs: Regs, gadget: Gadget) -> Order:
        """Return the order to detach the segment, by one system call, for who dies with us."""
        away = _leading_to(regs, gadget, self._stub)
        return Order(self.tracee, Then.SYSCALL, away.pack(), self.blocked, mask_first=True)

    def left(self, ret: int) -> None:
        """Take note of what detaching the segment has come to: it may never have had it."""
        self._away = False
        if ret != -errno.EINVAL:
            check(ret, "shmdt", pid=self.tid)


def _leading_to(regs: Regs, gadget: Gadget, base: int) -> Regs:
    return regs._replace(ip=gadget.address, sp=0, ax=NR.shmdt, di=base, orig_ax=NO_SYSCALL)


class Detaching:
    """A stopped thread that makes shmdt(base), to go home then.

    With gadget.hold a thread whose tracer dies on the way is held there; else it crashes.
    """

    def __init__(
        self, tracee: Tracee, base: int, regs: Regs, sigmask: int, gadget: Gadget, blocked: int
    ) -> None:
        held = bool(gadget.hold)
        away = (
            hold(regs.pack(), gadget.hold, NR.shmdt, base)
            if held
            else _leading_to(regs, gadget, base).pack()
        )
        order = Order(tracee, Then.SYSCALL, away, blocked, mask_first=not held)
        self._home = Order(tracee, Then.STAY, home_of(regs.pack()), sigmask, mask_first=held)
        self.call = Running(order)

    def end(self) -> int:
        """Wait for it, and have it at home; returns the call's result."""
        ret = self.call.result()
        send([self._home])
        return ret


def _described(call: Call) -> str:
    return f"{call.name}({', '.join(f'{arg:#x}' for arg in call.args)}) in the task"


@cache
def quiet_signal(*sets: int) -> int:
    """Choose a signal that a task neither handles nor has pending; 0 if there is none.

    The sets are /proc/PID/status's SigPnd, ShdPnd and SigCgt.
    """
    taken = reduce(or_, sets)
    return next((int(s) for s in _QUIET if not taken >> s - 1 & 1), 0)
