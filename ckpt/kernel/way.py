# SPDX-License-Identifier: Apache-2.0
"""By which thread a process is reached.

/proc, ptrace(2), kcmp(2), process_vm_readv(2) and pidfd_getfd(2) take a process's id for its first
thread. That may have ended (exit(2), pthread_exit(3)) while others live on: it is a zombie then,
without memory, descriptors or namespaces, until the last one ends; and they are to be asked for
another thread, by its id. Of all other processes both ids are the same.
"""

import signal
from contextlib import suppress
from typing import NamedTuple

from ckpt.errors import NoSuchTask
from ckpt.kernel import procfs

_KILLED = 1 << signal.SIGKILL - 1


class Way(NamedTuple):
    """A process, and the thread by which it is reached: the first one, as long as that lives."""

    pid: int
    tid: int

    @property
    def is_another(self) -> bool:
        """Whether the first thread has ended, and others have not."""
        return self.pid != self.tid


def way_to(pid: int) -> Way:
    """Return how a process is reached; by its own id, too, when none of its threads lives."""
    if procfs.is_ending(pid):
        with suppress(NoSuchTask):
            for tid in procfs.threads(pid):
                if tid != pid and _lives(tid):
                    return Way(pid, tid)
    return Way(pid, pid)


def is_over(pid: int) -> bool:
    """Whether a process has ended, or has begun to: all of its threads."""
    return procfs.is_ending(way_to(pid).tid)


def _lives(tid: int) -> bool:
    """Say whether a thread goes on: not if it is only the last to learn of exit_group(2)."""
    with suppress(NoSuchTask):
        return not (procfs.status(tid).sig_pnd & _KILLED or procfs.is_ending(tid))
    return False
