# SPDX-License-Identifier: Apache-2.0
"""Who waits in a vfork(2) until its child executes: to others the two only share their memory."""

from contextlib import suppress

from ckpt.errors import KernelError, NoSuchTask
from ckpt.kernel import mem, procfs
from ckpt.kernel.arch import NR

_CLONE_VFORK = 0x4000


def is_vforking(pid: int) -> bool:
    """Say whether a thread of a process waits for the child of a vfork(2), or of clone's like."""
    return any(_is_waiting(pid, tid) for tid in procfs.threads(pid))


def _is_waiting(pid: int, tid: int) -> bool:
    """Say so of a thread, which waits where no signal wakes it (wait_for_vfork_done): state D.

    When it is stopped after that, /proc shows the same call, but another state.
    """
    with suppress(NoSuchTask):  # a thread may end at any time
        if procfs.stat(pid, tid).state == "D" and (call := procfs.syscall(tid)):
            return call.number == NR.vfork or bool(_clone_flags(tid, call) & _CLONE_VFORK)
    return False


def _clone_flags(tid: int, call: procfs.Syscall) -> int:
    """Return the flags of a clone(2), or of a clone3(2), whose arguments begin with them."""
    if call.number == NR.clone:
        return call.args[0]
    if call.number == NR.clone3:
        with suppress(KernelError):  # it is something else by now
            return int.from_bytes(mem.read(tid, call.args[0], 8), "little")
    return 0
