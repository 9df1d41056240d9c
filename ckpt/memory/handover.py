# SPDX-License-Identifier: Apache-2.0
"""How a restore hands the memory of its processes to a daemon that brings the pages, as CRIU does.

The daemon listens on a stream socket in the work directory, and takes one restore. That sends for
each process of the image its pid (int32) and its userfaultfd, beside one byte; for one that has
ended its pid alone, negative. When all are what they were it sends FINISHED: from then on pages
may be brought that nobody has asked for. There is no answer: what has been taken shows in the
socket.
"""

import array
import errno
import fcntl
import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from struct import Struct
from types import TracebackType
from typing import NamedTuple, Self

from ckpt.errors import CkptError, KernelError, NoSuchTask
from ckpt.kernel import procfs
from ckpt.kernel.userfaultfd import Userfaultfd

_NAME = "lazy-pages.socket"
_PID, _WORD = Struct("<i"), Struct("<I")
_FINISHED = 0x52535446
_SIOCOUTQ = 0x5411
_SCM_CREDENTIALS = 2
_CREDENTIALS = Struct("<iII")  # struct ucred: pid uid gid
_TICK_MS = 1


@contextmanager
def _address(work_dir: str) -> Iterator[str]:
    """Lend a name of the socket that is short enough for its address."""
    directory = os.open(work_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{_NAME}"
    finally:
        os.close(directory)


class Daemon:
    """The daemon as the restore sees it."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def take(self, pid: int, uffd: Userfaultfd) -> None:
        """Hand over the memory of a process; uffd is closed."""
        rights = socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [uffd.fd])
        with _dead_or_not():
            self._socket.sendall(_PID.pack(pid))
            self._socket.sendmsg([b"\0"], [rights])
        uffd.close()

    def pass_over(self, pid: int) -> None:
        """Tell of a process that has ended."""
        with _dead_or_not():
            self._socket.sendall(_PID.pack(-pid))

    def finish(self) -> None:
        """Tell that all are what they were; returns when the daemon has heard of it."""
        poll = select.poll()
        poll.register(self._socket, 0)
        with _dead_or_not():
            self._socket.sendall(_WORD.pack(_FINISHED))
            while _unheard(self._socket):
                poll.poll(_TICK_MS)
            # What it had not heard when it ended is an error here; its end alone is none.
            if number := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(number, os.strerror(number))


@contextmanager
def found(work_dir: str, *, wanted: bool) -> Iterator[Daemon | None]:
    """Connect to the daemon that listens in a directory; None if there is none, or not wanted."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        yield Daemon(sock) if wanted and _connected(sock, work_dir) else None


def _connected(sock: socket.socket, work_dir: str) -> bool:
    with suppress(FileNotFoundError, ConnectionRefusedError), _address(work_dir) as address:
        sock.connect(address)
        return True
    return False


def _unheard(sock: socket.socket) -> int:
    """Return how much of what was sent has not been received."""
    return int.from_bytes(fcntl.ioctl(sock, _SIOCOUTQ, bytes(4)), "little")


@contextmanager
def _dead_or_not() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ECONNRESET):
            raise KernelError(error.errno or 0, "send to the lazy-pages daemon") from error
        raise CkptError("the lazy-pages daemon has ended", hint="its log says why") from error


class Handed(NamedTuple):
    """The memory of a process: its pid, as its image has it, and as it is here, 0 if unknown."""

    pid: int
    here: int
    uffd: Userfaultfd


class Restorer:
    """A restore as the daemon sees it."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def next(self) -> Handed | None:
        """Receive the next process; None for one that has ended. Raises CkptError at the end."""
        word, sender, _ = self._receive(_PID.size)
        (pid,) = _PID.unpack(word)
        if pid < 0:
            return None
        _, _, fds = self._receive(1)
        if len(fds) != 1:
            raise CkptError(f"the restore has sent no userfaultfd of pid {pid}")
        return Handed(pid, _pid_here(pid, sender), Userfaultfd(fds[0]))

    def await_finish(self) -> None:
        """Return when all are what they were. Raises CkptError if the restore has ended before."""
        word, _, _ = self._receive(_WORD.size)
        if _WORD.unpack(word) != (_FINISHED,):
            raise CkptError(f"the restore says {word.hex()}, which means nothing")

    def _receive(self, length: int) -> tuple[bytes, int, list[int]]:
        """Receive so many bytes, who has sent them, and descriptors that came along."""
        fds = array.array("i")
        room = socket.CMSG_SPACE(fds.itemsize) + socket.CMSG_SPACE(_CREDENTIALS.size)
        with suppress(ConnectionResetError):
            data, control, _, _ = self._socket.recvmsg(length, room, socket.MSG_CMSG_CLOEXEC)
            sender = 0
            for _, kind, content in control:
                if kind == _SCM_CREDENTIALS:
                    sender = _CREDENTIALS.unpack(content)[0]
                elif kind == socket.SCM_RIGHTS:
                    fds.frombytes(content[: len(content) // fds.itemsize * fds.itemsize])
            if len(data) == length:
                return data, sender, list(fds)
        raise CkptError("the restore has ended before all was there", hint="its log says why")


def _pid_here(pid: int, sender: int) -> int:
    """Return which process is meant: the sender itself (CRIU), or one next to it (ckpt)."""
    with suppress(NoSuchTask, KernelError):
        known_as = procfs.status(sender).ns_pids
        if known_as[-1] == pid:
            return sender
        if len(known_as) == 1:
            return pid
    return 0


class Listener:
    """The socket of a daemon; one that is there already is another's, who is gone or will wait."""

    def __init__(self, work_dir: str) -> None:
        self._directory = os.path.abspath(work_dir)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._unlink()
        with _address(self._directory) as address:
            self._socket.bind(address)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.listen(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._socket.fileno() >= 0:
            self._unlink()
            self._socket.close()

    def accept(self) -> Restorer:
        """Wait for a restore, and listen no more."""
        sock, _ = self._socket.accept()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._unlink()
        self._socket.close()
        return Restorer(sock)

    def _unlink(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self._directory, _NAME))
