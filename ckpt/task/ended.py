# SPDX-License-Identifier: Apache-2.0
"""A first thread that has ended while others live on: what is left of it, and how it ends again.

Its record is the process's as ever, in core-PID.img, but for registers: it has none. That it has
ended is said by a task_state of ours, which real CRIU refuses. What its end has done, in memory and
to who waited for it, is done: a restored one is made without any of that, and ends by exit(2).
"""

from typing import NamedTuple

from ckpt.image import pb
from ckpt.image.text import get_text, set_text
from ckpt.kernel import procfs
from ckpt.kernel.arch import NO_SYSCALL, NR, Regs
from ckpt.kernel.gadget import Gadget
from ckpt.kernel.remote import Batch
from ckpt.task import creds, ending, thread

LEADER_ENDED = 1000
"""The task_state of a process whose first thread has ended; with a stop_signo, it is stopped."""
NAMES = ("stat", "status")
"""What is taken of /proc/PID, which is still the first thread."""


class Raw(NamedTuple):
    """What is taken of it, as the kernel gives it."""

    stat: bytes
    status: bytes


def record(raw: Raw, of_process: pb.task_core_entry, other: pb.thread_core_entry) -> pb.core_entry:
    """Return its record, with what all threads share; other is that of one that lives.

    Of its credentials /proc does not tell the securebits: they are the other's. Its exit code shows
    in /proc alone: wait(2) tells that of the last thread. While the process is stopped it does not.
    """
    stat, status = procfs.parse_stat(raw.stat), procfs.parse_status(raw.status)
    core = pb.core_entry()
    core.tc.CopyFrom(of_process)
    core.tc.task_state = LEADER_ENDED
    core.tc.exit_code = 0 if of_process.HasField("stop_signo") else stat.exit_code
    set_text(core.tc, "comm", stat.comm)
    ending.dump_signal(stat, core.tc)  # of all threads it alone has one
    one = core.thread_core
    one.futex_rla = one.futex_rla_len = 0
    set_text(one, "comm", stat.comm)
    one.creds.CopyFrom(creds.dump(status, other.creds.secbits))
    one.cg_set = other.cg_set
    return core


# --- restore


def is_ended(core: pb.core_entry) -> bool:
    """Say whether this is the record of a first thread that has ended."""
    return bool(core.tc.task_state == LEADER_ENDED)


def restore(entry: pb.thread_core_entry, ours: procfs.Status, batch: Batch) -> None:
    """Add the calls after which it may end: with its name and credentials, and without a trace."""
    thread.rename(get_text(entry, "comm"), batch)
    batch.call(NR.set_tid_address, 0)
    creds.restore(entry.creds, ours, batch)


def last_call(core: pb.core_entry, regs: Regs, gadget: Gadget) -> Regs:
    """Return the registers by which it ends as soon as it runs, by a call in its own code."""
    code = core.tc.exit_code >> 8 & 0xFF
    return regs._replace(ip=gadget.address, ax=NR.exit, di=code, orig_ax=NO_SYSCALL)
