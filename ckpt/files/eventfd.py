# SPDX-License-Identifier: Apache-2.0
"""eventfd(2): a counter. A plain one and a semaphore differ in a flag of the file alone."""

import os
from typing import Any

from ckpt.files.kind import Dump, FileKind, OpenFile, Restore, anon_inode
from ckpt.image import pb

_EFD_SEMAPHORE = 1


class EventFd(FileKind):
    """A counter for event notification."""

    type = pb.FD_EVENTFD
    field = "efd"

    @classmethod
    def claims(cls, file: OpenFile) -> bool:
        """Recognise it by its anonymous inode."""
        return anon_inode(file, "[eventfd]")

    @classmethod
    def dump(cls, file: OpenFile, out: Dump) -> Any:
        """Read the counter from fdinfo: reading it would reset it."""
        return pb.eventfd_file_entry(**file.common(), counter=file.info.eventfd_count)

    @classmethod
    def create(cls, entry: Any, make: Restore) -> int:
        """Make it with its count; more than 32 bits of it are written."""
        fd = os.eventfd(0, entry.flags & os.O_NONBLOCK)
        if entry.counter:
            os.eventfd_write(fd, entry.counter)
        return fd
