# SPDX-License-Identifier: Apache-2.0
"""What all threads of a process share: the task_core of core-PID.img, and back."""

import errno
from collections.abc import Callable
from typing import NamedTuple

from ckpt.errors import KernelError
from ckpt.image import pb
from ckpt.image.text import set_text
from ckpt.kernel import procfs
from ckpt.kernel.arch import NR
from ckpt.kernel.procfs import PosixTimer
from ckpt.kernel.remote import Batch
from ckpt.task import ending, sigacts, signals, timers

TASK_ALIVE, TASK_DEAD, TASK_STOPPED, TASK_ZOMBIE = 1, 2, 3, 6
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37
_MEMBARRIER_GET_REGISTRATIONS = 1 << 9


class Raw(NamedTuple):
    """What is taken of a stopped process without its help, as the kernel gives it."""

    stat: bytes
    limits: bytes
    personality: bytes
    oom_score_adj: bytes
    loginuid: bytes
    pending: list[bytes]
    stop_signal: int


NAMES = ("stat", "limits", "personality", "oom_score_adj", "loginuid")
"""What take() reads of /proc/PID."""


def take(pid: int, stop_signal: int, queued: list[bytes], read: procfs.Read) -> Raw:
    """Put together what was seen in the freeze.

    queued are the signals that wait for the process as a whole; stop_signal is what had stopped it
    before us, 0 if nothing had.
    """
    stat, limits, personality, oom_score_adj, loginuid = (_read(read, pid, name) for name in NAMES)
    return Raw(stat, limits, personality, oom_score_adj, loginuid, queued, stop_signal)


def _read(read: procfs.Read, pid: int, name: str) -> bytes:
    """Read a file, or nothing if the kernel does not have it: a loginuid takes CONFIG_AUDIT."""
    try:
        return read(pid, name)
    except KernelError as error:
        if error.errno != errno.ENOENT or name != "loginuid":
            raise
        return b""


Answer = Callable[[Raw], pb.task_core_entry]


def ask(posix_timers: list[PosixTimer], batch: Batch) -> Answer:
    """Add the calls that only the process can make; return what makes the record after them."""
    actions = sigacts.ask(batch)
    times = timers.ask(posix_timers, batch)
    subreaper = batch.room(4)
    batch.call(NR.prctl, _PR_GET_CHILD_SUBREAPER, subreaper)
    membarrier = batch.call(NR.membarrier, _MEMBARRIER_GET_REGISTRATIONS, 0, 0)

    def answer(raw: Raw) -> pb.task_core_entry:
        stat = procfs.parse_stat(raw.stat)
        entry = pb.task_core_entry(
            task_state=TASK_STOPPED if raw.stop_signal else TASK_ALIVE,
            exit_code=0,
            personality=int(raw.personality, 16),
            flags=stat.flags,
            blk_sigset=0,
            timers=times(),
            loginuid=int(raw.loginuid or procfs.INVALID_UID),
            oom_score_adj=int(raw.oom_score_adj),
            child_subreaper=bool(subreaper.bytes[0]),
        )
        if raw.stop_signal:
            entry.stop_signo = raw.stop_signal
        set_text(entry, "comm", stat.comm)
        ending.dump_signal(stat, entry)
        entry.sigactions.extend(actions())
        entry.signals_s.CopyFrom(signals.queue(raw.pending))
        for soft, hard in procfs.parse_limits(raw.limits):
            entry.rlimits.rlimits.add(cur=soft, max=hard)
        if membarrier.ret > 0:
            entry.membarrier_registration_mask = membarrier.ret
        return entry

    return answer


# --- restore


def restore(entry: pb.task_core_entry, batch: Batch) -> None:
    """Add the calls for what all threads share; but for signal actions, timers and limits."""
    if entry.personality:
        batch.call(NR.personality, entry.personality, must=True)
    if entry.child_subreaper:
        batch.call(NR.prctl, _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0, must=True)
    _restore_membarrier(entry.membarrier_registration_mask, batch)


def _restore_membarrier(mask: int, batch: Batch) -> None:
    """Register again: each MEMBARRIER_CMD_X's registration is the command beside it."""
    for bit in range(32):
        if mask >> bit & 1:
            batch.call(NR.membarrier, 1 << bit, 0, 0)


def restore_limits(entry: pb.task_core_entry, pid: int, batch: Batch) -> None:
    """Add the calls that set the resource limits which differ from those the task has from us.

    Raises KernelError for a hard limit above ours that we have no right to.
    """
    for resource, (now, wanted) in enumerate(
        zip(procfs.limits(pid), entry.rlimits.rlimits, strict=False)
    ):
        if now != (wanted.cur, wanted.max):
            pair = wanted.cur.to_bytes(8, "little") + wanted.max.to_bytes(8, "little")
            batch.call(NR.prlimit64, 0, resource, batch.data(pair), 0, must=True)


def restore_outside(entry: pb.task_core_entry, pid: int) -> None:
    """Set what is set through /proc: the OOM killer's view."""
    if entry.oom_score_adj == procfs.oom_score_adj(pid):
        return
    path = f"/proc/{pid}/oom_score_adj"
    try:
        with open(path, "w") as file:
            file.write(str(entry.oom_score_adj))
    except OSError as error:
        raise KernelError(
            error.errno or 0,
            f"writing {entry.oom_score_adj} to {path}",
            hint="lowering it takes CAP_SYS_RESOURCE",
        ) from error
