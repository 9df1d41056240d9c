# SPDX-License-Identifier: Apache-2.0
"""What is opened by a path: regular files, directories, plain devices, files of /proc and /sys.

The image has the path, not the content; so at restore the file must be there, of the same type
and, if regular, of the same size. A file opened to append only may have grown, as a log does
(CRIU leaves the size out there, too). What has lost its name is remap.py's.

Also used for paths without a descriptor: mapped files, exe, cwd and root (`save_path`).
"""

import os
import stat
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ckpt.errors import ImageError, KernelError, OptionsError, Unsupported
from ckpt.files import devices, mqueue, procself, remap
from ckpt.files.external import file_key, inherited
from ckpt.files.kind import INSIDE, Dump, FileKind, OpenFile, Restore
from ckpt.image import pb
from ckpt.image.text import get_path, set_text
from ckpt.kernel import files
from ckpt.kernel.arch import NR
from ckpt.kernel.fdinfo import FdInfo, fdinfo
from ckpt.kernel.glance import Glance
from ckpt.kernel.remote import Batch, Call
from ckpt.options import DumpOptions

_DELETED = " (deleted)"
_STAT_ROOM = 256  # more than a struct stat has
_O_TMPFILE = 0o20000000  # without the O_DIRECTORY that Python's has
_NOT_TO_OPEN_WITH = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_ASYNC | os.O_CLOEXEC | _O_TMPFILE
_HANDLE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_TYPES = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFSOCK: "a socket",
}


_UNNAMED = {
    0x5345434D: "secret memory (memfd_secret)",
}
"""File systems whose files look like others, but have no path, by what statfs(2) says."""


class RegFile(FileKind):
    """An open path."""

    type = pb.FD_REG
    field = "reg"
    late = (b"flags:", b"pos:")

    @classmethod
    def claims(cls, file: OpenFile) -> bool:
        """Recognise it by its link, a path; anything may be open as a mere path (O_PATH)."""
        mode = file.stat.st_mode
        if not file.link.startswith("/"):
            return False
        if stat.S_ISCHR(mode) and file.stat.st_rdev in devices.STATELESS:
            return True
        return stat.S_ISREG(mode) or stat.S_ISDIR(mode) or bool(file.flags & os.O_PATH)

    @classmethod
    def check(cls, file: OpenFile, options: DumpOptions) -> None:
        """Refuse a file that no path leads to, and a large one that has lost its name."""
        if file_key(file) in options.external:
            return
        if what := _UNNAMED.get(files.fs_type(file.fd)):
            raise Unsupported(f"{file.name}: {what}: not supported", hint="close it first")
        _locate(_link(file), file.stat, file.name, root_of(file.proc), options)

    @classmethod
    def state(cls, file: OpenFile) -> Hashable | None:
        """What path leads to it, and its size; without one, its content has to stand still."""
        link, st = os.readlink(f"/proc/self/fd/{file.fd}"), os.fstat(file.fd)
        return None if link.endswith(_DELETED) else (link, st.st_nlink, st.st_size)

    @classmethod
    def glimpse(cls, file: OpenFile, glance: Glance) -> bool:
        """Where it leads, and what stat(2) says."""
        room = len(os.fsencode(file.link)) + 1  # a longer one will be told by its length
        path = glance.out(content=b"/proc/self/fd/%d\0" % file.fd)
        glance.call(NR.readlink, path, glance.out(room), room)
        glance.call(NR.fstat, file.fd, glance.out(_STAT_ROOM))
        return True

    @classmethod
    def update(cls, message: Any, info: FdInfo) -> None:
        """Position and flags are in fdinfo."""
        message.flags, message.pos = info.flags & ~os.O_CLOEXEC, info.pos

    @classmethod
    def dump(cls, file: OpenFile, out: Dump) -> Any:
        """Take path, position and size."""
        if (key := file_key(file)) in out.options.external:
            mode, pos = file.stat.st_mode, file.info.pos
            return pb.reg_file_entry(name=key, ext=True, mode=mode, pos=pos, **common(file))
        return _entry(file.fd, _link(file), file.name, out, pos=file.info.pos, **common(file))

    @classmethod
    def create(cls, entry: Any, make: Restore) -> int:
        """Open it again, at its position; or take a descriptor of ours as it is."""
        name = get_path(entry, "name")
        if (inherited_fd := inherited(make.options, name, name.removeprefix("/"))) is not None:
            return inherited_fd
        if entry.ext:
            raise OptionsError(
                f"{name}: the dump left this file outside",
                hint=f"--inherit-fd 'fd[N]:{name}' puts descriptor N in its place",
            )
        if procself.is_own(name, make):
            return INSIDE
        fd = open_entry(entry, make, entry.flags)
        if entry.pos:
            with suppress(OSError):  # ESPIPE: a device counts, but cannot seek
                os.lseek(fd, entry.pos, os.SEEK_SET)
        return fd

    @classmethod
    def open_inside(cls, entry: Any, make: Restore, batch: Batch) -> Call:
        """Open a file of the task's own in /proc, at its position."""
        return procself.open_inside(entry, batch)


