# SPDX-License-Identifier: Apache-2.0
"""How a thread is scheduled: policy, nice value, CPUs, I/O priority, timer slack.

All of it is read and set from outside, by thread id. CPUs, I/O priority and timer slack have no
field in CRIU's records; they go into fields of ours that other readers pass over.
"""

import os
from contextlib import suppress
from struct import Struct

from ckpt.image import pb
from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import check, ffi, syscall
from ckpt.kernel.remote import Batch, Call
from ckpt.kernel.threads import State

PR_SET_TIMERSLACK, PR_GET_TIMERSLACK = 29, 30
_WHO_PROCESS, _SCHED_DEADLINE = 1, 6
_ATTR = Struct("<IIQiIQQQII")  # struct sched_attr, SCHED_ATTR_SIZE_VER1


def ask(batch: Batch) -> Call:
    """Add the call whose result is the timer slack in ns."""
    return batch.call(NR.prctl, PR_GET_TIMERSLACK)


def dump(state: State, cpus: int, slack: int, entry: pb.thread_core_entry) -> None:
    """Fill in the scheduling fields of a thread's record; cpus is a mask."""
    _, policy, flags, nice, priority, *_ = _ATTR.unpack(state.sched_attr)
    entry.sched_policy = policy
    entry.sched_nice = nice
    if priority:
        entry.sched_prio = priority
    if flags or policy == _SCHED_DEADLINE:
        entry.sched_attr = state.sched_attr
    entry.timer_slack = slack
    entry.affinity = cpus.to_bytes((cpus.bit_length() + 63) // 64 * 8, "little")
    if state.ioprio > 0:
        entry.ioprio = state.ioprio


def restore(tid: int, entry: pb.thread_core_entry) -> None:
    """Set the scheduling of a thread of ours, as far as its record says.

    CPUs that this machine does not have are left out.
    """
    attr = entry.sched_attr or _ATTR.pack(
        _ATTR.size, entry.sched_policy, 0, entry.sched_nice, entry.sched_prio, 0, 0, 0, 0, 0
    )
    buffer = ffi.from_buffer(attr)
    address = int(ffi.cast("uintptr_t", buffer))
    check(syscall(NR.sched_setattr, tid, address, 0), "sched_setattr", pid=tid)
    if entry.ioprio:
        check(syscall(NR.ioprio_set, _WHO_PROCESS, tid, entry.ioprio), "ioprio_set", pid=tid)
    if entry.affinity:
        mask = int.from_bytes(entry.affinity, "little")
        with suppress(OSError):
            os.sched_setaffinity(tid, [cpu for cpu in range(mask.bit_length()) if mask >> cpu & 1])


def restore_slack(entry: pb.thread_core_entry, batch: Batch) -> None:
    """Add the call that sets the timer slack, which only the thread itself can."""
    if entry.timer_slack:
        batch.call(NR.prctl, PR_SET_TIMERSLACK, entry.timer_slack, must=True)
