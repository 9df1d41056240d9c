# SPDX-License-Identifier: Apache-2.0
"""The system calls on files and descriptors that the os module lacks.

Each returns what the call does and raises NotPermitted or KernelError where it fails.
"""

import errno
import mmap
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from struct import Struct

from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import check, ffi, lib, syscall
from ckpt.kernel.glance import Glance
from ckpt.kernel.kcmp import Kcmp

RESOLVE_IN_ROOT = 0x10
"""Take the directory for the root: neither `..` nor any link leads out of it (openat2(2))."""

_RENAME_NOREPLACE = 1
_SPLICE_F_NONBLOCK = 2
_OPEN_HOW = Struct("<3Q")
_ITIMERSPEC = Struct("<4q")
_SIGSET = Struct("<Q")
_HANDLE, _MAX_HANDLE = Struct("<Ii"), 128  # struct file_handle: size and type come first
_AT_EMPTY_PATH = 0x1000
_OPTION_ROOM = 16
_PAGE = mmap.PAGESIZE
_EPOLL_SLOT = Struct("<3I")
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


def _call(nr: NR, *args: int | bytes) -> int:
    """Make a call whose bytes arguments are passed by address, with a zero behind them."""
    kept = [ffi.new("char[]", arg) if isinstance(arg, bytes) else arg for arg in args]
    return syscall(nr, *(a if isinstance(a, int) else int(ffi.cast("uintptr_t", a)) for a in kept))


