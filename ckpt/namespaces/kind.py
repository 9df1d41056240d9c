# SPDX-License-Identifier: Apache-2.0
"""The interface of every kind of namespace: what is in one of its own is dumped and made again.

Both are ordinary Python, done by us while we are in the namespace (`kernel.nsfs.entered`): the
target's at dump, at restore the new and empty one that the first task of it has unshared. So a
kind is tested in any forked child. What shows who made an object (a segment's creator) is made
by the task, through `Restore.syscall`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

from ckpt.image.directory import ImageDir
from ckpt.kernel.ffi import syscall

SaveShmem = Callable[[int, int, int], None]
"""Writes pagemap-shmem-ID.img: (id, descriptor, size in bytes)."""
LoadShmem = Callable[[int, int], None]
"""Fills the memory at a descriptor from pagemap-shmem-ID.img: (id, descriptor)."""


class Dump(NamedTuple):
    """What a kind needs to dump namespace `id`, its number in the image.

    attached maps the System V segments that tasks of the dump have attached to a link (of
    /proc/PID/map_files) that opens their memory.
    """

    image: ImageDir
    id: int
    save_shmem: SaveShmem
    attached: Mapping[int, str] = {}


class Restore:
    """What a kind needs to make namespace `id` again. close() it before the tasks run.

    syscall(nr, integers ...) is made by the first task in it and returns >= 0 or -errno.
    """

    def __init__(
        self,
        image: ImageDir,
        id: int,
        load_shmem: LoadShmem,
        syscall: Callable[..., int] = syscall,
    ) -> None:
        self.image, self.id, self.load_shmem, self.syscall = image, id, load_shmem, syscall
        self._at_end: list[Callable[[bool], None]] = []

    def at_end(self, do: Callable[[bool], None]) -> None:
        """Have do(ok) called by close(): to let go of what the tasks had to take over first."""
        self._at_end.append(do)

    def close(self, *, ok: bool) -> None:
        """Do what was put off, last first; ok is false on failure. Once is enough."""
        while self._at_end:
            self._at_end.pop()(ok)


def records(kind: str, make: Restore) -> Iterator[tuple[Any, bytes]]:
    """Yield the records of the namespace's image of a kind; CRIU leaves out empty ones."""
    if make.image.exists(kind, make.id):
        yield from make.image.records(kind, make.id)


class NamespaceKind:
    """One kind of namespace. All methods are class methods: a kind has no state.

    name is that of the file in /proc/PID/ns, flag the CLONE_NEW* of clone(2).
    """

    name: ClassVar[str]
    flag: ClassVar[int]

    @classmethod
    def dump(cls, out: Dump) -> None:
        """Write what is in the namespace that we are in. Its tasks are frozen."""
        raise NotImplementedError

    @classmethod
    def restore(cls, make: Restore) -> None:
        """Fill the namespace that we are in, a new one."""
        raise NotImplementedError
