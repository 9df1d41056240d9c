# SPDX-License-Identifier: Apache-2.0
"""signalfd(2): a set of signals to read. What is pending belongs to the tasks, not to it."""

import os
from collections.abc import Hashable
from typing import Any

from ckpt.files.kind import Dump, FileKind, OpenFile, Restore, anon_inode
from ckpt.image import pb
from ckpt.kernel import files
from ckpt.kernel.fdinfo import FdInfo
from ckpt.kernel.glance import Glance


class SignalFd(FileKind):
    """A descriptor that signals are read from."""

    type = pb.FD_SIGNALFD
    field = "sgfd"
    late = (b"flags:", b"sigmask:")

    @classmethod
    def claims(cls, file: OpenFile) -> bool:
        """Recognise it by its anonymous inode."""
        return anon_inode(file, "[signalfd]")

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
        message.sigmask = info.sigmask

    @classmethod
    def dump(cls, file: OpenFile, out: Dump) -> Any:
        """Read the mask from fdinfo; bit 0 is signal 1, as in a sigset_t."""
        return pb.signalfd_entry(**file.common(), sigmask=file.info.sigmask)

    @classmethod
    def create(cls, entry: Any, make: Restore) -> int:
        """Make it with its mask."""
        return files.signalfd(entry.sigmask, os.O_CLOEXEC)
