# SPDX-License-Identifier: Apache-2.0
"""What a unix socket is bound to: an abstract name, or a file; found out, and bound again.

Facts that bite (unix(7), net/unix/af_unix.c):

- A socket keeps the words it was bound with, so a relative path stays relative; it is looked up
  in the directory that was current then, which `name_dir` remembers.
- An accepted socket shows its listener's name but does not hold it: others may bind to it.
- connect(2) goes by the file, not by the name. SIOCUNIXFILE (Linux 4.16, CAP_NET_ADMIN) opens the
  file of a socket even if it has no path any more, and `/proc/self/fd/N` of that is an address.
- Binding needs a free path. A socket file outlives its socket: connecting to one that nobody is
  bound to says ECONNREFUSED, to one of another type EPROTOTYPE.
"""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ckpt.errors import KernelError, Unsupported
from ckpt.files.kind import OpenFile, Restore
from ckpt.files.sockopts import doing
from ckpt.image import pb
from ckpt.image.text import get_path

_SIOCUNIXFILE = 0x89E0


def is_path(name: bytes) -> bool:
    """Say whether a name is a file's; it may be abstract (a NUL first) or missing."""
    return bool(name) and name[0] != 0


def bare(name: bytes) -> bytes:
    """Return the address for bind(2): a path without its final NUL, an abstract name whole."""
    return name.partition(b"\0")[0] if is_path(name) else name


# --- dump


def dump_place(file: OpenFile, name: bytes) -> dict[str, Any]:
    """Return file_perms, name_dir, deleted of a socket bound to a path. Raises Unsupported."""
    if not is_path(name):
        return {}
    fd = _bound_file(file)
    try:
        found = os.fstat(fd)
        path = os.fsencode(f"/proc/self/fd/{fd}")
        path = os.readlink(path).removesuffix(b" (deleted)")
    finally:
        os.close(fd)
    fields: dict[str, Any] = {}
    fields["file_perms"] = pb.file_perms_entry(
        mode=found.st_mode, uid=found.st_uid, gid=found.st_gid
    )
    directory = b"/"
    if not name.startswith(b"/"):
        directory = _directory(file, bare(name), path)
        fields["name_dir"] = os.fsdecode(directory)
    if not _is_there(file.proc, os.path.join(directory, bare(name)), found):
        fields["deleted"] = True
    return fields


def _bound_file(file: OpenFile) -> int:
    with doing(f"SIOCUNIXFILE of {file.name}"):
        return fcntl.ioctl(file.fd, _SIOCUNIXFILE)


def _directory(file: OpenFile, name: bytes, path: bytes) -> bytes:
    """Return the directory that a relative name starts from, to end at path."""
    here = os.readlink(os.fsencode(f"/proc/{file.proc}/cwd"))
    above = path.removesuffix(b"/" + name) if path.endswith(b"/" + name) else here
    for directory in (above or b"/", here, os.path.dirname(path)):
        joined = os.path.join(directory, name)
        if path in (os.path.normpath(joined), os.path.realpath(joined)):
            return directory
    raise Unsupported(
        f"{file.name}: bound to the relative path {os.fsdecode(name)}, whose file is elsewhere now",
        hint="have the target bind it to an absolute path",
    )


def _is_there(pid: int, path: bytes, found: os.stat_result) -> bool:
    """Say whether the path leads the target to that very file."""
    try:
        now = os.stat(os.fsencode(f"/proc/{pid}/root") + path)
    except OSError:
        return False
    return (now.st_dev, now.st_ino) == (found.st_dev, found.st_ino)


# --- restore


def bind(sock: socket.socket, entry: pb.unix_sk_entry, make: Restore) -> None:
    """Bind a socket to the name of an entry, if it has one; a path's file gets its owner back.

    If the restore fails, that file goes again. A socket file nobody is bound to is removed first.
    Raises KernelError: EADDRINUSE if somebody is, or another file is in the way.
    """
    if not entry.name:
        return
    with _inside(get_path(entry, "name_dir")):
        if not is_path(entry.name):
            with doing(f"bind unix socket {_shown(entry.name)}"):
                sock.bind(entry.name)
        elif entry.deleted:
            with _aside(bare(entry.name)):
                _bind_path(sock, entry, make)
                os.unlink(bare(entry.name))
        else:
            _remove_stale(bare(entry.name))
            _bind_path(sock, entry, make)


def _bind_path(sock: socket.socket, entry: pb.unix_sk_entry, make: Restore) -> None:
    path = bare(entry.name)
    with doing(f"bind unix socket {_shown(path)}"):
        sock.bind(path)
        made, place = os.lstat(path), os.path.abspath(path)
        make.undo(lambda: _remove(place, made))
    if entry.HasField("file_perms"):
        perms = entry.file_perms
        with doing(f"chown, chmod {_shown(path)}"):
            now = os.stat(path)
            if (now.st_uid, now.st_gid) != (perms.uid, perms.gid):
                os.chown(path, perms.uid, perms.gid)
            os.chmod(path, stat.S_IMODE(perms.mode))


def _remove(path: bytes, made: os.stat_result) -> None:
    """Remove a socket file, if that is still what is there."""
    with suppress(OSError):
        if os.path.samestat(os.lstat(path), made):
            os.unlink(path)


@contextmanager
def _inside(directory: str) -> Iterator[None]:
    """Be in a directory for a while: relative names are looked up there."""
    if not directory:
        yield
        return
    before = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        with doing(f"chdir {directory}"):
            os.chdir(directory)
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def _remove_stale(path: bytes) -> None:
    """Remove a socket file that no socket is bound to; anything else stays."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    if _in_use(path):
        raise KernelError(
            errno.EADDRINUSE,
            f"bind unix socket {_shown(path)}",
            hint="another process has it: the dumped one may still be running",
        )
    os.unlink(path)


def _in_use(path: bytes) -> bool:
    """Say whether a socket is bound to the file. A datagram's connect(2) troubles nobody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError as error:
            return error.errno != errno.ENOENT
    return True


@contextmanager
def _aside(path: bytes) -> Iterator[None]:
    """Lend a path that now belongs to another file, and give it back."""
    parked = path + b".ckpt-%d" % os.getpid()
    try:
        os.rename(path, parked)
    except FileNotFoundError:
        yield
        return
    try:
        yield
    finally:
        os.rename(parked, path)


def connect(sock: socket.socket, to: socket.socket, name: bytes) -> None:
    """Connect to a socket of ours by its file, wherever that is, or by its abstract name."""
    with doing(f"connect to unix socket {_shown(name)}"):
        if not is_path(name):
            sock.connect(name)
            return
        fd = fcntl.ioctl(to.fileno(), _SIOCUNIXFILE)
        try:
            sock.connect(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)


def connect_outside(sock: socket.socket, entry: pb.unix_sk_entry) -> None:
    """Connect to the name of a socket that somebody else has."""
    with (
        _inside(get_path(entry, "name_dir")),
        doing(f"connect to unix socket {_shown(entry.name)}"),
    ):
        sock.connect(bare(entry.name))


def _shown(name: bytes) -> str:
    return os.fsdecode(bare(name)).replace("\0", "@")
