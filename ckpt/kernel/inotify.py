# SPDX-License-Identifier: Apache-2.0
"""inotify(7): the system calls; and a watch of ours, for one question: was a file changed by a
call, MADV_REMOVE being one?

Writing to a shared mapping is no such change, while it does set the file's times. A file without a
name is watched by its link in /proc.
"""

import errno
import os
import select

from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import check, ffi, syscall

_IN_MODIFY = 2
_ROOM = 4096
_SETNEXTWD = 0x40044900  # INOTIFY_IOC_SETNEXTWD


def init(flags: int = os.O_CLOEXEC) -> int:
    """Return a new instance (inotify_init1(2))."""
    return check(syscall(NR.inotify_init1, flags), "inotify_init1")


def set_next(fd: int, wd: int) -> None:
    """Have the next watch be number wd, or the next free one after it."""
    check(syscall(NR.ioctl, fd, _SETNEXTWD, wd), f"INOTIFY_IOC_SETNEXTWD {wd}")


def add_watch(fd: int, file: int, mask: int) -> int:
    """Watch the file at a descriptor, which may be O_PATH; return the number of the watch."""
    path = ffi.from_buffer(f"/proc/self/fd/{file}\0".encode())
    at = int(ffi.cast("uintptr_t", path))
    return check(syscall(NR.inotify_add_watch, fd, at, mask), "inotify_add_watch")


class Watch:
    """Sees changes of the file at a descriptor, from now on."""

    def __init__(self, file: int) -> None:
        self.fd = init(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            add_watch(self.fd, file, _IN_MODIFY)
        except BaseException:
            self.close()
            raise

    def changed(self, timeout: float) -> bool:
        """Say whether it was changed since `forget`; wait for that so many seconds."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(max(0, timeout * 1000)))

    def forget(self) -> None:
        """Take note of all changes."""
        try:
            while os.read(self.fd, _ROOM):
                pass
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise

    def close(self) -> None:
        """Watch no more."""
        os.close(self.fd)
