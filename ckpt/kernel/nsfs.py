# SPDX-License-Identifier: Apache-2.0
"""Namespaces as the files of /proc/PID/ns (namespaces(7)): to be in another task's for a while."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ckpt.errors import KernelError, NoSuchTask
from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import check, syscall


def is_ours(kind: str, pid: int) -> bool:
    """Say whether a task is in the same namespace of a kind as we are."""
    theirs = _stat(f"/proc/{pid}/ns/{kind}")
    return os.path.samestat(theirs, _stat(f"/proc/self/ns/{kind}"))


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except FileNotFoundError:
        raise NoSuchTask(f"stat {path}: no such task") from None
    except OSError as error:
        raise KernelError(error.errno or 0, f"stat {path}") from error


@contextmanager
def entered(kind: str, pid: int) -> Iterator[None]:
    """Be in a task's namespace of a kind ("ipc", ...), this thread only; no-op if it is ours.

    Raises NoSuchTask, NotPermitted (it takes CAP_SYS_ADMIN) or KernelError.
    """
    theirs = _open(kind, pid)
    try:
        ours = _open(kind, os.getpid())
        try:
            if os.path.sameopenfile(theirs, ours):
                yield
                return
            check(syscall(NR.setns, theirs, 0), f"setns {kind}", pid=pid)
            try:
                yield
            finally:
                check(syscall(NR.setns, ours, 0), f"setns {kind}")
        finally:
            os.close(ours)
    finally:
        os.close(theirs)


def _open(kind: str, pid: int) -> int:
    path = f"/proc/{pid}/ns/{kind}"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NoSuchTask(f"open {path}: no such task") from None
    except OSError as error:
        raise KernelError(error.errno or 0, f"open {path}", pid=pid) from error
