# SPDX-License-Identifier: Apache-2.0
"""Devices by number instead of by path (--evasive-devices): any node of a device will do.

The image has only a device's path. So where the node is gone at restore, its number is known only
of those that have their usual name, and /dev is where another node of them is.
"""

import os
import stat
from contextlib import suppress

from ckpt.errors import KernelError
from ckpt.kernel import files

# Major 1, mem.
_MINORS = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9, "kmsg": 11}

STATELESS = frozenset(os.makedev(1, minor) for minor in _MINORS.values())
"""Devices that keep nothing for who has them open."""


def is_at(path: str, st: os.stat_result) -> bool:
    """Say whether st is a device, and a node of it is at path."""
    kind = stat.S_IFMT(st.st_mode)
    try:
        found = os.lstat(path)
    except OSError:
        return False
    same = (stat.S_IFMT(found.st_mode), found.st_rdev) == (kind, st.st_rdev)
    return same and kind in (stat.S_IFCHR, stat.S_IFBLK)


def open_usual(name: str, flags: int, root: int) -> int | None:
    """Open the node in /dev for a device that had this path; None if it has no usual name."""
    base = os.path.basename(name)
    if base not in _MINORS:
        return None
    with suppress(KernelError):
        fd = files.openat2(root, f"dev/{base}", flags, files.RESOLVE_IN_ROOT)
        if os.fstat(fd).st_rdev == os.makedev(1, _MINORS[base]):
            return fd
        os.close(fd)
    return None
