# SPDX-License-Identifier: Apache-2.0
"""Files of /proc that belong to a task of the image: there to be opened when it is there.

By whom matters as well: what /proc/PID/mem or maps leads to is the memory of when it was opened.
"""

import os
import re
from typing import Any

from ckpt.files.kind import Restore
from ckpt.image.text import get_path
from ckpt.kernel.arch import NR
from ckpt.kernel.remote import Batch, Call

_OF_A_TASK = re.compile(r"/proc/(\d+)(/.*)?")
_AT_FDCWD = -100
_NOT_TO_OPEN_WITH = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_ASYNC


def is_own(name: str, make: Restore) -> bool:
    """Say whether a path is one of a task that is to be restored."""
    found = _OF_A_TASK.fullmatch(name)
    return found is not None and int(found[1]) in make.once("pids", lambda: _pids(make))


def _pids(make: Restore) -> set[int]:
    if not make.image.exists("pstree"):
        return set()
    return {tree.pid for tree, _ in make.image.records("pstree")}


def open_inside(entry: Any, batch: Batch) -> Call:
    """Have the task open it, at its position."""
    path = batch.data(os.fsencode(get_path(entry, "name")) + b"\0")
    flags = entry.flags & ~_NOT_TO_OPEN_WITH | os.O_CLOEXEC
    fd = batch.call(NR.openat, _AT_FDCWD, path, flags, 0, must=True)
    if entry.pos:
        batch.call(NR.lseek, fd, entry.pos, os.SEEK_SET)
    return fd