def common(file: OpenFile) -> dict[str, Any]:
    """Return id, flags and owner; an O_PATH descriptor has no owner to ask for."""
    if file.flags & os.O_PATH:
        return {"id": file.id, "flags": file.flags, "fown": nobody()}
    return file.common()


def _link(file: OpenFile) -> str:
    """Return the path that /proc shows for a file, or should show."""
    return mqueue.path(file) if files.fs_type(file.fd) == mqueue.FS_TYPE else file.link


def nobody() -> pb.fown_entry:
    """Return an owner that is none."""
    return pb.fown_entry(uid=0, euid=0, signum=0, pid_type=0, pid=0)


# --- dump


def root_of(pid: int) -> str:
    """Return where the paths of a process's links begin, as we see it (see Dump.root)."""
    own = os.stat("/proc/self/ns/mnt")
    its = os.stat(f"/proc/{pid}/ns/mnt")
    return "/" if own.st_ino == its.st_ino else f"/proc/{pid}/root"


def save_path(fd: int, link: str, out: Dump) -> int:
    """Dump what a local descriptor (O_PATH will do) is open on, as a path only; returns its id.

    link is what /proc says of it: a map_files link, exe, cwd or root. One file has one id.
    Raises Unsupported if no path leads to it.
    """
    st = os.fstat(fd)

    def save() -> int:
        file_id = out.next_id()
        entry = _entry(fd, link, link, out, id=file_id, flags=0, pos=0, fown=nobody())
        out.add_entry(pb.file_entry(type=pb.FD_REG, id=file_id, reg=entry))
        return file_id

    size = st.st_size if stat.S_ISREG(st.st_mode) else 0  # grown, it needs another record
    return out.memo(("path", st.st_dev, st.st_ino, link, size), save)


def save_opened(file: OpenFile, out: Dump) -> int:
    """Add an entry of its own for the path of a file that another kind dumps; returns its id."""
    fields = common(file) | {"id": out.next_id()}
    entry = _entry(file.fd, file.link, file.name, out, pos=0, **fields)
    out.add_entry(pb.file_entry(type=pb.FD_REG, id=entry.id, reg=entry))
    return int(entry.id)


def _entry(fd: int, link: str, what: str, out: Dump, **fields: Any) -> Any:
    st = os.fstat(fd)
    name = _locate(link, st, what, out.root, out.options)
    entry = pb.reg_file_entry(mode=st.st_mode, **fields)
    set_text(entry, "name", name)
    if stat.S_ISREG(st.st_mode) and not _may_grow(entry.flags):
        entry.size = st.st_size
    if out.root != "/":
        entry.mnt_id = fdinfo("self", fd).mnt_id
    if name == link or link.startswith("/proc/"):
        return entry
    if _is_gone(st):
        remap.save_ghost(fd, st, entry.id, out)
    else:
        remap.save_link(fd, name, entry, out)
    return entry


def _may_grow(flags: int) -> bool:
    return bool(flags & os.O_APPEND) and flags & os.O_ACCMODE == os.O_WRONLY


def _is_gone(st: os.stat_result) -> bool:
    """Say whether a deleted file has no other name; a directory never has."""
    return not st.st_nlink or stat.S_ISDIR(st.st_mode)


def _locate(link: str, st: os.stat_result, what: str, root: str, options: DumpOptions) -> str:
    """Return the path of a file; it is shorter than link if it has been deleted there.

    Raises Unsupported if a restore could not find this very file again.
    """
    path = root.rstrip("/") + link
    if _is_at(path, st) or (options.evasive_devices and devices.is_at(path, st)):
        return link
    if not link.endswith(_DELETED):
        raise Unsupported(
            f"{what}: its path leads to another file, or nowhere",
            hint="is something mounted over it, or is it in a mount namespace that is not dumped?",
        )
    if link.startswith("/proc/"):
        # What lies below /proc/PID/net is always shown as deleted.
        if _is_at(path.removesuffix(_DELETED), st):
            return link.removesuffix(_DELETED)
        raise Unsupported(f"{what}: the process is gone", hint="have the target close it")
    if _is_gone(st):
        remap.check_ghost(st, what, options.ghost_limit)
    elif not options.link_remap:
        raise Unsupported(
            f"{what}: deleted here, but the file has other names",
            hint="allow to give it one beside the old: --link-remap",
        )
    return link.removesuffix(_DELETED)


