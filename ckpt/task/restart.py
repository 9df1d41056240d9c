# SPDX-License-Identifier: Apache-2.0
"""System calls that a stop has interrupted go on as if it had not been.

Stopping a thread wakes its system call, which then says how it is to go on (signal(7), and
arch_do_signal_or_restart in the kernel):
- ERESTARTSYS and its like: make the same call again. The kernel does so, and `arch.home` with it.
- ERESTART_RESTARTBLOCK: call restart_syscall(2), which finds in the task itself what remains
  (nanosleep, poll, futex). That block does not survive a restore, so there the call is begun
  anew, with the time that remains, and interrupted: a new block (`rearm`).
- EINTR, for calls that are never restarted (epoll_wait, sigtimedwait ...): with no signal to
  handle, the kernel would not have returned at all. The call is made again, with the time left.

How long the thread has slept is told by `se.exec_start` of /proc/TID/sched, which stands still
while it sleeps: it is the time at which it last ran.
"""

import errno

from ckpt.kernel import procfs
from ckpt.kernel.arch import ERESTART_RESTARTBLOCK, NO_SYSCALL, NR, Regs, again, home
from ckpt.kernel.ptrace import Tracee

_NEVER_RESTARTED = {
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
    NR.futex,
}


def resumed(tracee: Tracee, sigmask: int) -> Regs:
    """Return the registers of a thread that has just stopped, EINTR undone.

    They are what the thread goes on with here, by way of `arch.home`, and what is dumped.
    """
    regs = tracee.regs()
    if regs.result != -errno.EINTR or regs.syscall not in _NEVER_RESTARTED:
        return regs
    status = procfs.status(tracee.tid)
    if (status.sig_pnd | status.shd_pnd) & ~sigmask:
        return regs  # a signal is there to be handled: EINTR is the truth
    regs = again(regs, regs.orig_ax)
    tracee.set_regs(regs)
    return regs


def image_regs(regs: Regs) -> Regs:
    """Return the registers as an image has them: ready to run, the interrupted call's number kept.

    A call with a restart block is told by EINTR, as CRIU does and expects; ours goes on better
    where the thread's record has `sleep_left`.
    """
    if regs.syscall is not None and -regs.result == ERESTART_RESTARTBLOCK:
        return regs._replace(ax=-errno.EINTR & NO_SYSCALL)
    return home(regs)._replace(orig_ax=regs.orig_ax)
