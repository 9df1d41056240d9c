# SPDX-License-Identifier: Apache-2.0
"""System calls that a stop has interrupted go on as if it had not been.

Stopping a thread wakes its system call, which then says how it is to go on (signal(7), and
arch_do_signal_or_restart in the kernel):
- ERESTARTSYS and its like: make the same call again. The kernel does so, and `arch.home` with it.
- ERESTART_RESTARTBLOCK: call restart_syscall(2), which finds in the task itself what remains of
  a nanosleep, poll or futex wait. That block is not in an image.
- EINTR, for calls that are never restarted (epoll_wait, sigtimedwait ...): with no signal to
  handle, the kernel would not have returned at all.

So in the image, and for the last kind in the task too, the call is made again with the time that
is left: in its register if it is a number, else in a timespec put where nothing lives, below the
stack's red zone. How long a thread has slept is told by `se.exec_start` of /proc/TID/sched, the
time at which it last ran; where the kernel does not tell, the whole time is waited for again.
"""

import errno
import os
import re
import time
from collections.abc import Iterable
from struct import Struct
from typing import NamedTuple

from ckpt.errors import CkptError
from ckpt.kernel import mem, procfs
from ckpt.kernel.arch import ERESTART_RESTARTBLOCK, NO_SYSCALL, NR, Regs, again, call_of, home
from ckpt.kernel.glance import Glance, Seen
from ckpt.kernel.procfs import Syscall, signal_sets
from ckpt.kernel.ptrace import Tracee
from ckpt.kernel.threads import State

_NEVER_RESTARTED = {
    NR.read,
    NR.write,
    NR.readv,
    NR.writev,
    NR.connect,
    NR.sendto,
    NR.sendmsg,
    NR.epoll_wait,
    NR.epoll_pwait,
    NR.epoll_pwait2,
    NR.rt_sigtimedwait,
    NR.semop,
    NR.semtimedop,
    NR.io_getevents,
    NR.io_pgetevents,
    NR.recvfrom,
    NR.recvmsg,
    NR.recvmmsg,
    NR.accept,
    NR.accept4,
    NR.msgrcv,
    NR.msgsnd,
}

# Calls that wait for a relative time: which argument has it, in ms or as a struct timespec.
_MILLISECONDS: dict[int, int] = {NR.poll: 2, NR.epoll_wait: 3, NR.epoll_pwait: 3}
_TIMESPEC: dict[int, int] = {
    NR.nanosleep: 0,
    NR.clock_nanosleep: 2,
    NR.futex: 3,
    NR.rt_sigtimedwait: 2,
    NR.semtimedop: 3,
    NR.epoll_pwait2: 3,
    NR.io_getevents: 4,
    NR.io_pgetevents: 4,
}
_ARGUMENTS = ("di", "si", "dx", "r10", "r8", "r9")
_TIMER_ABSTIME = 1
_FUTEX_CMD_MASK = 0x7F

_CRITICAL_SECTION = Struct("<IIQQQ")  # struct rseq_cs: version, flags, start, length, abort
_SPEC = Struct("<qq")
_BELOW_STACK = 512  # the red zone has 128 bytes
_EXEC_START = re.compile(rb"^se\.exec_start\s*:\s*(\d+)\.(\d{6})$", re.MULTILINE)
_SWITCHES = b"\nnr_voluntary_switches"


class Sleep(NamedTuple):
    """A thread in a timed call, seen while it ran: the call, and since when (CLOCK_MONOTONIC)."""

    call: Syscall
    since: int
    switches: int


class Wait(NamedTuple):
    """A call that a stop of ours has interrupted and the kernel goes on with: the original one."""

    number: int
    args: tuple[int, ...]
    since: int


class Resumption(NamedTuple):
    """The registers with which a stopped thread goes on: here, and in the image.

    wait is to be given to the next stop of this thread: all that it will see by itself then is a
    restart_syscall(2).
    """

    regs: Regs
    image: Regs
    wait: Wait | None = None