def _is_at(path: str, st: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.lstat(path), st)
    except OSError:
        return False


# --- restore


def open_entry(entry: Any, make: Restore, flags: int) -> int:
    """Open the file of a reg_file_entry with these flags, whatever the entry's own are.

    Nothing is created or truncated. Raises ImageError if it is not the file that was dumped.
    """
    with located(entry, make) as handle:
        if flags & os.O_PATH and (flags & os.O_NOFOLLOW or stat.S_ISLNK(entry.mode)):
            return os.dup(handle)
        # By the handle: what was checked is what is opened.
        flags = flags & ~_NOT_TO_OPEN_WITH | os.O_NOCTTY | os.O_CLOEXEC
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            flags &= ~os.O_DIRECTORY
        return os.open(f"/proc/self/fd/{handle}", flags & ~os.O_NOFOLLOW)


@contextmanager
def located(entry: Any, make: Restore) -> Iterator[int]:
    """Give an O_PATH descriptor of an entry's file, which has been checked to be as it was."""
    root = make.once("root", lambda: open_root(make))
    found = remap.remap_of(entry.id, make)
    if found and found.remap_type == pb.REMAP_GHOST:
        yield remap.ghost(found.remap_id, get_path(entry, "name"), root, make)
        return
    if found and found.remap_type == pb.REMAP_PROCFS:
        raise ImageError(
            f"{get_path(entry, 'name')}: of a process that was dead already: not restored here"
        )
    if found:
        handle = _open_linked(entry, found.remap_id, root, make)
    else:
        handle = _open_at(entry, root, make)
    try:
        _verify(entry, os.fstat(handle))
        yield handle
    finally:
        os.close(handle)


def open_root(make: Restore) -> int:
    """Return a descriptor of where paths begin; it is closed in the end."""
    root = os.open(make.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    make.at_end(lambda ok: os.close(root))
    return root


def _open_linked(entry: Any, linked_id: int, root: int, make: Restore) -> int:
    """Open a file by what the dump left of it: a name for it to be taken away, or its handle."""
    linked = make.entry(linked_id).reg
    if linked.handle:
        return remap.by_handle(linked, root)
    handle = _open_handle(linked, root)
    vanish = remap.vanish_linked
    names = get_path(linked, "name"), get_path(entry, "name")
    make.once(("linked", linked_id), lambda: vanish(*names, root, make))
    return handle


def _open_at(entry: Any, root: int, make: Restore) -> int:
    """Open a file at its path, a device whose node is gone at another if that is allowed."""
    try:
        return _open_handle(entry, root)
    except ImageError:
        if not (make.options.evasive_devices and stat.S_ISCHR(entry.mode)):
            raise
        fd = devices.open_usual(get_path(entry, "name"), _HANDLE, root)
        if fd is None:
            raise
        return fd


def _open_handle(entry: Any, root: int) -> int:
    name = get_path(entry, "name")
    try:
        return files.openat2(root, name.lstrip("/") or ".", _HANDLE, files.RESOLVE_IN_ROOT)
    except KernelError as error:
        wanted = _TYPES.get(stat.S_IFMT(entry.mode), "a file")
        raise ImageError(
            f"{name}: expected {wanted}, found {os.strerror(error.errno or 0).lower()}",
            hint="a restore needs the files that were open; bring it back",
        ) from error


def _verify(entry: Any, st: os.stat_result) -> None:
    name = get_path(entry, "name")
    wanted, found = stat.S_IFMT(entry.mode), stat.S_IFMT(st.st_mode)
    if entry.HasField("mode") and wanted != found:
        raise ImageError(
            f"{name}: expected {_TYPES.get(wanted, oct(wanted))}, found {_TYPES[found]}",
            hint="the file is not the one that was dumped; bring that back",
        )
    if entry.HasField("size") and stat.S_ISREG(found) and entry.size != st.st_size:
        raise ImageError(
            f"{name}: expected {entry.size} bytes, found {st.st_size}",
            hint="the file has changed since the dump; bring the old one back",
        )
