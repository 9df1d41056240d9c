# SPDX-License-Identifier: Apache-2.0
"""The pager as processes of its own: one that works, and one that holds what it works with.

If the one that works is killed, the other makes a new one: both have the descriptors, and what has
been filled in already the kernel tells. If the holder is killed, the worker goes on alone.
"""

import errno
import os
from collections.abc import Callable

from ckpt.errors import KernelError
from ckpt.image import pb
from ckpt.image.pages import PageReader, PageRun
from ckpt.kernel.arch import NR, Regs
from ckpt.kernel.pidfd import pidfd_getfd, pidfd_open
from ckpt.kernel.remote import Remote
from ckpt.kernel.userfaultfd import FILLING, UFFDIO_API, Mode, Userfaultfd, api_request
from ckpt.log import INFO, Log
from ckpt.memory.pager import Pager, Part, Space

Late = tuple[pb.vma_entry, list[PageRun]]
"""A mapping with its pages that are to come late."""


def fetch(remote: Remote, regs: Regs) -> Userfaultfd:
    """Have a stopped task of ours open a userfaultfd, and take it over; regs are any of its own."""
    batch = remote.batch()
    fd = batch.call(NR.userfaultfd, os.O_CLOEXEC | os.O_NONBLOCK, must=True)
    batch.call(NR.ioctl, fd, UFFDIO_API, batch.data(api_request(FILLING)), must=True)
    remote.run(batch, regs, 0)
    pidfd = pidfd_open(remote.tgid)
    try:
        uffd = Userfaultfd(pidfd_getfd(pidfd, fd.ret))
    finally:
        os.close(pidfd)
    number, batch = fd.ret, remote.batch()
    batch.call(NR.close, number, must=True)
    remote.run(batch, regs, 0)
    return uffd


def start_pager(
    uffd: Userfaultfd, late: list[Late], first: list[int], reader: PageReader, log: Log
) -> None:
    """Begin to fill a process's memory, from processes of our own that outlive us.

    The process may run when this returns: its faults wait in the descriptor. Ours is closed.
    """
    todo = []
    for entry, runs in late:
        if not uffd.register(entry.start, entry.end, Mode.MISSING):
            raise KernelError(errno.EINVAL, "UFFDIO_REGISTER", addr=entry.start)
        todo += [Part(run.vaddr, run.end, 0) for run in runs]
    kept = {uffd.fd, *(run.fd for run in reader), getattr(log, "fd", -1)}
    if os.fork() == 0:
        try:
            _detach(kept)
            _hold(lambda: _work(Pager(reader, Space(uffd, todo), first), log), uffd, todo)
        finally:
            os._exit(1)
    uffd.close()


def _detach(kept: set[int]) -> None:
    """Leave the caller's session, and let go of every descriptor but those."""
    os.setsid()
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                continue  # the listing's own
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.close(null)


def _hold(work: Callable[[], None], uffd: Userfaultfd, todo: list[Part]) -> None:
    """Have the work done by a child, and by another one should it be killed; never returns."""
    while True:
        worker = os.fork()
        if worker == 0:
            work()
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 0:
            os._exit(0)
        # A fault that it had read, but not answered, is told again.
        for part in todo:
            uffd.wake(part.start, part.end)


def _work(pager: Pager, log: Log) -> None:
    pager.run()
    figures = pager.figures
    log.line(
        INFO,
        f"pager: {figures.faults} faults, pages: {figures.by_fault} by fault, "
        f"{figures.by_drain} by drain, {figures.zeros} of zeros, {figures.lost} not readable",
    )
