# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, one class per kind of trouble.

Each class owns one exit code of the command line and one errno of the RPC (criu's three, see
`rpc_errno`); several are also the stdlib's own type, so that callers may catch either. A message
says what was being done to what and why it failed; the hint says what to do about it. Only
`cli` and `rpc` catch, print and exit.
"""

import errno as _errno
import os


class CkptError(Exception):
    """Root of everything ckpt raises on purpose.

    `hint` is one line on what to do next, or None; it is printed on a line of its own.
    """

    exit_code = 1
    rpc_errno = 0

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class OptionsError(CkptError, ValueError):
    """The request itself is wrong: an unknown option, a value out of range, a clash of two."""

    exit_code = 2
    rpc_errno = _errno.EBADRQC


class Unsupported(CkptError):
    """The target holds something that cannot be dumped; raised before the target is changed."""

    exit_code = 3


class NoSuchTask(CkptError, ProcessLookupError):
    """There is no such process, or it went away while we looked."""

    exit_code = 4
    rpc_errno = _errno.ESRCH


class PidTaken(CkptError):
    """A pid or tid that the image needs is in use."""

    exit_code = 5
    rpc_errno = _errno.EEXIST


class ImageError(CkptError):
    """An image file is missing, truncated or does not say what it should."""

    exit_code = 6


class KernelError(CkptError, OSError):
    """A system call failed where it should not.

    Carries `errno`, the operation as the kernel names it, and the pid and address (or range)
    it was done to, where there is one.
    """

    exit_code = 7

    def __init__(
        self,
        error: int,
        operation: str,
        *,
        pid: int | None = None,
        addr: int | None = None,
        hint: str | None = None,
    ) -> None:
        where = "" if pid is None else f" pid {pid}"
        where += "" if addr is None else f" {addr:#x}"
        super().__init__(f"{operation}{where}: {os.strerror(error)}", hint=hint)
        self.errno = error
        self.operation = operation
        self.pid = pid
        self.addr = addr


class NotPermitted(KernelError, PermissionError):
    """The kernel refuses for want of a privilege, not because of the request."""

    exit_code = 8


class TargetDied(CkptError):
    """The target went away, or was killed, while it was being dumped or restored."""

    exit_code = 9
