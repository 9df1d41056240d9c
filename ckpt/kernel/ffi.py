# SPDX-License-Identifier: Apache-2.0
"""The only importer of the C core, and the one check that follows each call into it."""

import errno

from ckpt.errors import KernelError, NoSuchTask, NotPermitted
from ckpt.kernel._core import ffi, lib

__all__ = ["allocate", "check", "ffi", "lib", "syscall"]

allocate = ffi.new_allocator(should_clear_after_alloc=False)
"""ffi.new for what is written to before it is read: to make it of zeros takes longer."""


def check(ret: int, operation: str, *, pid: int | None = None, addr: int | None = None) -> int:
    """Return ret if it is no error, else raise what -errno stands for.

    Raises NoSuchTask (ESRCH), NotPermitted (EPERM, EACCES) or KernelError.
    """
    if ret >= 0:
        return ret
    if ret == -errno.ESRCH and pid is not None:
        raise NoSuchTask(f"{operation} pid {pid}: no such process")
    kind = NotPermitted if ret in (-errno.EPERM, -errno.EACCES) else KernelError
    raise kind(-ret, operation, pid=pid, addr=addr)


def syscall(nr: int, *args: int) -> int:
    """Make any system call; returns its result, or -errno."""
    padded = [arg & 0xFFFFFFFFFFFFFFFF for arg in args] + [0] * (6 - len(args))
    return int(lib.core_syscall(nr, *padded))
