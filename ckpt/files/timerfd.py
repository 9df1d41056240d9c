# SPDX-License-Identifier: Apache-2.0
"""timerfd_create(2): a clock's timer, read as a count of expirations.

fdinfo and the image have the time that was *left*, whatever the flags say; so a timer goes on with
what was left of it, in a life as in a later boot, and only the flags still tell that it was set to
an absolute time.
"""

import fcntl
import os
import select
import time
from collections.abc import Hashable
from typing import Any

from ckpt.errors import ImageError
from ckpt.files.kind import Dump, FileKind, OpenFile, Restore, anon_inode
from ckpt.image import pb
from ckpt.kernel import fdinfo, files
from ckpt.kernel.arch import NR
from ckpt.kernel.glance import Glance

_ABSTIME = 1
_SET_TICKS = 0x40085400  # TFD_IOC_SET_TICKS, _IOW('T', 0, __u64) of linux/timerfd.h
_SECOND = 10**9
_LONGEST = 2**63 - 1  # ns, a ktime_t
# An alarm clock may be unreadable (there is no RTC) where the clock under it is not.
_READABLE = {8: time.CLOCK_REALTIME, 9: time.CLOCK_BOOTTIME}


class TimerFd(FileKind):
    """A timer that notifies by a descriptor."""

    type = pb.FD_TIMERFD
    field = "tfd"
    late = (b"flags:", b"ticks:", b"settime flags:", b"it_value:", b"it_interval:")

    @classmethod
    def claims(cls, file: OpenFile) -> bool:
        """Recognise it by its anonymous inode."""
        return anon_inode(file, "[timerfd]")

    @classmethod
    def dump(cls, file: OpenFile, out: Dump) -> Any:
        """Take all of it from fdinfo (timerfd_show in fs/timerfd.c), once that is up to date.

        A periodic timer that has expired stands still, as if disarmed, until somebody reads it or
        asks for its time; only then are the periods since counted. To ask loses nothing.
        """
        files.timerfd_gettime(file.fd)
        message = pb.timerfd_entry(**file.common())
        cls.update(message, fdinfo.fdinfo("self", file.fd))
        return message

    @classmethod
    def state(cls, file: OpenFile) -> Hashable | None:
        """All is in fdinfo, once that is up to date: see dump."""
        files.timerfd_gettime(file.fd)
        return ()

    @classmethod
    def glimpse(cls, file: OpenFile, glance: Glance) -> bool:
        """Bring fdinfo up to date; the time that is left is not to be told: EFAULT comes after."""
        glance.call(NR.timerfd_gettime, file.fd, 0)
        return True

    @classmethod
    def update(cls, message: Any, info: fdinfo.FdInfo) -> None:
        """All is in fdinfo."""
        timer = info.timer
        assert timer
        value = timer.value
        if timer.ticks and not any(value):
            # A periodic one has expired again since we asked, just now: a period is left.
            value = timer.interval
        message.flags = info.flags & ~os.O_CLOEXEC
        message.clockid, message.ticks = timer.clock, timer.ticks
        message.settime_flags = timer.settime_flags
        message.vsec, message.vnsec = value
        message.isec, message.insec = timer.interval

    @classmethod
    def create(cls, entry: Any, make: Restore) -> int:
        """Arm it with the time that was left, then give it its unread expirations."""
        value = _nanoseconds(entry, entry.vsec, entry.vnsec)
        interval = _nanoseconds(entry, entry.isec, entry.insec)
        fd = files.timerfd_create(entry.clockid, os.O_CLOEXEC)
        try:
            _arm(fd, entry, value, interval)
            if entry.ticks:
                fcntl.ioctl(fd, _SET_TICKS, entry.ticks.to_bytes(8, "little"))
        except BaseException:
            os.close(fd)
            raise
        return fd


def _nanoseconds(entry: Any, seconds: int, nanoseconds: int) -> int:
    total: int = seconds * _SECOND + nanoseconds
    if nanoseconds >= _SECOND or total > _LONGEST:
        raise ImageError(f"timerfd {entry.id}: {seconds} s and {nanoseconds} ns is no time to wait")
    return total


def _arm(fd: int, entry: Any, value: int, interval: int) -> None:
    # CRIU saves an expired periodic timer as it stands (see dump). The kernel starts it again at
    # the next read if it has expired itself; SET_TICKS would leave it standing for ever.
    expired = bool(entry.ticks and interval and not value)
    left = 1 if expired else value
    if left and entry.settime_flags & _ABSTIME:
        left += time.clock_gettime_ns(_READABLE.get(entry.clockid, entry.clockid))
    files.timerfd_settime(fd, entry.settime_flags, left, interval)
    if expired:
        _wait_readable(fd)


def _wait_readable(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll()
