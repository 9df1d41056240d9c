# SPDX-License-Identifier: Apache-2.0
"""Files that are watched: known by device, inode and file handle; found, and found again.

fdinfo names what an inotify or fanotify instance watches by a handle (name_to_handle_at(2)). That
leads to the file as long as it exists on that file system, whatever it is called by now. The image
has the path, too: on another machine the handle leads nowhere. Some file systems have no handles
that can be opened (proc, most overlays): there a path is searched for among those that are likely
(CRIU calls this irmap), and so it is everywhere with --force-irmap.
"""

import fcntl
import os
import stat
import termios
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from ckpt.errors import CkptError, ImageError, Unsupported
from ckpt.files import regfile, remap
from ckpt.files.kind import Dump, OpenFile, Restore
from ckpt.image import pb
from ckpt.image.text import get_path, set_text
from ckpt.kernel import files
from ckpt.kernel.mountinfo import mountinfo
from ckpt.kernel.procfs import Pid
from ckpt.options import DumpOptions

_MINOR_BITS = 20  # of the kernel's own device numbers, which fdinfo and the image have
_WORDS, _WORD = 16, 8  # CRIU reads this many words of a handle
_HANDLE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_LIKELY = ("/etc", "/var/log", "/var/spool", "/var/lib", "/run", "/dev", "/srv", "/home", "/root")
_MOST = 1 << 17  # names looked at in a search
_DELETED = " (deleted)"


class Watched(NamedTuple):
    """What is watched, as fdinfo and the image name it."""

    ino: int
    sdev: int
    handle_type: int
    handle: bytes

    @property
    def dev(self) -> int:
        """The device, as os.stat numbers it."""
        return os.makedev(self.sdev >> _MINOR_BITS, self.sdev & (1 << _MINOR_BITS) - 1)

    @property
    def with_type(self) -> bytes:
        """The handle as open_by_handle takes it."""
        return self.handle_type.to_bytes(4, "little", signed=True) + self.handle


# --- dump


def warn_of_events(file: OpenFile, out: Dump) -> None:
    """Say in the log if events were not read: a restored copy will not have them."""
    waiting = int.from_bytes(fcntl.ioctl(file.fd, termios.FIONREAD, bytes(4)), "little")
    if waiting:
        what = f"{waiting} bytes of events that were not read are not in the image"
        out.options.log.warning("files", f"{file.name}: {what}")


def handle_once(file: OpenFile, watched: Watched, out: Dump) -> pb.fh_entry:
    """Return the record of what is watched, found ahead of the freeze if it has a handle.

    That leads to it even if its path should be another by then.
    """
    if not watched.handle:
        return dump_handle(file, watched, out.options)
    return out.memo((file.proc, watched), lambda: dump_handle(file, watched, out.options))


def dump_handle(file: OpenFile, watched: Watched, options: DumpOptions) -> pb.fh_entry:
    """Return the record of what is watched. Raises Unsupported if a restore would not find it."""
    root = regfile.root_of(file.proc)
    path = _find(file, watched, root)
    if path is None or (options.force_irmap and not path):
        path = _search(file, watched, root, options.irmap_scan_path)
    if path is None:
        raise Unsupported(
            f"{file.name}: watches inode {watched.ino} of device {_shown(watched.dev)}, whose path"
            " is not to be found",
            hint="say where to search: --irmap-scan-path DIR",
        )
    padded = watched.handle.ljust(_WORDS * _WORD, b"\0")
    words = [int.from_bytes(padded[at : at + _WORD], "little") for at in range(0, 128, _WORD)]
    entry = pb.fh_entry(bytes=len(watched.handle), type=watched.handle_type & 0xFFFFFFFF)
    entry.handle.extend(words)
    if path:
        set_text(entry, "path", path)
    return entry


def _shown(dev: int) -> str:
    return f"{os.major(dev)}:{os.minor(dev)}"


def _find(file: OpenFile, watched: Watched, root: str) -> str | None:
    """Return the path that the handle leads to; "" if it has none or another, None if it fails."""
    for mounted in _mounted(watched.dev, file.proc, root):
        fd = _open(mounted, watched)
        if fd < 0:
            continue
        try:
            found, path = os.fstat(fd), os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
        path = path if root == "/" else path.removeprefix(root)
        if _is_at(root.rstrip("/") + path, found):
            return path
        if not found.st_nlink or (path.endswith(_DELETED) and stat.S_ISDIR(found.st_mode)):
            _check_deleted(file, found, path)
        return ""
    return None


def _mounted(dev: int, pid: Pid, root: str = "/") -> Iterator[int]:
    """Yield descriptors on the mounts of a device, for the caller to close; those we can open."""
    for mount in mountinfo(pid):
        if mount.dev == dev:
            with suppress(OSError):
                yield os.open(root.rstrip("/") + mount.mountpoint, os.O_RDONLY | os.O_CLOEXEC)


def _open(mounted: int, watched: Watched) -> int:
    """Open what is watched by its handle, -1 if that fails; closes mounted."""
    try:
        fd = files.open_by_handle(mounted, watched.with_type, _HANDLE)
    except CkptError:
        return -1
    finally:
        os.close(mounted)
    if os.fstat(fd).st_ino == watched.ino:
        return fd
    os.close(fd)
    return -1


