# SPDX-License-Identifier: Apache-2.0
"""File locks and leases: filelocks.img, which the whole tree shares, and back (--file-locks).

Facts that bite (fcntl(2), flock(2), fs/locks.c):

- A POSIX lock belongs to a process, which loses all that it has on a file by closing any
  descriptor of that file; all others belong to an open file, as do leases. Either way fdinfo shows
  a lock at every descriptor of the open file that it was taken with: the lowest stands for all.
- They are taken in the task, which then is their holder to all who ask, when it has nothing left
  to close and we have no copy: a lease for writing is for who alone has the file open.
- Who holds an OFD lock, or a flock whose taker has ended, /proc/locks does not tell; fdinfo does.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from struct import Struct
from typing import Any, NamedTuple

from ckpt.errors import CkptError, ImageError, KernelError, Unsupported
from ckpt.files.kind import Dump, OpenFile
from ckpt.image import pb
from ckpt.image.directory import ImageDir
from ckpt.kernel import procfs
from ckpt.kernel.arch import NR
from ckpt.kernel.fdinfo import Lock, fdinfo
from ckpt.kernel.remote import Batch, Call
from ckpt.options import DumpOptions

_POSIX, _FLOCK, _OFD, _LEASE = 1, 2, 4, 8
_BREAKING = 4
"""In type: a lease on its way to the rest of type, which somebody waits for (CRIU dumps those)."""
_F_SETLEASE, _F_OFD_SETLK = 1024, 37
_OPERATIONS = {fcntl.F_RDLCK: fcntl.LOCK_SH, fcntl.F_WRLCK: fcntl.LOCK_EX}
_FLOCK_STRUCT = Struct("<hhxxxxqqixxxx")  # type, whence, start, len, pid
_ROOM = 64


class _Sort(NamedTuple):
    """A sort of lock: what fdinfo calls it, what we do, and which are in each other's way."""

    word: str
    name: str
    rivals: tuple[str, ...]


_SORTS = {
    _POSIX: _Sort("POSIX", "POSIX lock", ("POSIX", "OFDLCK")),
    _FLOCK: _Sort("FLOCK", "BSD lock (flock)", ("FLOCK",)),
    _OFD: _Sort("OFDLCK", "OFD lock", ("POSIX", "OFDLCK")),
    _LEASE: _Sort("LEASE", "lease", ()),
}
_FLAGS = {sort.word: flag for flag, sort in _SORTS.items()}


# --- dump


def check(file: OpenFile, options: DumpOptions) -> None:
    """Raise Unsupported if the file is locked and locks are not to be kept."""
    for lock in file.info.locks:
        if lock.kind not in _FLAGS:
            raise Unsupported(f"{file.name}: a lock of the kind {lock.kind}: not supported")
        name = _SORTS[_FLAGS[lock.kind]].name
        if not options.file_locks:
            raise Unsupported(f"{file.name}: it holds a {name}", hint="--file-locks keeps it")
        if lock.mode == "BREAKING":
            raise Unsupported(
                f"{file.name}: somebody waits for it to give its lease up",
                hint="try again when it has: it has lease-break-time, 45 s, for that",
            )


def dump(file: OpenFile, out: Dump) -> None:
    """Write the locks of an open file, by its lowest descriptor. Raises Unsupported as check."""
    check(file, out.options)
    for lock in file.info.locks:
        out.writer("filelocks").append(_entry(file, lock))


def dump_own(file: OpenFile, out: Dump) -> None:
    """Write only those locks that belong to the process: the open file is another's as well."""
    check(file, out.options)
    for lock in file.info.locks:
        if _FLAGS[lock.kind] == _POSIX:
            out.writer("filelocks").append(_entry(file, lock))


def _entry(file: OpenFile, lock: Lock) -> pb.file_lock_entry:
    return pb.file_lock_entry(
        flag=_FLAGS[lock.kind],
        type=fcntl.F_WRLCK if lock.access == "WRITE" else fcntl.F_RDLCK,
        pid=file.pid,
        fd=file.number,
        start=lock.start,
        len=0 if lock.end is None else lock.end - lock.start + 1,
    )


