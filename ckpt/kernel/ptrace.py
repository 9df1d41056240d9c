# SPDX-License-Identifier: Apache-2.0
"""ptrace(2), the PTRACE_SEIZE way: one Tracee per thread.

Facts that bite:
- A tracer's death detaches its tracees, and they run on with the registers they have at that
  moment; nothing but PTRACE_O_EXITKILL (for tasks that are ours) prevents it.
- A seized task that is interrupted in a system call stops with -ERESTART* in its result; whoever
  sets its registers must see to the restart himself (arch.home).
- waitpid needs __WALL for threads, and only the thread that seized a task may wait for it.
- The end of a first thread is told last, when the ends of all others have been waited for. So who
  waits for one tracee takes what is told of any, and keeps that for who asks (`_heard`). While
  others live nothing is told but, with PTRACE_O_TRACEEXIT, that it has begun to end.
"""

import errno
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from enum import IntFlag
from types import TracebackType
from typing import NamedTuple

from ckpt.errors import NoSuchTask, TargetDied
from ckpt.kernel.arch import NT_XSTATE, Regs
from ckpt.kernel.ffi import check, ffi, lib

WALL = 0x40000000
NT_PRSTATUS = 1
EVENT_FORK, EVENT_CLONE, EVENT_EXEC, EVENT_EXIT, EVENT_STOP = 1, 3, 4, 6, 128
SYSCALL_STOP = signal.SIGTRAP | 0x80

_CONT, _DETACH, _SYSCALL, _SETOPTIONS = 7, 17, 24, 0x4200
_GET_THREAD_AREA, _SET_THREAD_AREA = 25, 26
_GETEVENTMSG, _GETSIGINFO = 0x4201, 0x4202
_SEIZE, _INTERRUPT = 0x4206, 0x4207
_PEEKSIGINFO, _GETSIGMASK, _SETSIGMASK = 0x4209, 0x420A, 0x420B
_SECCOMP_GET_FILTER, _SECCOMP_GET_METADATA, _GET_RSEQ = 0x420C, 0x420D, 0x420F
_INSTRUCTION_SIZE = 8
_SIGINFO_SIZE = 128
_REGSET_SIZE = 64 << 10
_REGSET = ffi.new("uint8_t[]", _REGSET_SIZE)  # once: to make it anew, of zeros, takes long
_STOPPED = 0x7F  # the lowest byte of a wait status
_PAUSE = 50e-6
_tracees: set[int] = set()
_heard: dict[int, tuple[int, int | None]] = {}


class Options(IntFlag):
    """PTRACE_O_*."""

    SYSGOOD = 1
    FORK = 1 << EVENT_FORK
    CLONE = 1 << EVENT_CLONE
    EXEC = 1 << EVENT_EXEC
    EXIT = 1 << EVENT_EXIT
    EXITKILL = 1 << 20
    SUSPEND_SECCOMP = 1 << 21


class Stop(NamedTuple):
    """Why a task stopped: the signal, and the PTRACE_EVENT_* if it was one.

    code is the signal's si_code, None if it has not been asked for.
    """

    signo: int
    event: int
    code: int | None = None

    @property
    def status(self) -> int:
        """The wait status that told of it."""
        return self.event << 16 | self.signo << 8 | _STOPPED


class Rseq(NamedTuple):
    """A thread's registered rseq area (struct ptrace_rseq_configuration)."""

    pointer: int
    size: int
    signature: int
    flags: int


