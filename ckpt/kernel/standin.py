# SPDX-License-Identifier: Apache-2.0
"""A process that has a pid for a moment, for what takes one that exists."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ckpt.kernel.ffi import check, ffi, lib


@contextmanager
def stand_in(pid: int) -> Iterator[None]:
    """Have a process of this pid while the block lasts; it ends with us, should we die.

    One that came to be meanwhile does as well. Raises NotPermitted, KernelError (EINVAL: no
    process can have it).
    """
    lifeline = os.pipe2(os.O_CLOEXEC)
    made = lib.core_clone_paused(0, ffi.new("int32_t[]", [pid]), 1, lifeline)
    try:
        if made != -errno.EEXIST:
            check(made, "clone3", pid=pid)
        yield
    finally:
        os.close(lifeline[1])
        os.close(lifeline[0])
        if made > 0:
            with suppress(ChildProcessError):  # who ignores SIGCHLD has nobody to wait for
                os.waitpid(pid, 0)
