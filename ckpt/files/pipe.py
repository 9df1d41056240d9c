# SPDX-License-Identifier: Apache-2.0
"""pipe(2): its ends, its capacity, and what nobody has read yet.

The content is seen by tee(2), so nothing is consumed. A packet of an O_DIRECT pipe is a record of
its own in pipes-data.img (CRIU refuses those; other pipes have one record). Without a reader there
is none, as nobody can ever read it; such an end is restored so that a write fails with EPIPE again.

A named pipe is a pipe too (fifo.py) and shares `save` and `Contents`.
"""

import errno
import fcntl
import os
import termios
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from ckpt.errors import ImageError, KernelError, NotPermitted
from ckpt.files.external import inherited
from ckpt.files.kind import Dump, FileKind, OpenFile, Restore
from ckpt.image import pb
from ckpt.kernel import files
from ckpt.kernel.arch import NR
from ckpt.kernel.glance import Glance

O_LARGEFILE = 0o100000
"""Set in every file that was opened by a path on a 64-bit machine; Python's own is 0."""


class Pipe(FileKind):
    """One end of a pipe, or both in one file if it was opened again through /proc."""

    type = pb.FD_PIPE
    field = "pipe"

    @classmethod
    def claims(cls, file: OpenFile) -> bool:
        """Recognise it by its link, `pipe:[inode]`."""
        return file.link.startswith("pipe:[")

    @classmethod
    def state(cls, file: OpenFile) -> Hashable | None:
        """The capacity; it has to be empty."""
        return None if unread(file.fd) else fcntl.fcntl(file.fd, fcntl.F_GETPIPE_SZ)

    @classmethod
    def glimpse(cls, file: OpenFile, glance: Glance) -> bool:
        """What `unread` and F_GETPIPE_SZ tell."""
        glance.call(NR.ioctl, file.fd, termios.FIONREAD, glance.out(4))
        glance.call(NR.fcntl, file.fd, fcntl.F_GETPIPE_SZ)
        return True

    @classmethod
    def dump(cls, file: OpenFile, out: Dump) -> Any:
        """Name the pipe by its inode; the first end that can be read has the content."""
        pipe_id = file.stat.st_ino
        if file.flags & os.O_ACCMODE != os.O_WRONLY and out.first("pipe", pipe_id):
            save(file.fd, pipe_id, out, "pipes-data")
        return pb.pipe_entry(**file.common(), pipe_id=pipe_id)

    @classmethod
    def create(cls, entry: Any, make: Restore) -> int:
        """Take an end of the pipe, which is made with the first; further ones open it again."""
        if (fd := inherited(make.options, f"pipe:[{entry.pipe_id}]")) is not None:
            return fd
        ends = make.once(("pipe", entry.pipe_id), lambda: _make(entry.pipe_id, make))
        access = entry.flags & os.O_ACCMODE
        if not entry.flags & O_LARGEFILE and access in ends.free:
            return ends.free.pop(access)
        return os.open(f"/proc/self/fd/{ends.handle}", access | os.O_NONBLOCK | os.O_CLOEXEC)


class _Ends(NamedTuple):
    """A pipe just made: its ends by access mode, and an O_PATH descriptor that is no end of it."""

    free: dict[int, int]
    handle: int

    def close(self, ok: bool) -> None:
        """Close what nobody took."""
        for fd in (*self.free.values(), self.handle):
            os.close(fd)


def _make(pipe_id: int, make: Restore) -> _Ends:
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    handle = os.open(f"/proc/self/fd/{reader}", os.O_PATH | os.O_CLOEXEC)
    ends = _Ends({os.O_RDONLY: reader, os.O_WRONLY: writer}, handle)
    make.at_end(ends.close)
    contents(make, "pipes-data").restore(pipe_id, writer)
    return ends


# --- content


def unread(fd: int) -> int:
    """Return how many bytes are in a pipe."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), "little")


def save(fd: int, pipe_id: int, out: Dump, image: str) -> None:
    """Write capacity and content of the pipe at a readable descriptor to pipes- or fifo-data."""
    size = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    pieces, packets = _peek(fd, size)
    if pieces:
        out.passing()
    for data in pieces or [b""]:
        entry = pb.pipe_data_entry(pipe_id=pipe_id, bytes=len(data), size=size)
        if packets:
            entry.packet = True
        out.writer(image).append(entry, data)


def _peek(fd: int, size: int) -> tuple[list[bytes], bool]:
    """Return the content, and whether the pieces are packets: a read never goes on to the next."""
    total = unread(fd)
    if not total:
        return [], False
    with _copy(fd, size) as copy:
        pieces = list(iter(lambda: os.read(copy, size), b""))
    if sum(map(len, pieces)) != total:
        raise KernelError(errno.EIO, f"tee of a pipe with {total} bytes")
    with _copy(fd, size) as copy:
        os.read(copy, 1)  # drops the rest of a packet (pipe(2))
        return pieces, len(pieces) > 1 or unread(copy) < total - 1


@contextmanager
def _copy(fd: int, size: int) -> Iterator[int]:
    """Give the read end of a pipe with the same content and no writer."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            if problem := _resize(writer, size):
                raise problem
            files.tee(fd, writer, size)
        finally:
            os.close(writer)
        yield reader
    finally:
        os.close(reader)


def _resize(fd: int, size: int) -> KernelError | None:
    """Set the capacity; returns why it could not."""
    if fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) == size:
        return None
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
    except PermissionError:
        hint = "raise /proc/sys/fs/pipe-max-size or pipe-user-pages-soft"
        return NotPermitted(errno.EPERM, f"F_SETPIPE_SZ to {size}", hint=hint)
    except (OSError, OverflowError):
        return KernelError(errno.EINVAL, f"F_SETPIPE_SZ to {size}")
    return None


class Contents:
    """What pipes-data.img or fifo-data.img holds, by pipe id."""

    def __init__(self, make: Restore, image: str) -> None:
        self._records: dict[int, list[tuple[Any, bytes]]] = {}
        if make.image.exists(image):
            for entry, data in make.image.records(image):
                self._records.setdefault(entry.pipe_id, []).append((entry, data))

    def restore(self, pipe_id: int, fd: int) -> None:
        """Give an empty pipe its capacity and content by a non-blocking descriptor to write to.

        A capacity that is not permitted is left as it is, as long as the content fits.
        """
        records = self._records.get(pipe_id, ())
        size = max((entry.size for entry, _ in records), default=0)
        problem = _resize(fd, size) if size else None
        for entry, data in records:
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | (os.O_DIRECT if entry.packet else 0))
            if not _write(fd, data):
                raise problem or ImageError(f"pipe {pipe_id}: {len(data)} bytes do not fit {size}")


def _write(fd: int, data: bytes) -> bool:
    """Write all or say that it does not fit."""
    try:
        return not data or os.write(fd, data) == len(data)
    except BlockingIOError:
        return False


def contents(make: Restore, image: str) -> Contents:
    """Return the contents in an image, read at first use."""
    return make.once(image, lambda: Contents(make, image))
