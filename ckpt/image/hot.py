# SPDX-License-Identifier: Apache-2.0
"""hot-PID: the order in which a process will want its pages, as far as is known; only a hint.

A live dump knows which pages were written while it ran, a lazy restore which were missed. A file
of ours beside the image proper, that no other tool reads: a magic, then addresses of 64 KiB
blocks, eight bytes each, the first wanted first. Whatever is wrong with it, there is no hint.
"""

import os
from array import array
from collections.abc import Iterable
from contextlib import suppress

BLOCK = 64 << 10
_MAGIC = b"ckpthot1"
_MOST = 1 << 14
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def read_hot(directory: str, pid: int) -> list[int]:
    """Return the addresses; none if there is no such file, or it is damaged."""
    try:
        fd = os.open(_path(directory, pid), _READ)
    except OSError:
        return []
    try:
        data = os.read(fd, len(_MAGIC) + 8 * _MOST)
    except OSError:
        return []
    finally:
        os.close(fd)
    if not data.startswith(_MAGIC) or len(data) % 8:
        return []
    return list(array("Q", data[len(_MAGIC) :]))


def write_hot(directory: str, pid: int, addresses: Iterable[int]) -> None:
    """Keep addresses, in this order, each block once; if that cannot be, there is no hint."""
    blocks = list(dict.fromkeys(address & -BLOCK for address in addresses))[:_MOST]
    path = _path(directory, pid)
    draft = f"{path}.new"
    with suppress(OSError):
        fd = os.open(draft, _WRITE, 0o600)
        try:
            os.write(fd, _MAGIC + array("Q", blocks).tobytes())
        finally:
            os.close(fd)
        os.rename(draft, path)


def _path(directory: str, pid: int) -> str:
    return os.path.join(directory, f"hot-{pid}")
