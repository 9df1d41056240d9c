# SPDX-License-Identifier: Apache-2.0
"""Shared memory objects that are filled while processes use them, by a mapping of our own.

A page that is put where none is (UFFDIO_COPY) is in the object from that instant on, whole, for
all who map it. So it does not matter where, or whether, they do; only that all their mappings are
registered, so that who finds no page waits for it, and sees no zeros.
"""

import mmap
import os
from collections.abc import Iterable

from ckpt.image.pages import PAGE
from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import check, ffi, syscall
from ckpt.kernel.inotify import Watch
from ckpt.kernel.userfaultfd import UFFDIO_API, Feature, Mode, Userfaultfd, api_request
from ckpt.memory.late import Part
from ckpt.memory.shmem import SharedObject

_SHIFT = 48
"""The image has the pages of object N (from 1 on) from N << 48 on; below are the process's own."""


def parts(one: SharedObject) -> list[Part]:
    """Return what of an object is to be filled, by its addresses in the image."""
    base = base_of(one)
    return [Part(base + run.vaddr, base + run.end, 0) for run in one.reader]


def base_of(one: SharedObject) -> int:
    """Return where the addresses of an object in the image begin."""
    return one.number << _SHIFT


def number_of(address: int) -> int:
    """Return which object an address in the image is of; 0 for the process's own memory."""
    return address >> _SHIFT


def offset_of(address: int) -> int:
    """Return what of an address in the image is the offset in its object."""
    return address & (1 << _SHIFT) - 1


class Window:
    """Our mapping of one object."""

    def __init__(self, fd: int) -> None:
        size = -(-os.fstat(fd).st_size // PAGE) * PAGE
        self._map = mmap.mmap(fd, size)
        self._at = int(ffi.cast("uintptr_t", ffi.from_buffer(self._map)))
        self._uffd = _own_userfaultfd()
        self._uffd.register(self._at, self._at + size, Mode.MISSING)

    def copy(self, offset: int, data: memoryview) -> int:
        """Put pages where none are; returns the bytes done."""
        done = self._uffd.copy(self._at + offset, data)
        # Not to be taken for a process of that size: it is not our memory.
        self._map.madvise(mmap.MADV_DONTNEED, offset, len(data))
        return done


def _own_userfaultfd() -> Userfaultfd:
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    uffd = Userfaultfd(check(syscall(NR.userfaultfd, flags), "userfaultfd"))
    request = ffi.from_buffer(bytearray(api_request(Feature(0))))
    address = int(ffi.cast("uintptr_t", request))
    check(syscall(NR.ioctl, uffd.fd, UFFDIO_API, address), "UFFDIO_API")
    return uffd


class Windows:
    """Our mappings of all objects, made as they are needed; addresses are those in the image."""

    def __init__(self, objects: Iterable[SharedObject]) -> None:
        self._objects = {one.number: one for one in objects}
        self._windows: dict[int, Window] = {}

    def copy(self, address: int, data: memoryview) -> int:
        """Put pages where none are; returns the bytes done."""
        number = number_of(address)
        if number not in self._windows:
            self._windows[number] = Window(self._objects[number].fd)
        return self._windows[number].copy(offset_of(address), data)

    def watch(self, address: int) -> Watch:
        """Return what sees changes of the object that an address is of."""
        return self._objects[number_of(address)].watch

    def forget(self) -> None:
        """Take note of all changes."""
        for one in self._objects.values():
            one.watch.forget()