class Tracee:
    """A seized thread. Leaving the `with` block detaches it; a thread that is gone is no error."""

    def __init__(self, tid: int, options: Options = Options.SYSGOOD) -> None:
        check(lib.core_ptrace(_SEIZE, tid, 0, options), "PTRACE_SEIZE", pid=tid)
        self._begin(tid, options)

    def _begin(self, tid: int, options: Options) -> None:
        self.tid, self.options = tid, options
        self.may_be_held = True
        """Whether it does no harm that the thread makes calls there are not, should we die."""
        self.stopped = False
        _heard.pop(tid, None)  # of another, which had the same number
        _tracees.add(tid)

    @classmethod
    def born(cls, tid: int, maker: "Tracee") -> "Tracee":
        """Take a thread that a tracee with Options.CLONE has made: seized with it, and stopped."""
        return cls.all_born([tid], maker)[0]

    @classmethod
    def all_born(cls, tids: Iterable[int], maker: "Tracee") -> list["Tracee"]:
        """Take several at once."""
        tracees = []
        for tid in tids:
            tracee = cls.__new__(cls)
            tracee._begin(tid, maker.options)
            tracees.append(tracee)
        hear(tracees)
        for tracee in tracees:
            tracee.wait()
        return tracees

    def __enter__(self) -> "Tracee":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()

    def _do(self, request: int, operation: str, addr: int = 0, data: int = 0) -> int:
        ret = lib.core_ptrace(request, self.tid, addr, data)
        if ret == -errno.ESRCH:
            raise NoSuchTask(f"{operation} pid {self.tid}: the thread is gone")
        return check(ret, operation, pid=self.tid)

    def interrupt(self) -> None:
        """Ask the thread to stop; wait() tells when it has."""
        self._do(_INTERRUPT, "PTRACE_INTERRUPT")

    def wait(self) -> Stop:
        """Wait for the next stop.

        Raises TargetDied when the thread ended instead.
        """
        if self.tid not in _heard:
            hear([self])
        stop = self.poll()
        assert stop
        return stop

    def poll(self) -> Stop | None:
        """Return the next stop if it has come; raises as wait does."""
        if self.tid not in _heard:
            _take(self.tid)
        return self.told(*_heard.pop(self.tid)) if self.tid in _heard else None

    def told(self, status: int, code: int | None = None) -> Stop:
        """Take note of a wait status; raises as wait does."""
        if status & 0xFF != _STOPPED:
            _forget(self.tid)
            raise TargetDied(f"pid {self.tid} ended while it was traced ({_ending(status)})")
        stop = Stop(status >> 8 & 0xFF, status >> 16, code)
        self.stopped = stop.event != EVENT_EXIT  # who was told to go on, in `_take` or in C
        return stop

    def cont(self, signo: int = 0) -> None:
        """Let it run until the next signal or event; deliver signo if it is not 0."""
        self._do(_CONT, "PTRACE_CONT", data=signo)
        self.stopped = False

    def syscall(self, signo: int = 0) -> None:
        """Let it run until the next system call begins or ends."""
        self._do(_SYSCALL, "PTRACE_SYSCALL", data=signo)
        self.stopped = False

    def detach(self) -> None:
        """Let it go, wherever it is; does nothing if it is gone."""
        try:
            if not self.stopped:
                self.interrupt()
                self.wait()
            self._do(_DETACH, "PTRACE_DETACH")
        except (NoSuchTask, TargetDied, ChildProcessError):
            with suppress(ChildProcessError):  # its end is told to us first
                os.waitpid(self.tid, WALL | os.WNOHANG)
        self.forget()

    def forget(self) -> None:
        """Take note that it is not ours any more."""
        _forget(self.tid)
        self.stopped = False

    def set_options(self, options: Options) -> None:
        """Replace the PTRACE_O_* options."""
        self._do(_SETOPTIONS, "PTRACE_SETOPTIONS", data=options)
        self.options = options

    def suspend_seccomp(self) -> None:
        """Have its seccomp filters, or strict mode, not count as long as we trace it."""
        if Options.SUSPEND_SECCOMP not in self.options:
            self.set_options(self.options | Options.SUSPEND_SECCOMP)

    def seccomp_filter(self, index: int) -> bytes | None:
        """Return the program of a seccomp filter, the oldest is number 0; None if there is none."""
        ret = lib.core_ptrace(_SECCOMP_GET_FILTER, self.tid, index, 0)
        if ret == -errno.ENOENT:
            return None
        count = check(ret, "PTRACE_SECCOMP_GET_FILTER", pid=self.tid)
        buffer = ffi.new("uint8_t[]", count * _INSTRUCTION_SIZE)
        self._do(_SECCOMP_GET_FILTER, "PTRACE_SECCOMP_GET_FILTER", index, _address(buffer))
        return bytes(ffi.buffer(buffer))

    def seccomp_flags(self, index: int) -> int:
        """Return the flags that a seccomp filter was installed with (Linux 4.16)."""
        metadata = ffi.new("uint64_t[2]", [index, 0])
        self._do(_SECCOMP_GET_METADATA, "PTRACE_SECCOMP_GET_METADATA", 16, _address(metadata))
        return int(metadata[1])

    def event_message(self) -> int:
        """Return what the last event carried: the new tid after a clone."""
        word = ffi.new("uint64_t *")
        self._do(_GETEVENTMSG, "PTRACE_GETEVENTMSG", data=_address(word))
        return int(word[0])

    def regs(self) -> Regs:
        """Return the general registers."""
        return Regs.unpack(self._getregset(NT_PRSTATUS))

    def set_regs(self, regs: Regs) -> None:
        """Set the general registers."""
        self._setregset(NT_PRSTATUS, regs.pack())

    def xstate(self) -> bytes:
        """Return the XSAVE area, in the layout without compaction."""
        return self._getregset(NT_XSTATE)

    def set_xstate(self, xstate: bytes) -> None:
        """Set the XSAVE area; its length must be what this machine's CPU has."""
        self._setregset(NT_XSTATE, xstate)

    def _getregset(self, kind: int) -> bytes:
        got = lib.core_getregset(self.tid, kind, _REGSET, _REGSET_SIZE)
        return bytes(ffi.buffer(_REGSET, check(got, "PTRACE_GETREGSET", pid=self.tid)))

    def _setregset(self, kind: int, data: bytes) -> None:
        ret = lib.core_setregset(self.tid, kind, ffi.from_buffer(data), len(data))
        check(ret, "PTRACE_SETREGSET", pid=self.tid)

    def thread_area(self, entry: int) -> bytes:
        """Return the struct user_desc of a TLS slot of the GDT (set_thread_area(2), x86)."""
        buffer = ffi.new("uint8_t[]", 16)
        self._do(_GET_THREAD_AREA, "PTRACE_GET_THREAD_AREA", entry, _address(buffer))
        return bytes(ffi.buffer(buffer))

    def set_thread_area(self, entry: int, desc: bytes) -> None:
        """Set a TLS slot of the GDT."""
        buffer = ffi.from_buffer(desc)
        self._do(_SET_THREAD_AREA, "PTRACE_SET_THREAD_AREA", entry, _address(buffer))

    def sigmask(self) -> int:
        """Return the blocked signals, bit n - 1 for signal n."""
        word = ffi.new("uint64_t *")
        self._do(_GETSIGMASK, "PTRACE_GETSIGMASK", 8, _address(word))
        return int(word[0])

    def set_sigmask(self, mask: int) -> None:
        """Set the blocked signals."""
        word = ffi.new("uint64_t *", mask & 0xFFFF_FFFF_FFFF_FFFF)
        self._do(_SETSIGMASK, "PTRACE_SETSIGMASK", 8, _address(word))

    def siginfo(self) -> bytes:
        """Return the siginfo of the signal that this stop reports."""
        buffer = ffi.new("uint8_t[]", _SIGINFO_SIZE)
        self._do(_GETSIGINFO, "PTRACE_GETSIGINFO", data=_address(buffer))
        return bytes(ffi.buffer(buffer))

    def pending(self, *, shared: bool) -> list[bytes]:
        """Return the queued signals' siginfos: the thread's own, or the process's if shared."""
        room = 64
        found: list[bytes] = []
        buffer = ffi.new("uint8_t[]", room * _SIGINFO_SIZE)
        while True:
            # struct ptrace_peeksiginfo_args: u64 off, u32 flags, s32 nr
            args = ffi.new("uint64_t[2]", [len(found), int(shared) | room << 32])
            got = self._do(_PEEKSIGINFO, "PTRACE_PEEKSIGINFO", _address(args), _address(buffer))
            data = bytes(ffi.buffer(buffer, got * _SIGINFO_SIZE))
            found += [data[i : i + _SIGINFO_SIZE] for i in range(0, len(data), _SIGINFO_SIZE)]
            if got < room:
                return found

    def rseq(self) -> Rseq | None:
        """Return the registered rseq area (PTRACE_GET_RSEQ_CONFIGURATION, Linux 5.13)."""
        config = ffi.new("uint32_t[6]")
        self._do(_GET_RSEQ, "PTRACE_GET_RSEQ_CONFIGURATION", 24, _address(config))
        pointer = config[0] | config[1] << 32
        return Rseq(pointer, config[2], config[3], config[4]) if pointer else None


