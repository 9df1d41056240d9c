# SPDX-License-Identifier: Apache-2.0
"""Interval timers (setitimer(2)) and POSIX timers (timer_create(2)) of a process.

Both are kept as the time that is left, and go on from there: for a timer, being dumped is no time
at all.
"""

from collections.abc import Callable
from struct import Struct

from ckpt.image import pb
from ckpt.kernel.arch import NR
from ckpt.kernel.procfs import PosixTimer
from ckpt.kernel.remote import Batch, Call

_SPEC = Struct("<qqqq")  # struct itimerval, itimerspec: interval, then value
_SIGEVENT = Struct("<Qiii44x")  # sigval, signo, notify, thread id
_ITIMERS = ("real", "virt", "prof")
_SIGEV_THREAD_ID = 4
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


def arm(entry: pb.task_timers_entry, batch: Batch) -> None:
    """Add the calls that set all timers going: the last thing before the task runs."""
    for which, name in enumerate(_ITIMERS):
        item = getattr(entry, name)
        item = _itimer(item.isec, item.iusec, item.vsec, item.vusec)  # CRIU keeps what it saw
        if item.vsec or item.vusec:
            spec = _SPEC.pack(item.isec, item.iusec, item.vsec, item.vusec)
            batch.call(NR.setitimer, which, batch.data(spec), 0, must=True)
    for timer in entry.posix:
        if timer.vsec or timer.vnsec or timer.isec or timer.insec:
            spec = _SPEC.pack(timer.isec, timer.insec, timer.vsec, timer.vnsec)
            batch.call(NR.timer_settime, timer.it_id, 0, batch.data(spec), 0, must=True)
