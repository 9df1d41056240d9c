# SPDX-License-Identifier: Apache-2.0
"""eventfd(2): a counter. A plain one and a semaphore differ in a flag that F_GETFL does not show.

fdinfo tells a semaphore since Linux 6.5; before, it is restored as a plain counter. CRIU's image
has no place for it: it is a field of ours there.
"""

import os
from collections.abc import Hashable
from typing import Any

from ckpt.errors import ImageError
from ckpt.files.kind import Dump, FileKind, OpenFile, Restore, anon_inode
from ckpt.image import pb
from ckpt.kernel.fdinfo import FdInfo
from ckpt.kernel.glance import Glance

_MOST = 2**64 - 2  # one more cannot be written (eventfd(2))


class EventFd(FileKind):
    """A counter for event notification."""

    type = pb.FD_EVENTFD
    field = "efd"
    late = (b"flags:", b"eventfd-count:")

    @classmethod
    def claims(cls, file: OpenFile) -> bool:
        """Recognise it by its anonymous inode."""
        return anon_inode(file, "[eventfd]")

    @classmethod
    def state(cls, file: OpenFile) -> Hashable | None:
        """All is in fdinfo."""
        return ()

    @classmethod
    def glimpse(cls, file: OpenFile, glance: Glance) -> bool:
        """There is nothing else to see."""
        return True

    @classmethod
    def update(cls, message: Any, info: FdInfo) -> None:
        """All is in fdinfo."""
        message.flags = info.flags & ~os.O_CLOEXEC
        message.counter = info.eventfd_count

    @classmethod
    def dump(cls, file: OpenFile, out: Dump) -> Any:
        """Read the counter from fdinfo: reading it would reset it."""
        return pb.eventfd_file_entry(
            **file.common(),
            counter=file.info.eventfd_count,
            semaphore=file.info.eventfd_semaphore or None,
        )

    @classmethod
    def create(cls, entry: Any, make: Restore) -> int:
        """Make it empty, then count: the call itself takes 32 bits."""
        if entry.counter > _MOST:
            raise ImageError(f"eventfd {entry.id}: a counter cannot be {entry.counter:#x}")
        fd = os.eventfd(0, os.EFD_CLOEXEC | (os.EFD_SEMAPHORE if entry.semaphore else 0))
        if entry.counter:
            os.eventfd_write(fd, entry.counter)
        return fd