def hear(tracees: Iterable[Tracee], *, interrupt: bool = False) -> None:
    """Wait until each of them has stopped or is gone: poll() then says which.

    With interrupt they are asked to stop; who has been heard already, because of a signal, stops
    after that.
    """
    everybody = list(tracees)
    for tracee in everybody:
        if interrupt and tracee.tid in _heard:
            with suppress(NoSuchTask):
                tracee.interrupt()
    tids = [tracee.tid for tracee in everybody if tracee.tid not in _heard]
    told = ffi.new("struct core_told[]", [(tid, 0, 0, 0, interrupt) for tid in tids])
    while True:
        count = lib.core_hear(told, len(tids))
        heard(told)
        if count == len(tids):
            return
        pid = _next_told()
        if pid in _tracees and (pid not in tids or pid in _heard):
            _take(pid)
            if pid in tids:  # a first thread has begun to end, as another executes and is it now
                told[tids.index(pid)].status = _heard[pid][0]
        elif pid not in tids:  # a child of ours has ended, for which somebody else will wait
            time.sleep(_PAUSE)


def heard(told: "ffi.CData") -> None:
    """Take note of what the C core has been told of tracees: poll() finds it."""
    _heard.update((one.tid, (one.status, one.code)) for one in told if one.told == 1)


