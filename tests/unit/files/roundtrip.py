# SPDX-License-Identifier: Apache-2.0
"""Dump descriptors of our own and make them again: what most tests of a kind of file do."""

import itertools
import os
from pathlib import Path

from ckpt.files.kind import Dump, FileKind, OpenFile, Restore
from ckpt.files.opened import dump_file
from ckpt.image import pb
from ckpt.image.directory import ImageDir
from ckpt.kernel.fdinfo import fdinfo
from ckpt.options import DumpOptions, RestoreOptions


class Trip:
    """One image directory, and the descriptors dumped to it."""

    def __init__(self, place: Path, **options: object) -> None:
        self.image = ImageDir.create(place / "image")
        self.options = options
        self.entries: dict[int, pb.file_entry] = {}
        self._ids = itertools.count(1)

    def files(self, *fds: int) -> list[OpenFile]:
        links = [os.readlink(f"/proc/self/fd/{fd}") for fd in fds]
        return [
            OpenFile(
                fd,
                os.getpid(),
                fd,
                next(self._ids),
                os.fstat(fd),
                link,
                fdinfo("self", fd),
                frozenset(links),
            )
            for fd, link in zip(fds, links, strict=True)
        ]

    def add(self, entry: pb.file_entry) -> None:
        self.entries[entry.id] = entry

    def dump(self, kind: type[FileKind], *fds: int) -> list[int]:
        """Dump them as one process's; returns their ids."""
        options = DumpOptions(pid=os.getpid(), **self.options)
        ids = self._ids
        self.out = out = Dump(self.image, options, lambda *_: None, lambda: next(ids), self.add)
        files = self.files(*fds)
        for file in files:
            assert kind.claims(file)
            kind.check(file, options)
        for file in files:
            dump_file(kind, file, out)
        out.close()
        return [file.id for file in files]

    def restore(self, kind: type[FileKind], *ids: int) -> list[int]:
        """Make them again; returns descriptors, for the test to close."""
        options = RestoreOptions(**self.options)
        self.make = make = Restore(self.image, options, self.entries, lambda *_: None)
        return [kind.create(getattr(self.entries[id], kind.field), make) for id in ids]

    def close(self) -> None:
        self.image.close()
