# SPDX-License-Identifier: Apache-2.0
"""fanotify(7): marks on files, mounts and file systems.

What inotify.py says of events and of when to watch is so here, too. Whoever opens a file under a
mark that asks for permission waits for the answer of a process that is frozen: such a group is
refused, for the first to wait might be we. CRIU knows no marks on whole file systems, and makes
them marks on a mount.
"""

import os
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

from ckpt.errors import ImageError, Unsupported
from ckpt.files import regfile
from ckpt.files.fhandle import (
    Watched,
    dump_handle,
    handle_once,
    open_path,
    open_watched,
    pending,
    warn_of_events,
)
from ckpt.files.kind import Dump, FileKind, OpenFile, Placed, Restore
from ckpt.image import pb
from ckpt.image.text import get_path, set_text
from ckpt.kernel import fanotify
from ckpt.kernel.fanotify import Mark
from ckpt.kernel.fdinfo import FanotifyMark, fdinfo
from ckpt.kernel.mountinfo import Mount, mountinfo
from ckpt.kernel.remote import Batch
from ckpt.options import DumpOptions

_KEPT = Mark.IGNORED_SURV_MODIFY | Mark.EVICTABLE | Mark.IGNORE


class Fanotify(FileKind):
    """A queue of events about marked files."""

    type = pb.FD_FANOTIFY
    field = "ffy"

    @classmethod
    def claims(cls, file: OpenFile) -> bool:
        """Recognise it by its anonymous inode."""
        return file.link == "anon_inode:[fanotify]"

    @classmethod
    def check(cls, file: OpenFile, options: DumpOptions) -> None:
        """Refuse to freeze whom others wait for, and a mark of what a restore would not find."""
        for mark in _marks(file):
            _mark_entry(file, mark, lambda watched: dump_handle(file, watched, options))

    @classmethod
    def state(cls, file: OpenFile) -> Hashable | None:
        """All is in fdinfo."""
        return ()

    @classmethod
    def dump(cls, file: OpenFile, out: Dump) -> Any:
        """List the marks, as fdinfo does."""
        group = file.info.fanotify
        assert group, file
        entry = pb.fanotify_file_entry(
            **file.common(), faflags=group.flags, evflags=group.event_flags
        )
        for mark in _marks(file):
            entry.mark.append(_mark_entry(file, mark, lambda one: handle_once(file, one, out)))
        out.later(lambda: warn_of_events(file, out))
        return entry

    @classmethod
    def create(cls, entry: Any, make: Restore) -> int:
        """Make it, and find what it will have marks on."""
        fd = fanotify.init(entry.faflags, entry.evflags)
        left = pending("fanotify", entry.id, make, fd)
        for mark in reversed(entry.mark):  # fdinfo has the latest first
            left.add(_open(mark, f"fanotify {entry.id}", make), _calls(mark))
        return fd

    @classmethod
    def connect(cls, entry: Any, placed: Placed, make: Restore, batch: Batch) -> None:
        """Add the marks, now that all files are open: from here, since numbers do not matter."""
        for fd, file, calls in pending("fanotify", entry.id, make):
            for flags, mask in calls:
                fanotify.mark(fd, flags, mask, file)


# --- dump


def _marks(file: OpenFile) -> tuple[FanotifyMark, ...]:
    """Return the marks of a group. Raises Unsupported if one asks for permission."""
    assert file.info.fanotify, file
    marks = file.info.fanotify.marks
    if any(mark.mask & fanotify.PERMISSION for mark in marks):
        raise Unsupported(
            f"{file.name}: it gives permissions, and everybody would wait while it stands",
            hint="remove its marks for permission events first",
        )
    return marks


def _mark_entry(
    file: OpenFile, mark: FanotifyMark, handle: Callable[[Watched], pb.fh_entry]
) -> Any:
    entry = pb.fanotify_mark_entry(
        id=file.id,
        mflags=mark.mflags,
        mask=mark.mask,
        ignored_mask=mark.ignored_mask,
        s_dev=mark.sdev or 0,
    )
    if mark.mnt_id is not None:
        entry.type = pb.MARK_MOUNT
        _set_mount(entry, file, lambda mount: mount.mnt_id == mark.mnt_id)
        entry.s_dev = _kernel_dev(entry.me.mnt_id, file.proc)
    elif mark.ino is not None and mark.sdev is not None:
        watched = Watched(mark.ino, mark.sdev, mark.handle_type, mark.handle)
        entry.type, entry.ie.i_ino = pb.MARK_INODE, mark.ino
        entry.ie.f_handle.CopyFrom(handle(watched))
    else:
        entry.type, entry.filesystem = pb.MARK_MOUNT, True
        dev = Watched(0, mark.sdev or 0, 0, b"").dev
        _set_mount(entry, file, lambda mount: mount.dev == dev)
    return entry


def _set_mount(entry: Any, file: OpenFile, wanted: Callable[[Mount], bool]) -> None:
    """Set the mount of an entry, one that its own path leads to."""
    root = regfile.root_of(file.proc).rstrip("/")
    for mount in filter(wanted, mountinfo(file.proc)):
        if _leads_to(root + mount.mountpoint, mount):
            entry.me.mnt_id = mount.mnt_id
            set_text(entry.me, "path", mount.mountpoint)
            return
    raise Unsupported(
        f"{file.name}: has a mark on a mount that no path leads to",
        hint="is something mounted over it, or is it in another mount namespace?",
    )


def _leads_to(path: str, mount: Mount) -> bool:
    with suppress(OSError):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            return fdinfo("self", fd).mnt_id == mount.mnt_id
        finally:
            os.close(fd)
    return False


def _kernel_dev(mnt_id: int, pid: int) -> int:
    mount = next(one for one in mountinfo(pid) if one.mnt_id == mnt_id)
    return mount.major << 20 | mount.minor


# --- restore


def _open(mark: Any, what: str, make: Restore) -> int:
    """Return an O_PATH descriptor of what a mark is on."""
    if mark.type == pb.MARK_INODE:
        return open_watched(mark.ie.f_handle, mark.ie.i_ino, mark.s_dev, what, make)
    path = get_path(mark.me, "path")
    file = open_path(path, make) if path else -1
    if file < 0:
        raise ImageError(
            f"{what}: {path or f'mount {mark.me.mnt_id}'}: expected a mount, found none",
            hint="mount it again",
        )
    return file


def _calls(mark: Any) -> list[tuple[int, int]]:
    """Return flags and mask of each fanotify_mark(2) that it takes."""
    flags = Mark.ADD | Mark(mark.mflags) & Mark.EVICTABLE
    if mark.type == pb.MARK_MOUNT:
        flags |= Mark.FILESYSTEM if mark.filesystem else Mark.MOUNT
    ignore = Mark(mark.mflags) & (Mark.IGNORED_SURV_MODIFY | Mark.IGNORE) or Mark(0)
    if not ignore & Mark.IGNORE:
        ignore |= Mark.IGNORED_MASK
    calls = [(flags, mark.mask), (flags | ignore, mark.ignored_mask)]
    return [(flags, mask) for flags, mask in calls if mask]