class Sleeps:
    """The threads that are in a timed call, and since when; looked at while they run.

    glance is what will tell, when they have stopped, whether they still were; by default one of
    its own.
    """

    def __init__(self, glance: Glance | None = None) -> None:
        self._found: dict[int, Sleep] = {}
        self._own = None if glance else Glance()
        self.glance = glance or self._own or Glance()

    def look(self, tids: Iterable[int]) -> None:
        """Find them."""
        clocks: dict[int, int] = {}
        for tid in tids:
            try:
                call = procfs.syscall(tid)
                if call and _is_relative(call.number, call.args):
                    sched = procfs.read_path(_sched(tid))
                    cpu = procfs.stat(tid).processor
                    if cpu not in clocks:
                        clocks[cpu] = _scheduler_offset(cpu)
                    since = _scheduled(sched) + clocks[cpu]
                    self._found[tid] = Sleep(call, since, _switches(sched))
                    self.glance.add(_sched(tid), first=True)
            except CkptError:
                continue  # it has ended, or the kernel does not tell

    def still(self, tid: int, seen: Seen) -> Sleep | None:
        """Return what a thread was in, if a stop alone has woken it: by more, it is another call.

        seen is what there was right after the stop.
        """
        sleep = self._found.get(tid)
        if sleep and _switches(seen.find(_sched(tid)) or b"") == sleep.switches + 1:
            return sleep
        return None

    def close(self) -> None:
        """Close what is still open."""
        if self._own:
            self._own.close()


def _sched(tid: int | str) -> str:
    return f"/proc/{tid}/sched"


def _scheduler_offset(cpu: int) -> int:
    """Return what CLOCK_MONOTONIC is ahead of a CPU's scheduler clock, in ns; rather too much.

    Each CPU has its own, which stands still while interrupts and other guests have the CPU.
    """
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [cpu])
    try:
        os.sched_yield()  # which is when our own exec_start is brought up to date
        return -_scheduled(procfs.read_path(_sched("thread-self"))) + time.monotonic_ns()
    except OSError as error:
        raise CkptError(f"no clock of cpu {cpu}: {error}") from error
    finally:
        os.sched_setaffinity(0, ours)


def _is_relative(number: int, args: tuple[int, ...]) -> bool:
    if number == NR.clock_nanosleep and args[1] & _TIMER_ABSTIME:
        return False
    if number == NR.futex and args[1] & _FUTEX_CMD_MASK:
        return False  # all but FUTEX_WAIT take a point in time
    if number in _MILLISECONDS:
        return args[_MILLISECONDS[number]] & 0x8000_0000 == 0
    return number in _TIMESPEC and args[_TIMESPEC[number]] != 0


def _scheduled(sched: bytes) -> int:
    """Return when a thread last ran, in the scheduler's ns."""
    match = _EXEC_START.search(sched)
    if not match:
        raise CkptError("no exec_start in /proc/PID/sched")
    return int(match[1]) * 1_000_000 + int(match[2])


def _switches(sched: bytes) -> int:
    """Return how often a thread has gone to sleep; -1 if that is not told."""
    at = sched.find(_SWITCHES)
    return int(sched[at:].split(b"\n", 2)[1].split(b":")[1]) if at >= 0 else -1


def is_urgent(state: State) -> bool:
    """Say whether a thread that has just stopped would not go on as it should by itself."""
    number, result = call_of(state.raw)
    not_again = result == -errno.EINTR and number in _NEVER_RESTARTED
    return not_again or bool(state.critical_section)


def wait_of(state: State, sleep: Sleep | None, now: int, earlier: Wait | None) -> Wait | None:
    """Return the wait of a resumption alone; what for somebody else's stop is nobody knows."""
    number, result = call_of(state.raw)
    if number < 0 or -result != ERESTART_RESTARTBLOCK:
        return None
    wait = _wait(state.regs, sleep, now, earlier)
    return None if wait.number == NR.restart_syscall else wait


