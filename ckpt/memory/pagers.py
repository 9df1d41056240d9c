# SPDX-License-Identifier: Apache-2.0
"""The pagers of a process that was restored lazily, as others find them: by their name."""

import os
import select
from contextlib import suppress

from ckpt.errors import NoSuchTask
from ckpt.kernel.pidfd import pidfd_open
from ckpt.log import INFO, Log

_PATIENCE_MS = 10_000


def pager_name(pid: int) -> str:
    """Return what the processes are called that fill in a process's memory."""
    return f"lazy-{pid}"


def await_pagers(pids: list[int], log: Log) -> None:
    """Return when they have ended, which they do when all pages are in; or do nothing any more.

    They are called after one of the processes that share the memory.
    """
    waited = False
    while found := _pagers(pids):
        if not waited:
            log.line(INFO, f"pid {pids[0]} does not have all its pages yet: waiting for its pager")
            waited = True
        worked = [_worked(pager) for pager in found]
        if not _has_ended(found[0]) and [_worked(pager) for pager in found] == worked:
            return


def _pagers(pids: list[int]) -> list[int]:
    names, found = [f"{pager_name(pid)}\n" for pid in pids], list[int]()
    for entry in os.listdir("/proc"):
        # One that has ended has no exe any more, but is there until it is waited for.
        with suppress(OSError, ValueError):
            pager = int(entry)
            with open(f"/proc/{pager}/comm") as comm:
                if comm.read() in names and os.stat(f"/proc/{pager}").st_uid == os.getuid():
                    os.readlink(f"/proc/{pager}/exe")
                    found.append(pager)
    return found


def _has_ended(pager: int) -> bool:
    try:
        pidfd = pidfd_open(pager)
    except NoSuchTask:
        return True
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(_PATIENCE_MS))
    finally:
        os.close(pidfd)


def _worked(pager: int) -> str:
    """Return how much it has worked, in whatever unit."""
    with suppress(OSError), open(f"/proc/{pager}/schedstat") as schedstat:
        return schedstat.read().split()[0]
    return ""
