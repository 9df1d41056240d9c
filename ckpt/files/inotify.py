# SPDX-License-Identifier: Apache-2.0
"""inotify(7): watches of files and directories.

Facts that bite (fs/notify/inotify):

- Events that nobody has read cannot be seen without taking them away: they stay with the target,
  and a restored copy goes without (as with CRIU). The log says so.
- Watch descriptors count up; INOTIFY_IOC_SETNEXTWD (Linux 4.16) says which comes next.
- What a restore does itself, making ghosts say, must not be seen by a watch: they come last.
"""

from collections.abc import Hashable
from typing import Any

from ckpt.errors import ImageError
from ckpt.files.fhandle import (
    Watched,
    dump_handle,
    handle_once,
    open_watched,
    pending,
    warn_of_events,
)
from ckpt.files.kind import Dump, FileKind, OpenFile, Placed, Restore
from ckpt.image import pb
from ckpt.kernel import inotify
from ckpt.kernel.fdinfo import InotifyWatch
from ckpt.kernel.remote import Batch
from ckpt.options import DumpOptions

_MOST_WD = 2**31 - 1


class Inotify(FileKind):
    """A queue of events about watched files."""

    type = pb.FD_INOTIFY
    field = "ify"

    @classmethod
    def claims(cls, file: OpenFile) -> bool:
        """Recognise it by its anonymous inode."""
        return file.link == "anon_inode:inotify"

    @classmethod
    def check(cls, file: OpenFile, options: DumpOptions) -> None:
        """Refuse a watch of what a restore would not find."""
        for watch in file.info.inotify:
            dump_handle(file, watched_by(watch), options)

    @classmethod
    def state(cls, file: OpenFile) -> Hashable | None:
        """All is in fdinfo."""
        return ()

    @classmethod
    def dump(cls, file: OpenFile, out: Dump) -> Any:
        """List the watches, as fdinfo does."""
        entry = pb.inotify_file_entry(**file.common())
        for watch in file.info.inotify:
            entry.wd.append(_watch_entry(file, watch, out))
        out.later(lambda: warn_of_events(file, out))
        return entry

    @classmethod
    def create(cls, entry: Any, make: Restore) -> int:
        """Make it, and find what it will watch."""
        fd = inotify.init()
        left = pending("inotify", entry.id, make, fd)
        what = f"inotify {entry.id}"
        for one in sorted(entry.wd, key=lambda one: one.wd):
            if not 0 < one.wd <= _MOST_WD:
                raise ImageError(f"{what}: a watch cannot be number {one.wd}")
            file = open_watched(one.f_handle, one.i_ino, one.s_dev, what, make)
            left.add(file, (one.wd, one.mask))
        return fd

    @classmethod
    def connect(cls, entry: Any, placed: Placed, make: Restore, batch: Batch) -> None:
        """Add the watches, now that all files are open: from here, since numbers do not matter."""
        for fd, file, (wd, mask) in pending("inotify", entry.id, make):
            inotify.set_next(fd, wd)
            inotify.add_watch(fd, file, mask)


def watched_by(watch: InotifyWatch) -> Watched:
    """Return what is watched."""
    return Watched(watch.ino, watch.sdev, watch.handle_type, watch.handle)


def _watch_entry(file: OpenFile, watch: InotifyWatch, out: Dump) -> pb.inotify_wd_entry:
    return pb.inotify_wd_entry(
        id=file.id,
        i_ino=watch.ino,
        mask=watch.mask,
        ignored_mask=watch.ignored_mask,
        s_dev=watch.sdev,
        wd=watch.wd,
        f_handle=handle_once(file, watched_by(watch), out),
    )