def has_heard() -> bool:
    """Say whether something has been told of a tracee that nobody has asked for yet."""
    return bool(_heard)


def await_any() -> None:
    """Wait until something happens to a tracee of ours, and leave it to be found by poll().

    Where a child of ours has ended and nobody has waited for it, this does not wait long; the
    caller looks again and again then.
    """
    if not _heard and _next_told() not in _tracees:
        time.sleep(_PAUSE)


def reap(tid: int) -> None:
    """Wait for the end of a tracee, or of a child of ours, that has been killed."""
    ended = tid in _heard and not os.WIFSTOPPED(_heard[tid][0])
    with suppress(ChildProcessError):
        while not ended:
            ended = not os.WIFSTOPPED(os.waitpid(tid, WALL)[1])
            if not ended:  # the stop of Options.EXIT, which SIGKILL does not end
                lib.core_ptrace(_CONT, tid, 0, 0)
    _forget(tid)


def _forget(tid: int) -> None:
    _tracees.discard(tid)
    _heard.pop(tid, None)


def _take(tid: int) -> None:
    """Take what is told of a tracee, if it still is: SIGKILL ends a stop."""
    try:
        found, status = os.waitpid(tid, WALL | os.WNOHANG)
    except ChildProcessError as error:  # another thread has executed a program
        raise NoSuchTask(f"the thread {tid} is gone") from error
    if found:
        _heard[found] = status, None
        if status >> 16 == EVENT_EXIT:
            lib.core_ptrace(_CONT, tid, 0, 0)


def _next_told() -> int:
    """Wait until there is something to be told of a child or a tracee; return whose it is."""
    told = os.waitid(os.P_ALL, 0, os.WEXITED | os.WSTOPPED | os.WNOWAIT | WALL)
    assert told
    return told.si_pid


def _address(cdata: object) -> int:
    return int(ffi.cast("uintptr_t", cdata))


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}"
    return f"exit status {os.WEXITSTATUS(status)}"
