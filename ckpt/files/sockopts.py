# SPDX-License-Identifier: Apache-2.0
"""Options of SOL_SOCKET, which sockets of every family have: `sk_opts_entry` both ways.

Options that a family refuses to tell are left out of the message. Restoring, an option is set only
where a fresh socket differs: most need no privilege then, whoever asks. Numbers are those of
asm-generic/socket.h; socket(7) says what they do.
"""

import errno
import fcntl
import socket
import stat
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ckpt.errors import CkptError, KernelError, NotPermitted, Unsupported
from ckpt.files import moreopts
from ckpt.files.kind import Dump, OpenFile
from ckpt.image import pb
from ckpt.kernel.arch import NR
from ckpt.kernel.files import SocketOptions
from ckpt.kernel.glance import Glance
from ckpt.kernel.sockfilter import SO_GET_FILTER, attach_filter, get_filter

SOL_SOCKET = socket.SOL_SOCKET
SO_REUSEADDR, SO_DONTROUTE, SO_BROADCAST, SO_SNDBUF, SO_RCVBUF = 2, 5, 6, 7, 8
SO_KEEPALIVE, SO_OOBINLINE, SO_NO_CHECK, SO_PRIORITY, SO_LINGER = 9, 10, 11, 12, 13
SO_REUSEPORT, SO_PASSCRED, SO_RCVLOWAT, SO_RCVTIMEO, SO_SNDTIMEO = 15, 16, 18, 20, 21
SO_BINDTODEVICE, SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_PASSSEC, SO_MARK = 25, 32, 33, 34, 36
SO_BUF_LOCK = 72

# Field of the message and option. so_priority after all that changes it (IP_TOS is set before us).
_NUMBERS = (
    ("reuseaddr", SO_REUSEADDR),
    ("so_reuseport", SO_REUSEPORT),
    ("so_broadcast", SO_BROADCAST),
    ("so_keepalive", SO_KEEPALIVE),
    ("so_oobinline", SO_OOBINLINE),
    ("so_dontroute", SO_DONTROUTE),
    ("so_no_check", SO_NO_CHECK),
    ("so_passcred", SO_PASSCRED),
    ("so_passsec", SO_PASSSEC),
    ("so_rcvlowat", SO_RCVLOWAT),
    ("so_priority", SO_PRIORITY),
    ("so_mark", SO_MARK),
)
_TIMEOUTS = (("so_snd_tmo", SO_SNDTIMEO), ("so_rcv_tmo", SO_RCVTIMEO))
_BUFFERS = (("so_sndbuf", SO_SNDBUF, SO_SNDBUFFORCE), ("so_rcvbuf", SO_RCVBUF, SO_RCVBUFFORCE))
_TELL_AS_NUMBERS = ("so_oobinline", "so_rcvlowat", "so_priority", "so_mark")
_TIMEVAL = struct.Struct("@ll")
_LINGER = struct.Struct("@ii")
_NO_SUCH = (errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EINVAL)
_PERMISSION = (errno.EPERM, errno.EACCES)


_DOMAIN, _FAMILY = SocketOptions([(SOL_SOCKET, 39)]), struct.Struct("=ii")  # SO_DOMAIN


def family(file: OpenFile) -> int:
    """Return the address family of a socket, -1 for any other file."""
    if not stat.S_ISSOCK(file.stat.st_mode):
        return -1
    length, found = _FAMILY.unpack_from(_DOMAIN.read(file.fd))
    return found if length > 0 else -1  # opened as a mere path (O_PATH)


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Raise an OSError of the block as the KernelError or NotPermitted of doing `what`."""
    try:
        yield
    except CkptError:
        raise
    except OSError as error:
        raise failed(error, what) from error


@contextmanager
def borrowed(fd: int) -> Iterator[socket.socket]:
    """Give a socket object for a descriptor that stays its owner's."""
    sock = socket.socket(fileno=fd)
    try:
        yield sock
    finally:
        sock.detach()


def set_option(sock: socket.socket, level: int, option: int, value: int | bytes) -> None:
    """setsockopt(2) that raises NotPermitted or KernelError."""
    with doing(f"setsockopt {level} {option}"):
        sock.setsockopt(level, option, value)


def failed(error: OSError, doing: str) -> KernelError:
    """Return the KernelError or NotPermitted that an OSError stands for."""
    number = error.errno or errno.EIO
    return (NotPermitted if number in _PERMISSION else KernelError)(number, doing)


# --- dump


def warn_of_packets(file: OpenFile, out: Dump) -> None:
    """Say in the log if packets that may be lost at any time were not read: they are lost."""
    try:
        waiting = any(fcntl.ioctl(file.fd, termios.FIONREAD, bytes(4)))
    except OSError:  # shut down
        return
    if waiting:
        what = "packets that were not read are not in the image"
        out.options.log.warning("files", f"{file.name}: {what}")


def check_options(file: OpenFile) -> None:
    """Raise Unsupported for what the message has no field for: an eBPF filter."""
    if get_filter(file.fd) is None:
        raise Unsupported(
            f"{file.name}: its filter is an eBPF program",
            hint="only classic BPF filters (SO_ATTACH_FILTER) can be dumped",
        )


_COMMON = (
    *(option for _, option in _NUMBERS),
    *(option for _, option in _TIMEOUTS),
    *(option for _, option, _ in _BUFFERS),
    *(SO_BUF_LOCK, SO_LINGER, SO_BINDTODEVICE),
)