def resumption(
    tracee: Tracee,
    state: State,
    sleep: Sleep | None,
    now: int,
    earlier: Wait | None = None,
    seen: Seen | None = None,
) -> Resumption:
    """Say how a thread that has stopped goes on; set its registers if it must.

    sleep is what it was in just before, if it still was when it was stopped; now is when that
    was, CLOCK_MONOTONIC in ns; earlier is what its last stop by us had interrupted; seen is what
    a glance has told since then.
    """
    regs = _out_of_critical_section(tracee, state)
    if regs.syscall is None:
        return Resumption(regs, regs)
    if -regs.result == ERESTART_RESTARTBLOCK:
        wait = _wait(regs, sleep, now, earlier)
        if wait.number == NR.restart_syscall:  # somebody else's stop: what for, nobody knows
            return Resumption(regs, regs._replace(ax=-errno.EINTR & NO_SYSCALL))
        return Resumption(regs, _once_more(regs, tracee.tid, wait, now), wait)
    if -regs.result == errno.EINTR and regs.syscall in _NEVER_RESTARTED:
        own, shared, _ = signal_sets((seen or Seen()).read(tracee.tid, "status"))
        if not (own | shared) & ~state.sigmask:
            return _not_interrupted(regs, tracee, sleep, now)
    return Resumption(regs, home(regs)._replace(orig_ax=regs.orig_ax))


def _out_of_critical_section(tracee: Tracee, state: State) -> Regs:
    """Abort the rseq critical section that a thread was stopped in, as the kernel would have.

    By itself it does so on the way out of the stop. But seeing the thread in the stub, outside,
    it takes the section for done and forgets it; and then the thread would go on in the middle of
    it, on another CPU perhaps (rseq_ip_fixup in kernel/rseq.c).
    """
    regs = state.regs
    if not state.critical_section:
        return regs
    record = mem.read(tracee.tid, state.critical_section, _CRITICAL_SECTION.size)
    _, _, start, length, abort = _CRITICAL_SECTION.unpack(record)
    if not start <= regs.ip < start + length:
        return regs
    aborted = regs._replace(ip=abort)
    tracee.set_regs(aborted)
    return aborted


def _not_interrupted(regs: Regs, tracee: Tracee, sleep: Sleep | None, now: int) -> Resumption:
    """Have a call made again that says EINTR though there is no signal to handle."""
    image = _once_more(regs, tracee.tid, _wait(regs, sleep, now, None), now)
    here = image._replace(orig_ax=NO_SYSCALL)
    tracee.set_regs(here)
    return Resumption(here, image)


def _wait(regs: Regs, sleep: Sleep | None, now: int, earlier: Wait | None) -> Wait:
    """Return what the thread was in, and since when: since now, if that is not known."""
    if regs.orig_ax == NR.restart_syscall and earlier and earlier.args == regs.args:
        return earlier
    same = sleep and (sleep.call.number, sleep.call.args) == (regs.orig_ax, regs.args)
    since = sleep.since if sleep and same else now
    return Wait(regs.orig_ax, regs.args, min(since, now))


def _once_more(regs: Regs, tid: int, wait: Wait, now: int) -> Regs:
    """Return the registers that make the interrupted call again, for the time that is left."""
    number = wait.number
    fresh = again(regs, number)
    if not _is_relative(number, regs.args):
        return fresh._replace(orig_ax=number)
    slept = now - wait.since
    if number in _MILLISECONDS:
        argument = _MILLISECONDS[number]
        left = max(regs.args[argument] - slept // 1_000_000, 0)
        return fresh._replace(orig_ax=number, **{_ARGUMENTS[argument]: left})
    argument = _TIMESPEC[number]
    seconds, nanoseconds = _SPEC.unpack(mem.read(tid, regs.args[argument], _SPEC.size))
    left = max(seconds * 10**9 + nanoseconds - slept, 0)
    where = (regs.sp - _BELOW_STACK) & ~15
    mem.write(tid, where, _SPEC.pack(left // 10**9, left % 10**9))
    return fresh._replace(orig_ax=number, **{_ARGUMENTS[argument]: where})
