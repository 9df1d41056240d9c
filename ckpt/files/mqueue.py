# SPDX-License-Identifier: Apache-2.0
"""POSIX message queues: open files of a file system that need not be mounted (mq_overview(7)).

A queue is no more the process's than a file is: it stays, with what is in it, and is opened again
by its path, which the kernel takes for a queue as well. So nothing in the image is of its own kind.
"""

import os
import re

from ckpt.errors import Unsupported
from ckpt.files.kind import OpenFile
from ckpt.kernel.mountinfo import mountinfo
from ckpt.kernel.nsfs import is_ours

FS_TYPE = 0x19800202
"""What statfs(2) says of them (MQUEUE_MAGIC)."""
_TEXT_ROOM = 256
_NOTIFIED = re.compile(rb"NOTIFY_PID:([1-9]\d*)")


def path(file: OpenFile) -> str:
    """Return where a queue's path is in the process's mounts.

    Raises Unsupported where a restore would not find it, or could not ask to be told of messages.
    """
    what = f"{file.name}: a POSIX message queue"
    if not is_ours("ipc", file.proc):
        raise Unsupported(f"{what} of an IPC namespace that is not ours")
    if told := _NOTIFIED.search(os.pread(file.fd, _TEXT_ROOM, 0)):
        raise Unsupported(
            f"{what}: pid {told[1].decode()} has asked to be told of messages (mq_notify)",
            hint="have it receive one first",
        )
    device = file.stat.st_dev
    if file.stat.st_nlink:
        for mount in mountinfo(file.proc):
            if mount.dev == device and mount.root == "/":
                return mount.mountpoint.rstrip("/") + file.link
    raise Unsupported(
        f"{what} that no path leads to",
        hint="mount -t mqueue none /dev/mqueue, if it has not been unlinked",
    )