class State:
    """All that dump_options tells, and more, as (level, option), to be read in no time."""

    def __init__(self, *more: tuple[int, int]) -> None:
        self._options = SocketOptions([*((SOL_SOCKET, option) for option in _COMMON), *more])

    def glimpse(self, fd: int, glance: Glance) -> None:
        """Add the calls that show a change to a glance; a filter by its length alone."""
        self._options.glimpse(fd, glance)
        glance.call(NR.getsockopt, fd, SOL_SOCKET, SO_GET_FILTER, 0, glance.out(8))

    def read(self, fd: int) -> bytes | None:
        """Return what they are, unread; None if there is a filter."""
        return self._options.read(fd) if get_filter(fd) == b"" else None


def dump_options(sock: socket.socket) -> pb.sk_opts_entry:
    """Read the options. Buffer sizes are as the kernel tells them: twice what was asked for."""
    fields: dict[str, Any] = {"so_buf_lock": _get(sock, SO_BUF_LOCK)}
    for field, option in _NUMBERS:
        value = _get(sock, option)
        number = value is None or field in _TELL_AS_NUMBERS
        fields[field] = value if number else bool(value)
    fields["so_mark"] = fields["so_mark"] or None
    for field, option, _ in _BUFFERS:
        fields[field] = sock.getsockopt(SOL_SOCKET, option)
    for field, option in _TIMEOUTS:
        seconds, useconds = _TIMEVAL.unpack(sock.getsockopt(SOL_SOCKET, option, _TIMEVAL.size))
        fields |= {f"{field}_sec": seconds, f"{field}_usec": useconds}
    return pb.sk_opts_entry(**fields, **_odd(sock), more=moreopts.dump(sock))


def _odd(sock: socket.socket) -> dict[str, Any]:
    """Read the options that are there only if they are on."""
    fields: dict[str, Any] = {}
    on, seconds = _LINGER.unpack(sock.getsockopt(SOL_SOCKET, SO_LINGER, _LINGER.size))
    if on:
        fields["so_linger"] = seconds
    device = sock.getsockopt(SOL_SOCKET, SO_BINDTODEVICE, 16).rstrip(b"\0")
    if device:
        fields["so_bound_dev"] = device.decode()
    if program := get_filter(sock.fileno()):
        fields["so_filter"] = list(_words(program))
    return fields


def _get(sock: socket.socket, option: int) -> int | None:
    """Return an option, None where this family has none."""
    try:
        return sock.getsockopt(SOL_SOCKET, option)
    except OSError as error:
        if error.errno in _NO_SUCH:
            return None
        raise failed(error, f"getsockopt {option}") from error


# The image packs an instruction as code, jt, jf, k from the highest bit down.
_FILTER = struct.Struct("=HBBI")
_WORD = struct.Struct("!HBBI")


def _words(program: bytes) -> Iterator[int]:
    for instruction in _FILTER.iter_unpack(program):
        yield int.from_bytes(_WORD.pack(*instruction), "big")


def _program(words: list[int]) -> bytes:
    return b"".join(_FILTER.pack(*_WORD.unpack(word.to_bytes(8, "big"))) for word in words)


# --- restore


def restore_options(sock: socket.socket, opts: pb.sk_opts_entry) -> None:
    """Set what differs, the filter last: until then the socket's queue can be filled.

    A filter may be attached but once; call this once. Raises NotPermitted, KernelError.
    """
    if opts.so_bound_dev:
        set_option(sock, SOL_SOCKET, SO_BINDTODEVICE, opts.so_bound_dev.encode() + b"\0")
    for field, option in _NUMBERS:
        value = int(getattr(opts, field))
        if opts.HasField(field) and _get(sock, option) != value:
            set_option(sock, SOL_SOCKET, option, value)
    for field, option in _TIMEOUTS:
        timeout = getattr(opts, f"{field}_sec"), getattr(opts, f"{field}_usec")
        if any(timeout):
            set_option(sock, SOL_SOCKET, option, _TIMEVAL.pack(*timeout))
    if opts.HasField("so_linger"):
        set_option(sock, SOL_SOCKET, SO_LINGER, _LINGER.pack(1, opts.so_linger))
    with doing("setsockopt"):
        moreopts.restore(sock, opts)
    restore_buffers(sock, opts)
    if opts.so_filter:
        attach_filter(sock.fileno(), _program(list(opts.so_filter)))


def restore_buffers(sock: socket.socket, opts: pb.sk_opts_entry) -> None:
    """Set the buffer sizes, and which of them the kernel must not tune (SO_BUF_LOCK)."""
    for field, option, force in _BUFFERS:
        size = getattr(opts, field)
        if size and sock.getsockopt(SOL_SOCKET, option) != size:
            set_buffer(sock, option, force, size)
    # Setting a size locks it; before Linux 5.14 that cannot be undone.
    lock = _get(sock, SO_BUF_LOCK)
    if opts.HasField("so_buf_lock") and lock not in (None, opts.so_buf_lock):
        set_option(sock, SOL_SOCKET, SO_BUF_LOCK, opts.so_buf_lock)


def set_buffer(sock: socket.socket, option: int, force: int, size: int) -> None:
    """Set a buffer's size, beyond net.core.[rw]mem_max if we may. The kernel doubles the value."""
    try:
        sock.setsockopt(SOL_SOCKET, force, size // 2)
    except PermissionError:
        set_option(sock, SOL_SOCKET, option, size // 2)
