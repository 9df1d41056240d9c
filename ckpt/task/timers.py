# SPDX-License-Identifier: Apache-2.0
"""Interval timers (setitimer(2)) and POSIX timers (timer_create(2)) of a process.

Both are kept as the time that is left, and go on from there: for a timer, being dumped is no time
at all.

The overrun count of a POSIX timer (timer_getoverrun(2)) is made when its signal is taken, of the
intervals that have gone by since it was due, and forgotten when the timer is set. So a timer with a
count is set to a moment long ago, and its signal taken at once (`count`). That cannot be done for
CLOCK_REALTIME, where a timer that is set to a moment obeys who sets the clock, and nothing tells
whether it did; nor for CPU clocks, on which there is no such moment.
"""

import signal
import time
from collections.abc import Callable, Iterable, Mapping
from struct import Struct

from ckpt.image import pb
from ckpt.kernel.arch import NR
from ckpt.kernel.procfs import PosixTimer
from ckpt.kernel.remote import Batch, Call

_SPEC = Struct("<qqqq")  # struct itimerval, itimerspec: interval, then value
_TIME = Struct("<qq")  # struct timespec
_SIGEVENT = Struct("<Qiii44x")  # sigval, signo, notify, thread id
_ITIMERS = ("real", "virt", "prof")
_SIGEV_NONE, _SIGEV_THREAD_ID = 1, 4
_TIMER_ABSTIME = 1
_SECOND = 10**9
_COUNTING = {time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME, time.CLOCK_TAI}
_JOB_CONTROL = {signal.SIGCONT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
"""Signals that do something by being sent."""
_PR_TIMER_CREATE_RESTORE_IDS = 77


def ask(timers: list[PosixTimer], batch: Batch) -> Callable[[], pb.task_timers_entry]:
    """Add the calls for timers, as /proc/PID/timers lists them; return what reads the results."""
    itimers = batch.room(_SPEC.size * 3)
    for which in range(3):
        batch.call(NR.getitimer, which, itimers.address + which * _SPEC.size, must=True)
    asked = [_ask_posix(timer, batch) for timer in timers]

    def answer() -> pb.task_timers_entry:
        entry = pb.task_timers_entry()
        for name, times in zip(_ITIMERS, _SPEC.iter_unpack(itimers.bytes), strict=True):
            getattr(entry, name).CopyFrom(_itimer(*times))
        entry.posix.extend(read() for read in asked)
        return entry

    return answer


def _itimer(isec: int, iusec: int, vsec: int, vusec: int) -> pb.itimer_entry:
    """Make the record of an interval timer.

    While its signal is pending a periodic ITIMER_REAL stands still with nothing left, as if
    disarmed: the kernel starts it again when the signal is taken (posixtimer_rearm_itimer). The
    restored one has its next period at once.
    """
    if not (vsec or vusec):
        vsec, vusec = isec, iusec
    return pb.itimer_entry(isec=isec, iusec=iusec, vsec=vsec, vusec=vusec)


def _ask_posix(timer: PosixTimer, batch: Batch) -> Callable[[], pb.posix_timer_entry]:
    spec = batch.room(_SPEC.size)
    batch.call(NR.timer_gettime, timer.id, spec, must=True)
    overrun = batch.call(NR.timer_getoverrun, timer.id)

    def answer() -> pb.posix_timer_entry:
        isec, insec, vsec, vnsec = _SPEC.unpack(spec.bytes)
        return pb.posix_timer_entry(
            it_id=timer.id,
            # The kernel shows a per-thread CPU clock as its own negative number.
            clock_id=timer.clock & 0xFFFF_FFFF,
            si_signo=timer.signo,
            it_sigev_notify=timer.notify,
            sival_ptr=timer.sigval,
            overrun=max(overrun.ret, 0),
            isec=isec,
            insec=insec,
            vsec=vsec,
            vnsec=vnsec,
            notify_thread_id=timer.target if timer.notify & _SIGEV_THREAD_ID else None,
        )

    return answer


def create(entry: pb.task_timers_entry, batch: Batch, *, restore_ids: bool) -> list[Call]:
    """Add the calls that make the POSIX timers, with their ids, unarmed.

    restore_ids says that the kernel takes the id we want (Linux 6.15); before, ids count up from
    0 and the ones between are made and deleted again.
    """
    if restore_ids and entry.posix:
        batch.call(NR.prctl, _PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0, must=True)
    calls, following = [], 0
    for timer in sorted(entry.posix, key=lambda timer: timer.it_id):
        while not restore_ids and following < timer.it_id:
            _create(timer, following, batch)
            batch.call(NR.timer_delete, following, must=True)
            following += 1
        calls.append(_create(timer, timer.it_id, batch))
        following = timer.it_id + 1
    if restore_ids and entry.posix:
        batch.call(NR.prctl, _PR_TIMER_CREATE_RESTORE_IDS, 0, 0, 0, 0, must=True)
    return calls


def _create(timer: pb.posix_timer_entry, wanted: int, batch: Batch) -> Call:
    event = _SIGEVENT.pack(
        timer.sival_ptr, timer.si_signo, timer.it_sigev_notify, timer.notify_thread_id
    )
    where = batch.data(wanted.to_bytes(4, "little"))
    return batch.call(NR.timer_create, timer.clock_id, batch.data(event), where, must=True)


Counted = dict[int, list[pb.posix_timer_entry]]
"""Timers, by the thread that takes their signals."""


def counted(entry: pb.task_timers_entry, pid: int, free: Mapping[int, int]) -> Counted:
    """Return the timers whose overrun count can be made again.

    free has the signals (a set) that a thread blocks while it makes calls for us, without those
    that wait for it already: one of these would be taken in the timer's stead. What is due last
    comes first, so that no timer is due again before all of them are counted.
    """
    found: Counted = {}
    for timer in sorted(entry.posix, key=lambda timer: -_ns(timer.vsec, timer.vnsec)):
        tid = timer.notify_thread_id if timer.it_sigev_notify & _SIGEV_THREAD_ID else pid
        if _first(timer) > 0 and _can_be_taken(timer.si_signo, free.get(tid, 0)):
            found.setdefault(tid, []).append(timer)
    return found


def _can_be_taken(signo: int, free: int) -> bool:
    return signo > 0 and bool(free >> signo - 1 & 1) and signo not in _JOB_CONTROL


def _first(timer: pb.posix_timer_entry) -> int:
    """Return when the timer was due, had its signal been taken now: ns of its clock; or 0."""
    left, interval = _ns(timer.vsec, timer.vnsec), _ns(timer.isec, timer.insec)
    tells = timer.it_sigev_notify != _SIGEV_NONE and timer.clock_id in _COUNTING
    if not (timer.overrun and tells and 0 < left <= interval):
        return 0
    return time.clock_gettime_ns(timer.clock_id) + left - (timer.overrun + 1) * interval


def count(timers: Iterable[pb.posix_timer_entry], batch: Batch) -> None:
    """Add the calls by which a thread sets timers going as if it had just taken their signals.

    It has these blocked, and what is blocked is queued even if it is ignored (signal(7)).
    """
    second = batch.data(_TIME.pack(1, 0))
    for timer in timers:
        spec = batch.data(_SPEC.pack(timer.isec, timer.insec, *divmod(_first(timer), _SECOND)))
        batch.call(NR.timer_settime, timer.it_id, _TIMER_ABSTIME, spec, 0, must=True)
        wanted = batch.data((1 << timer.si_signo - 1).to_bytes(8, "little"))
        batch.call(NR.rt_sigtimedwait, wanted, 0, second, 8, must=True)


def _ns(seconds: int, nanoseconds: int) -> int:
    return seconds * _SECOND + nanoseconds


def arm(entry: pb.task_timers_entry, done: Counted, batch: Batch) -> None:
    """Add the calls that set the timers going that are not done: the last thing before it runs."""
    for which, name in enumerate(_ITIMERS):
        item = getattr(entry, name)
        item = _itimer(item.isec, item.iusec, item.vsec, item.vusec)  # CRIU keeps what it saw
        if item.vsec or item.vusec:
            spec = _SPEC.pack(item.isec, item.iusec, item.vsec, item.vusec)
            batch.call(NR.setitimer, which, batch.data(spec), 0, must=True)
    ids = {timer.it_id for timers in done.values() for timer in timers}
    for timer in entry.posix:
        if timer.it_id in ids:
            continue
        if timer.vsec or timer.vnsec or timer.isec or timer.insec:
            spec = _SPEC.pack(timer.isec, timer.insec, timer.vsec, timer.vnsec)
            batch.call(NR.timer_settime, timer.it_id, 0, batch.data(spec), 0, must=True)
