# SPDX-License-Identifier: Apache-2.0
"""Many files of /proc, opened beforehand and read all in one call, as often as one likes.

What such a file says is made when it is read, not when it is opened; and to open it, by its path,
is what takes longest.
"""

import os
from contextlib import suppress
from typing import Self

from ckpt.kernel import procfs
from ckpt.kernel.ffi import check, ffi, lib

_ROOM = 64 << 10


class Glance:
    """Files to be read together; a context manager that closes them."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}
        self._room = _ROOM

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def add(self, *paths: str) -> None:
        """Open files; one that cannot be opened is left out."""
        for path in paths:
            if path not in self._fds:
                with suppress(OSError):
                    self._fds[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def look(self) -> "Seen":
        """Return what the files say now; what is no more is left out."""
        count = len(self._fds)
        fds = ffi.new("int32_t[]", list(self._fds.values()))
        ends = ffi.new("int64_t[]", count)
        while True:
            room = ffi.new("char[]", self._room)
            done = check(lib.core_read_all(fds, count, room, self._room, ends), "pread of /proc")
            if done == count:
                return Seen(self._cut(bytes(ffi.buffer(room)), ffi.unpack(ends, count)))
            self._room *= 2

    def _cut(self, room: bytes, ends: list[int]) -> dict[str, bytes]:
        found, start = {}, 0
        for name, end in zip(self._fds, ends, strict=True):
            if end >= 0:
                found[name] = room[start:end]
                start = end
        return found


class Seen:
    """What the files of a glance said at one moment, by path."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def read(self, pid: int, name: str) -> bytes:
        """Return /proc/PID/NAME as it was seen; what was not is read now, and kept."""
        path = f"/proc/{pid}/{name}"
        if path not in self.files:
            self.files[path] = procfs.read_path(path)
        return self.files[path]
