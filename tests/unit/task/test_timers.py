# SPDX-License-Identifier: Apache-2.0
"""Which overrun counts a restore makes again, whatever an image says."""

import signal
import time

import pytest

from ckpt.image import pb
from ckpt.kernel.arch import NR
from ckpt.kernel.remote import Batch, Draft, Slot
from ckpt.task import timers

PID, TID, SIGNO = 100, 101, signal.SIGRTMIN
FREE = {PID: (1 << 64) - 1, TID: ~(1 << SIGNO - 1)}
SECOND = 10**9


def timer(**fields: int) -> pb.posix_timer_entry:
    known = {
        "clock_id": time.CLOCK_MONOTONIC,
        "si_signo": SIGNO,
        "it_sigev_notify": 0,
        "overrun": 3,
    }
    times = {"isec": 0, "insec": 2_000_000, "vsec": 0, "vnsec": 1_000_000}
    return pb.posix_timer_entry(**{"it_id": 0, "sival_ptr": 0, **known, **times, **fields})


def counted(*entries: pb.posix_timer_entry) -> timers.Counted:
    return timers.counted(pb.task_timers_entry(posix=entries), PID, FREE)


def test_whose_signal_is_taken_by_whom() -> None:
    ours, theirs = timer(), timer(it_id=1, it_sigev_notify=4, notify_thread_id=TID, si_signo=40)
    assert counted(ours, theirs) == {PID: [ours], TID: [theirs]}


def test_what_is_due_last_comes_first() -> None:
    soon, late = timer(vnsec=1000), timer(it_id=1)
    assert counted(soon, late) == {PID: [late, soon]}


@pytest.mark.parametrize(
    "fields",
    [
        {"overrun": 0},
        {"vnsec": 0},
        {"insec": 0},
        {"vsec": 5},
        {"clock_id": time.CLOCK_REALTIME},
        {"clock_id": time.CLOCK_PROCESS_CPUTIME_ID},
        {"clock_id": (1 << 32) - 6},
        {"it_sigev_notify": 1, "si_signo": 0},
        {"si_signo": 0},
        {"si_signo": 65},
        {"si_signo": (1 << 32) - 1},
        {"si_signo": signal.SIGCONT},
        {"si_signo": signal.SIGTSTP},
        {"it_sigev_notify": 4, "notify_thread_id": TID},
        {"it_sigev_notify": 4, "notify_thread_id": TID + 1},
        {"it_sigev_notify": 4},
        {"isec": 1 << 20, "overrun": (1 << 31) - 1},
        {"isec": (1 << 64) - 1},
    ],
    ids=str,
)
def test_what_cannot_be_counted_is_left_alone(fields: dict[str, int]) -> None:
    assert counted(timer(**fields)) == {}


def test_the_moment_is_as_long_ago_as_the_count_says() -> None:
    draft = Draft(4096, 1 << 46)
    batch = Batch(Slot(draft, 0, 4096))
    before = time.monotonic_ns()
    timers.count([timer()], batch)
    after = time.monotonic_ns()
    settime, taking = batch.calls
    assert (settime.name, taking.name) == (NR.timer_settime.name, NR.rt_sigtimedwait.name)
    at = settime.args[2] - draft.base
    words = memoryview(draft.memory)[at : at + 32].cast("q")
    assert words[0] * SECOND + words[1] == 2_000_000
    first = words[2] * SECOND + words[3]
    # three intervals and a half, since there is half of one left
    assert before <= first + 7_000_000 <= after
