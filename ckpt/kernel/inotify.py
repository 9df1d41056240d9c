# SPDX-License-Identifier: Apache-2.0
"""inotify(7), for one question: was a file changed by a call, MADV_REMOVE being one?

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


class Watch:
    """Sees changes of the file at a descriptor, from now on."""

    def __init__(self, file: int) -> None:
        flags = os.O_CLOEXEC | os.O_NONBLOCK
        self.fd = check(syscall(NR.inotify_init1, flags), "inotify_init1")
        path = ffi.from_buffer(f"/proc/self/fd/{file}\0".encode())
        at = int(ffi.cast("uintptr_t", path))
        ret = syscall(NR.inotify_add_watch, self.fd, at, _IN_MODIFY)
        if ret < 0:
            self.close()
        check(ret, "inotify_add_watch")

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