# --- restore


def restore(
    image: ImageDir,
    pid: int,
    numbers: Iterable[int],
    begin: Callable[[], Batch],
    run: Callable[[Batch], None],
) -> None:
    """Have the task pid take its locks; numbers are those of its descriptors.

    The image says that they were to be kept. Raises KernelError if somebody else holds one.
    """
    left = _read(image, pid, frozenset(numbers))
    while left:
        batch = begin()
        taken = list(_take_some(left, batch))
        run(batch)
        for entry, call in taken:
            if call.ret < 0:
                raise _failure(entry, -call.ret)
        left = left[len(taken) :]


def _read(image: ImageDir, pid: int, numbers: frozenset[int]) -> list[Any]:
    if not image.exists("filelocks"):
        return []
    entries = [entry for entry, _ in image.records("filelocks") if entry.pid == pid]
    for entry in entries:
        if entry.flag == _LEASE and entry.type & _BREAKING:
            raise Unsupported(f"filelocks.img: the lease of fd {entry.fd} was being broken")
        if entry.flag not in _SORTS or entry.type not in _OPERATIONS or entry.fd not in numbers:
            raise ImageError(
                f"filelocks.img: a lock {entry.flag} of type {entry.type} for fd {entry.fd}"
            )
    return entries


def _take_some(entries: list[Any], batch: Batch) -> Iterator[tuple[Any, Call]]:
    """Add the calls for as many as there is room for."""
    for entry in entries:
        if not batch.fits(1, _ROOM):
            return
        yield entry, _take(entry, batch)


def _take(entry: Any, batch: Batch) -> Call:
    if entry.flag == _FLOCK:
        return batch.call(NR.flock, entry.fd, _OPERATIONS[entry.type] | fcntl.LOCK_NB)
    if entry.flag == _LEASE:
        return batch.call(NR.fcntl, entry.fd, _F_SETLEASE, entry.type)
    lock = batch.data(_FLOCK_STRUCT.pack(entry.type, os.SEEK_SET, entry.start, entry.len, 0))
    command = _F_OFD_SETLK if entry.flag == _OFD else fcntl.F_SETLK
    return batch.call(NR.fcntl, entry.fd, command, lock)


# --- who is in the way


def _failure(entry: Any, error: int) -> CkptError:
    """Return the error of a lock that was not to be had: it names the file, and who has it."""
    sort, link = _SORTS[entry.flag], procfs.fd_link(entry.pid, entry.fd)
    what = f"take the {sort.name} of fd {entry.fd} ({link})"
    if error not in (errno.EAGAIN, errno.EACCES):
        return KernelError(error, what, pid=entry.pid)
    st = os.stat(f"/proc/{entry.pid}/fd/{entry.fd}")
    holder = next(_holders(st, sort, entry.pid), "somebody whom we cannot see")
    how = "has a lock on it" if sort.rivals else "has the file open"
    return KernelError(error, f"{what}: {holder} {how}", hint="end that first, or have it let go")


def _holders(st: os.stat_result, sort: _Sort, but: int) -> Iterator[str]:
    """Yield the processes that are in the way of a lock on a file."""
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            if pid not in (but, os.getpid()) and any(_is_rival(pid, st, sort)):
                yield f"pid {pid} ({procfs.stat(pid).comm})"
        except (OSError, CkptError):
            continue  # it has ended


def _is_rival(pid: int, st: os.stat_result, sort: _Sort) -> Iterator[bool]:
    for number in procfs.fds(pid):
        found = os.stat(f"/proc/{pid}/fd/{number}")
        if stat.S_IFMT(found.st_mode) == stat.S_IFMT(st.st_mode) and os.path.samestat(found, st):
            locks = fdinfo(pid, number).locks
            yield not sort.rivals or any(lock.kind in sort.rivals for lock in locks)