def _is_at(path: str, st: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.lstat(path), st)
    except OSError:
        return False


def _check_deleted(file: OpenFile, st: os.stat_result, path: str) -> None:
    """Refuse to watch a file without a name that will not come back with the target."""
    if path in file.links or any(os.path.samestat(st, one) for one in _held(file.proc)):
        return
    raise Unsupported(
        f"{file.name}: watches {path}, which only others have open",
        hint="remove the watch first",
    )


def _held(pid: int) -> Iterator[os.stat_result]:
    """Yield what a process has open, mapped, or is in."""
    for name in ("fd", "map_files"):
        for entry in os.listdir(f"/proc/{pid}/{name}"):
            with suppress(OSError):
                yield os.stat(f"/proc/{pid}/{name}/{entry}")
    for name in ("cwd", "root", "exe"):
        with suppress(OSError):
            yield os.stat(f"/proc/{pid}/{name}")


def _search(file: OpenFile, watched: Watched, root: str, more: tuple[str, ...]) -> str | None:
    """Return a path to what is watched, among the likely ones; None if there is none."""
    near = [link for link in sorted(file.links) if link.startswith("/")]
    near += [os.path.dirname(link) for link in near]
    near.append(os.readlink(f"/proc/{file.proc}/cwd"))
    left = _MOST
    for top in dict.fromkeys((*more, *near, *_LIKELY)):
        for path in _walk(root.rstrip("/") + top):
            if (left := left - 1) < 0:
                return None
            with suppress(OSError):
                st = os.lstat(path)
                if (st.st_ino, st.st_dev) == (watched.ino, watched.dev):
                    return path.removeprefix(root.rstrip("/"))
    return None


def _walk(top: str) -> Iterator[str]:
    yield top
    for directory, directories, names in os.walk(top):
        yield from (f"{directory}/{name}" for name in (*directories, *names))


# --- restore


def pending(kind: str, file_id: int, make: Restore, fd: int = -1) -> "Pending":
    """Return what is put off for an instance; the first call says by which descriptor."""
    return make.once((kind, file_id), lambda: Pending(fd, make))


class Pending:
    """What an instance is to watch once all files are there: iterated over, it lets go of it."""

    def __init__(self, fd: int, make: Restore) -> None:
        self._fd = os.dup(fd) if fd >= 0 else -1
        self._watches: list[tuple[int, Any]] = []
        make.undo(self.close)

    def add(self, file: int, how: Any) -> None:
        """Have a file watched, which is ours to close."""
        self._watches.append((file, how))

    def __iter__(self) -> Iterator[tuple[int, int, Any]]:
        """Yield the instance, a file and how it is watched; then close all."""
        for file, how in self._watches:
            yield self._fd, file, how
        self.close()

    def close(self) -> None:
        """Let go of all."""
        for file, _ in self._watches:
            os.close(file)
        self._watches.clear()
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def open_watched(entry: pb.fh_entry, ino: int, sdev: int, what: str, make: Restore) -> int:
    """Return an O_PATH descriptor of what is watched, found by path, handle or as a ghost.

    A path that leads to the very inode, then the handle, then the path whatever it leads to: that
    is another machine. Raises ImageError.
    """
    watched = _watched(entry, ino, sdev, what)
    path = get_path(entry, "path")
    by_path = open_path(path, make) if path else -1
    if by_path >= 0 and os.fstat(by_path).st_ino == ino:
        return by_path
    for found in (_open_ghost(watched, make), _open_handle(watched)):
        if found >= 0:
            if by_path >= 0:
                os.close(by_path)
            return found
    if by_path < 0:
        raise ImageError(
            f"{what}: {path or f'inode {ino}'}: expected a file to watch, found none",
            hint="it has to be there, on the file system that it was dumped on or by its path",
        )
    return by_path


def _watched(entry: pb.fh_entry, ino: int, sdev: int, what: str) -> Watched:
    content = b"".join(word.to_bytes(_WORD, "little") for word in entry.handle[:_WORDS])
    if entry.bytes > len(content):
        raise ImageError(f"{what}: a handle of {entry.bytes} bytes, of which {len(content)} here")
    handle_type = entry.type - (entry.type >> 31 << 32)
    return Watched(ino, sdev, handle_type, content[: entry.bytes])


def open_path(path: str, make: Restore) -> int:
    """Return an O_PATH descriptor of a path, -1 if it leads nowhere."""
    root = make.once("root", lambda: regfile.open_root(make))
    try:
        return files.openat2(root, path.lstrip("/") or ".", _HANDLE, files.RESOLVE_IN_ROOT)
    except CkptError:
        return -1


def _open_ghost(watched: Watched, make: Restore) -> int:
    """Return a copy of the handle of a ghost that was this file, or -1."""
    file_id = remap.ghost_of(watched.sdev, watched.ino, make)
    if file_id is None:
        return -1
    with regfile.located(make.entry(file_id).reg, make) as handle:
        return os.dup(handle)


def _open_handle(watched: Watched) -> int:
    if watched.handle:
        for mounted in _mounted(watched.dev, "self"):
            if (fd := _open(mounted, watched)) >= 0:
                return fd
    return -1