def as_many_as_we_may() -> int:
    """Raise our limit of open files (RLIMIT_NOFILE) to its hard limit, and return that."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def openat2(directory: int, path: str, flags: int, resolve: int = 0) -> int:
    """Open path with exactly these flags: open(2) itself adds O_LARGEFILE."""
    how = _OPEN_HOW.pack(flags, 0, resolve)
    ret = _call(NR.openat2, directory, os.fsencode(path), how, _OPEN_HOW.size)
    return check(ret, f"openat2 {path}")


def rename_new(directory: int, old: str, new: str) -> None:
    """Rename within a directory; raises KernelError (EEXIST) rather than replace a file."""
    names = os.fsencode(old), os.fsencode(new)
    ret = _call(NR.renameat2, directory, names[0], directory, names[1], _RENAME_NOREPLACE)
    check(ret, f"renameat2 {old} to {new}")


def file_handle(fd: int) -> bytes | None:
    """Return a file's handle, type first, as open_by_handle takes it; None if it has none.

    See name_to_handle_at(2). A handle leads to the file for as long as that exists.
    """
    room = ffi.new("char[]", _HANDLE.pack(_MAX_HANDLE, 0) + bytes(_MAX_HANDLE))
    mount = ffi.new("int[1]")
    at, mount_at = (int(ffi.cast("uintptr_t", pointer)) for pointer in (room, mount))
    if _call(NR.name_to_handle_at, fd, b"", at, mount_at, _AT_EMPTY_PATH) < 0:
        return None  # EOPNOTSUPP: the file system has no handles
    size, _type = _HANDLE.unpack_from(ffi.buffer(room))
    return bytes(ffi.buffer(room)[4 : _HANDLE.size + size])


def open_by_handle(mounted: int, handle: bytes, flags: int) -> int:
    """Open a file by its handle; mounted is any descriptor on the same file system.

    Raises KernelError (ESTALE: there is no such file any more).
    """
    content = (len(handle) - 4).to_bytes(4, "little") + handle
    return check(_call(NR.open_by_handle_at, mounted, content, flags), "open_by_handle_at")


def fs_type(fd: int) -> int:
    """Return the type of the file system that a file is on: statfs(2) has the numbers."""
    room = ffi.new("int64_t[16]")
    check(_call(NR.fstatfs, fd, int(ffi.cast("uintptr_t", room))), "fstatfs")
    return int(room[0])


def bind(fd: int, address: bytes, what: str) -> None:
    """Bind a socket to an address that the socket module cannot say (bind(2))."""
    check(_call(NR.bind, fd, address, len(address)), f"bind {what}")


def tee(source: int, target: int, size: int) -> int:
    """Copy up to size bytes from pipe to pipe, consuming nothing (tee(2)); 0 if there is none.

    The target gets the source's very buffers, so the bounds of packets stay.
    """
    ret = syscall(NR.tee, source, target, size, _SPLICE_F_NONBLOCK)
    return 0 if ret == -errno.EAGAIN else check(ret, "tee")


def signalfd(mask: int, flags: int = 0) -> int:
    """Return a new signalfd(2) for the signals of mask: bit 0 is signal 1."""
    return check(_call(NR.signalfd4, -1, _SIGSET.pack(mask), _SIGSET.size, flags), "signalfd")


def timerfd_create(clock: int, flags: int = 0) -> int:
    """Return a new timer of that clock, not armed (timerfd_create(2))."""
    return check(syscall(NR.timerfd_create, clock, flags), "timerfd_create")


def timerfd_gettime(fd: int) -> tuple[int, int]:
    """Return the time left and the interval, in nanoseconds; counts the periods gone by."""
    room = ffi.new("int64_t[4]")
    check(_call(NR.timerfd_gettime, fd, int(ffi.cast("uintptr_t", room))), "timerfd_gettime")
    return room[2] * 10**9 + room[3], room[0] * 10**9 + room[1]


def timerfd_settime(fd: int, flags: int, value: int, interval: int) -> None:
    """Arm a timer; both times are in nanoseconds (timerfd_create(2))."""
    spec = _ITIMERSPEC.pack(*divmod(interval, 10**9), *divmod(value, 10**9))
    check(_call(NR.timerfd_settime, fd, flags, spec, 0), "timerfd_settime")


def watches(pid: int, epoll: int, tfd: int, offset: int, number: int, of: int = 0) -> bool | None:
    """Say whether an epoll set's member is the file that descriptor `number` of pid has.

    epoll is the set's descriptor in pid; the member is the offset-th of those added as tfd, in
    fdinfo's order (kcmp(2), KCMP_EPOLL_TFD). None if there is no such member or descriptor.
    of is whose descriptor it is, if not pid's.
    """
    slot = _EPOLL_SLOT.pack(epoll, tfd, offset)
    ret = _call(NR.kcmp, of or pid, pid, Kcmp.EPOLL_TFD, number, slot)
    if ret in (-errno.EBADF, -errno.ENOENT):
        return None
    return check(ret, "kcmp EPOLL_TFD", pid=pid) == 0


def anonymous_file(size: int, flags: int | None = None) -> int:
    """Return a descriptor of a new shared anonymous mapping's file: `/dev/zero (deleted)`.

    flags are more MAP_ flags (MAP_HUGETLB and its size). The file is what every later mapping of
    it shares, as MAP_SHARED | MAP_ANONYMOUS does after fork. Raises KernelError.
    """
    prot, shared_anonymous = 3, 0x21
    no_fd = (1 << 64) - 1
    at = check(
        syscall(NR.mmap, 0, size, prot, shared_anonymous | (flags or 0), no_fd, 0),
        f"mmap of {size} bytes of shared memory",
    )
    try:
        return os.open(f"/proc/self/map_files/{at:x}-{at + size:x}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        syscall(NR.munmap, at, size)


@contextmanager
def one_byte_short(size: int) -> Iterator[memoryview]:
    """Give memory of so many bytes, the last of which cannot be written: EFAULT."""
    whole = (size - 1 + _PAGE - 1) // _PAGE * _PAGE
    with mmap.mmap(-1, whole + _PAGE) as memory, memoryview(memory) as view:
        at = int(ffi.cast("uintptr_t", ffi.from_buffer(memory))) + whole
        check(syscall(NR.mprotect, at, _PAGE, 0), "mprotect")
        with view[whole - (size - 1) :][:size] as room:
            yield room


class SocketOptions:
    """Socket options, (level, number), that are read all at once."""

    def __init__(self, options: list[tuple[int, int]]) -> None:
        self._options, self._count = options, len(options)
        self._wanted = ffi.new("int32_t[]", [number for option in options for number in option])
        self._found = ffi.new("int32_t[]", 5 * self._count)

    def glimpse(self, fd: int, glance: Glance) -> None:
        """Add the calls that read them to a glance."""
        for level, option in self._options:
            length = glance.out(content=_OPTION_ROOM.to_bytes(4, "little"))
            glance.call(NR.getsockopt, fd, level, option, glance.out(_OPTION_ROOM), length)

    def read(self, fd: int) -> bytes:
        """Return of each 20 bytes: its length or -errno, and the first 16 bytes of its value."""
        lib.core_getsockopts(fd, self._wanted, self._count, self._found)
        return bytes(ffi.buffer(self._found))


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give a part of a file back to the file system; it reads as zeros (fallocate(2))."""
    check(syscall(NR.fallocate, fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length), "fallocate")
