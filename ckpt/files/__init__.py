# SPDX-License-Identifier: Apache-2.0
"""Open files: `kind.py` is the interface, `table.py` its user, and then there is one file per kind.

The order of KINDS matters: the first that claims a file dumps it.
"""

from ckpt.files.eventfd import EventFd
from ckpt.files.eventpoll import EventPoll
from ckpt.files.fanotify import Fanotify
from ckpt.files.fifo import Fifo
from ckpt.files.inetsk import InetSk
from ckpt.files.inotify import Inotify
from ckpt.files.kind import FileKind
from ckpt.files.memfd import Memfd
from ckpt.files.netlinksk import NetlinkSk
from ckpt.files.packetsk import PacketSk
from ckpt.files.pidfd import PidFd
from ckpt.files.pipe import Pipe
from ckpt.files.regfile import RegFile
from ckpt.files.signalfd import SignalFd
from ckpt.files.timerfd import TimerFd
from ckpt.files.tty import Tty
from ckpt.files.unixsk import UnixSk

KINDS: tuple[type[FileKind], ...] = (
    EventFd,
    EventPoll,
    SignalFd,
    TimerFd,
    PidFd,
    Inotify,
    Fanotify,
    Pipe,
    Fifo,
    Memfd,
    UnixSk,
    InetSk,
    NetlinkSk,
    PacketSk,
    Tty,
    RegFile,  # last: anything may be open as a mere path
)
