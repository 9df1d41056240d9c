# SPDX-License-Identifier: Apache-2.0
"""The end of a task that had ended: with the status that its parent has still to wait for.

And by which signal that, and the end of any other, is told to the parent.
"""

import os
import signal
from contextlib import suppress
from struct import Struct

from ckpt.errors import ImageError, NoSuchTask, TargetDied
from ckpt.image import pb
from ckpt.image.text import get_text
from ckpt.kernel.arch import NR, Regs
from ckpt.kernel.procfs import Stat
from ckpt.kernel.remote import Batch, Remote

_PR_SET_NAME = 15
_RLIMIT_CORE = 4
_ACTION = Struct("<QQQQ")
_SIGNO, _LAST = 0x7F, 64
_HARMLESS = (
    signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH,
    signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
)  # fmt: skip


def dump_signal(stat: Stat, entry: pb.task_core_entry) -> None:
    """Take down which signal tells the parent of its end, if it is not SIGCHLD: see clone(2)."""
    if stat.exit_signal != signal.SIGCHLD and 0 <= stat.exit_signal <= _LAST:
        entry.exit_signal = stat.exit_signal


def signal_of(entry: pb.task_core_entry) -> int:
    """Return which signal tells the parent of its end; 0 if none does."""
    signo: int = entry.exit_signal if entry.HasField("exit_signal") else signal.SIGCHLD
    if signo > _LAST:
        raise ImageError(f"core: a process that sends signal {signo} when it ends")
    return signo


def end(remote: Remote, regs: Regs, entry: pb.task_core_entry) -> None:
    """Have a stopped task end with the status in its record; regs are any of its own.

    Raises ImageError for a status that no process ends with.
    """
    batch = remote.batch()
    if entry.comm:
        name = os.fsencode(get_text(entry, "comm"))[:15] + b"\0"
        batch.call(NR.prctl, _PR_SET_NAME, batch.data(name))
    signo = entry.exit_code & _SIGNO
    if signo > _LAST or signo in _HARMLESS:
        raise ImageError(f"core: no process ends by signal {signo}")
    with suppress(TargetDied, NoSuchTask):
        if signo:
            _die(remote, regs, signo, batch)
        else:
            batch.call(NR.exit_group, entry.exit_code >> 8 & 0xFF)
            remote.start(regs, 0, batch)
        while True:
            remote.tracee.wait()
            remote.tracee.cont()


def _die(remote: Remote, regs: Regs, signo: int, batch: Batch) -> None:
    """Have it killed by a signal, which leaves no core file."""
    batch.call(NR.prlimit64, 0, _RLIMIT_CORE, batch.room(16), 0, must=True)
    if signo != signal.SIGKILL:
        default = batch.data(_ACTION.pack(0, 0, 0, 0))
        batch.call(NR.rt_sigaction, signo, default, 0, 8)
    remote.pause(batch)
    batch.call(NR.exit_group, 1)
    remote.run(batch, regs, 0)
    remote.tracee.set_sigmask(0)
    if signo == signal.SIGKILL:
        os.kill(remote.tid, signo)
    else:
        remote.tracee.cont(signo)
