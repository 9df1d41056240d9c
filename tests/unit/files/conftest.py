# SPDX-License-Identifier: Apache-2.0
"""A dump and a restore of single files, in this very process."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckpt.files.kind import Dump, FileKind, OpenFile, Restore
from ckpt.files.opened import dump_file
from ckpt.image import pb
from ckpt.image.directory import ImageDir
from ckpt.kernel.fdinfo import fdinfo
from ckpt.options import DumpOptions, RestoreOptions

STATUS = os.O_APPEND | os.O_NONBLOCK | os.O_DIRECT | os.O_NOATIME


class RoundTrip:
    """What the table does around the kinds, for descriptors of our own."""

    def __init__(self, directory: Path) -> None:
        self.image = ImageDir.create(directory / "image")
        self.entries: dict[int, pb.file_entry] = {}
        self.shmem: dict[int, bytes] = {}
        self.dump_options = DumpOptions(pid=os.getpid())
        self.ids = iter(range(1, 1000))
        self.kinds: dict[int, type[FileKind]] = {}
        self.out = Dump(self.image, self.dump_options, self.save, lambda: next(self.ids), self.add)
        self.make = Restore(
            self.image, RestoreOptions(), self.entries, self.load, lambda file_id: -1
        )
        self.fds: list[int] = []

    def save(self, shmid: int, fd: int, size: int) -> None:
        self.shmem[shmid] = os.pread(fd, size, 0)

    def load(self, shmid: int, fd: int) -> None:
        if self.shmem[shmid]:
            os.pwrite(fd, self.shmem[shmid], 0)

    def add(self, entry: pb.file_entry) -> None:
        self.entries[entry.id] = entry

    def keep(self, fd: int) -> int:
        """Have a descriptor closed after the test."""
        self.fds.append(fd)
        return fd

    def open_file(self, fd: int) -> OpenFile:
        link = os.readlink(f"/proc/self/fd/{fd}")
        info = fdinfo("self", fd)
        return OpenFile(fd, os.getpid(), fd, next(self.ids), os.fstat(fd), link, info)

    def dump(self, kind: type[FileKind], fd: int) -> int:
        """Dump a descriptor as a kind that claims it; returns its image id."""
        file = self.open_file(fd)
        assert kind.claims(file)
        kind.check(file, self.out.options)
        dump_file(kind, file, self.out)
        self.out.settle()
        self.kinds[file.id] = kind
        return file.id

    def message(self, file_id: int) -> Any:
        return getattr(self.entries[file_id], self.kinds[file_id].field)

    def create(self, file_id: int) -> int:
        """Make a file again; its status flags are set as the table does."""
        self.out.close()
        message = self.message(file_id)
        fd = self.keep(self.kinds[file_id].create(message, self.make))
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        if not flags & os.O_PATH and hasattr(message, "flags"):
            fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~STATUS | message.flags & STATUS)
        return fd

    def trip(self, kind: type[FileKind], fd: int) -> int:
        """Dump and make again."""
        return self.create(self.dump(kind, fd))


@pytest.fixture
def round_trip(tmp_path: Path) -> Iterator[RoundTrip]:
    trip = RoundTrip(tmp_path)
    yield trip
    trip.out.close()
    trip.make.close(ok=False)
    for fd in trip.fds:
        os.close(fd)
    trip.image.close()
