# SPDX-License-Identifier: Apache-2.0
"""Files that have lost their name: saved as ghosts, or given a name again.

A file without any name left goes into the image with its content (ghost-file-ID.img). One that has
other names, which nobody can find by the file, gets a new one beside its old (link_remap.ID),
which the image refers to and the restore takes away. remap-fpath.img says which file is which.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from ckpt.errors import ImageError, KernelError, Unsupported
from ckpt.files.kind import Dump, Restore
from ckpt.image import pb
from ckpt.image.records import Record, Source
from ckpt.image.text import get_path, set_text
from ckpt.kernel import files

_HANDLE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MAJOR_SHIFT = 20  # of the kernel's own device numbers, which the image has

# --- dump


def allocated(st: os.stat_result) -> int:
    """Return the bytes that saving a file's content takes: holes are free."""
    return min(st.st_size, st.st_blocks * 512) if stat.S_ISREG(st.st_mode) else 0


def check_ghost(st: os.stat_result, what: str, limit: int) -> None:
    """Raise Unsupported if a file without a name is too large, or of a kind not made again."""
    if stat.S_ISSOCK(st.st_mode):
        raise Unsupported(f"{what}: a deleted socket cannot be made again")
    if (size := allocated(st)) > limit:
        raise Unsupported(
            f"{what}: a deleted file of {size} bytes would go into the image, the limit is {limit}",
            hint=f"raise it: --ghost-limit {size}",
        )


def save_ghost(fd: int, st: os.stat_result, file_id: int, out: Dump) -> None:
    """Save a file without a name, once for all that have it open, and refer file_id to it."""
    ghosts: dict[tuple[int, ...], int] = out.memo("ghosts", dict)
    # What was written since it was saved makes it another.
    key = (st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns)
    if key not in ghosts:
        ghosts[key] = len(ghosts) + 1
        _write_ghost(fd, st, ghosts[key], out)
    _refer(file_id, ghosts[key], pb.REMAP_GHOST, out)


def _refer(file_id: int, remap_id: int, kind: int, out: Dump) -> None:
    entry = pb.remap_file_path_entry(orig_id=file_id, remap_id=remap_id, remap_type=kind)
    out.writer("remap-fpath").append(entry)


def _write_ghost(fd: int, st: os.stat_result, ghost_id: int, out: Dump) -> None:
    entry = pb.ghost_file_entry(
        uid=st.st_uid,
        gid=st.st_gid,
        mode=st.st_mode,
        dev=os.major(st.st_dev) << _MAJOR_SHIFT | os.minor(st.st_dev),
        ino=st.st_ino,
        atim=_timeval(st.st_atime_ns),
        mtim=_timeval(st.st_mtime_ns),
    )
    if stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
        entry.rdev = st.st_rdev
    if stat.S_ISLNK(st.st_mode):
        set_text(entry, "symlnk_target", os.readlink("", dir_fd=fd))
    with out.image.writer("ghost-file", ghost_id) as writer:
        if not stat.S_ISREG(st.st_mode):
            writer.append(entry)
            return
        # A descriptor of our own: the target's position must not move.
        source = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _write_content(source, st.st_size, entry, writer)
        finally:
            os.close(source)


def _timeval(nanoseconds: int) -> pb.timeval:
    seconds, rest = divmod(nanoseconds, 10**9)
    return pb.timeval(tv_sec=seconds, tv_usec=rest // 1000)


def _write_content(source: int, size: int, entry: Any, writer: Any) -> None:
    extents = _extents(source, size)
    if not size or extents == [(0, size)]:
        writer.append(entry)
        _copy(source, 0, writer.tail_fd(), size)
        return
    entry.chunks, entry.size = True, size
    writer.append(entry)
    for start, end in extents:
        writer.append(pb.ghost_chunk_entry(len=end - start, off=start))
        _copy(source, start, writer.tail_fd(), end - start)


def _extents(fd: int, size: int) -> list[tuple[int, int]]:
    """Return where a file has data (SEEK_DATA of lseek(2)), as (start, end)."""
    found, end = [], 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole up to the end
            break
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        found.append((start, end))
    return found


def _copy(source: int, offset: int, target: int, size: int) -> None:
    while size:
        done = os.sendfile(target, source, offset, size)
        if not done:
            raise KernelError(errno.EIO, f"sendfile, {size} bytes before the end")
        offset, size = offset + done, size - done


def save_link(fd: int, name: str, entry: Any, out: Dump) -> None:
    """Give a file with other names one beside its old, and refer entry's file to that.

    A target that runs on is not to find such a name: then the file's handle has to do, where there
    is one. CRIU takes its name away at once in that case, and cannot restore.
    """
    linked = type(entry)()
    linked.CopyFrom(entry)
    linked.id = out.next_id()
    new = os.path.join(os.path.dirname(name), f"link_remap.{linked.id}")
    set_text(linked, "name", new)
    handle = files.file_handle(fd) if out.options.leave_running else None
    if handle:
        linked.handle = handle
    else:
        _link(fd, name, out.root.rstrip("/") + new, out)
    out.add_entry(pb.file_entry(type=pb.FD_REG, id=linked.id, reg=linked))
    _refer(entry.id, linked.id, pb.REMAP_LINKED, out)


def _link(fd: int, name: str, path: str, out: Dump) -> None:
    try:
        # With a directory Python makes it linkat(2), which follows the link in /proc.
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=0, follow_symlinks=True)
    except OSError as error:
        raise Unsupported(f"{name}: deleted, and no new name can be made: {error}") from error
    out.undo(lambda: os.unlink(path))


# --- restore


def remap_of(file_id: int, make: Restore) -> Any | None:
    """Return the remap_file_path_entry of a file, None if it was at its path."""
    remaps: dict[int, Any] = make.once("remap-fpath", lambda: _read_remaps(make))
    return remaps.get(file_id)


def _read_remaps(make: Restore) -> dict[int, Any]:
    if not make.image.exists("remap-fpath"):
        return {}
    return {entry.orig_id: entry for entry, _ in make.image.records("remap-fpath")}


def ghost_of(dev: int, ino: int, make: Restore) -> int | None:
    """Return the id of a file that was deleted, by the device and inode that it had."""
    ghosts: dict[tuple[int, int], int] = make.once("ghosts", lambda: dict(_read_ghosts(make)))
    return ghosts.get((dev, ino))


def _read_ghosts(make: Restore) -> Iterator[tuple[tuple[int, int], int]]:
    remap_of(0, make)
    remaps: dict[int, Any] = make.once("remap-fpath", dict)
    for remap in remaps.values():
        if remap.remap_type == pb.REMAP_GHOST:
            for record, _ in make.image.extents("ghost-file", remap.remap_id):
                yield (record.message.dev, record.message.ino), remap.orig_id
                break


class _Place(NamedTuple):
    """A name in a directory for a while. It has to end as `final`, which /proc then shows."""

    directory: int
    name: str
    final: str

    def vanish(self) -> None:
        """Unlink it, with its old name if that is free."""
        name = self.name
        with suppress(KernelError):
            files.rename_new(self.directory, name, self.final)
            name = self.final
        try:
            os.unlink(name, dir_fd=self.directory)
        except IsADirectoryError:
            os.rmdir(name, dir_fd=self.directory)
        os.close(self.directory)


def _directory(name: str, root: int) -> int:
    parent = os.path.dirname(name).lstrip("/") or "."
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    return files.openat2(root, parent, flags, files.RESOLVE_IN_ROOT)


def by_handle(linked: Any, root: int) -> int:
    """Return an O_PATH descriptor of a file whose handle the dump has kept."""
    name = get_path(linked, "name")
    try:
        directory = _directory(name, root)
        try:
            return files.open_by_handle(directory, linked.handle, _HANDLE)
        finally:
            os.close(directory)
    except KernelError as error:
        raise ImageError(
            f"{name}: expected a file with other names, found none: {error}",
            hint="it has to be on the file system that it was dumped on",
        ) from error


def vanish_linked(name: str, old: str, root: int, make: Restore) -> None:
    """Have the name that the dump made for a file taken away once all is restored."""
    place = _Place(_directory(name, root), os.path.basename(name), os.path.basename(old))
    make.at_end(lambda ok: place.vanish() if ok else os.close(place.directory))


def ghost(ghost_id: int, name: str, root: int, make: Restore) -> int:
    """Return an O_PATH descriptor of a ghost, made when first asked for; it stays make's."""
    return make.once(("ghost", ghost_id), lambda: _make_ghost(ghost_id, name, root, make))


def _make_ghost(ghost_id: int, name: str, root: int, make: Restore) -> int:
    records = make.image.extents("ghost-file", ghost_id)
    first, source = next(records, (None, None))
    if first is None or source is None:
        raise ImageError(f"ghost-file-{ghost_id:x}.img: nothing in it")
    place = _make_place(first.message, name, root, make)
    make.at_end(lambda ok: place.vanish())
    if stat.S_ISREG(first.message.mode):
        _fill(place, first, source, records)
    _set_owner(place, first.message)
    handle = os.open(place.name, _HANDLE, dir_fd=place.directory)
    make.at_end(lambda ok: os.close(handle))
    return handle


def _make_place(entry: Any, name: str, root: int, make: Restore) -> _Place:
    """Make an empty file where it was, or in a directory of ours if that cannot be."""
    final, draft = os.path.basename(name), f".ckpt-{os.urandom(8).hex()}"
    try:
        return _make_node(entry, _Place(_directory(name, root), draft, final))
    except (OSError, KernelError):
        # Its directory is gone too, or cannot be written.
        from tempfile import mkdtemp  # with all it imports, 13 ms of each start

        private = mkdtemp(prefix="ckpt-")
        make.at_end(lambda ok: os.rmdir(private))
        directory = os.open(private, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return _make_node(entry, _Place(directory, draft, final))


def _make_node(entry: Any, place: _Place) -> _Place:
    name, directory, mode = place.name, place.directory, entry.mode
    try:
        if stat.S_ISDIR(mode):
            os.mkdir(name, 0o700, dir_fd=directory)
        elif stat.S_ISLNK(mode):
            os.symlink(get_path(entry, "symlnk_target"), name, dir_fd=directory)
        else:
            os.mknod(name, stat.S_IFMT(mode) | 0o600, entry.rdev, dir_fd=directory)
    except BaseException:
        os.close(directory)
        raise
    return place


def _fill(place: _Place, first: Record, source: Source, rest: Iterator[tuple[Record, Any]]) -> None:
    size = first.message.size if first.message.chunks else first.tail_length
    fd = os.open(place.name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.directory)
    try:
        os.ftruncate(fd, size)
        if not first.message.chunks:
            _copy(source.fileno(), first.tail_offset, fd, size)
        for record, file in rest:
            if record.message.off + record.message.len > size:
                raise file.error(f"a chunk goes beyond the {size} bytes of the file")
            os.lseek(fd, record.message.off, os.SEEK_SET)
            _copy(file.fileno(), record.tail_offset, fd, record.tail_length)
    finally:
        os.close(fd)


def _set_owner(place: _Place, entry: Any) -> None:
    name, directory = place.name, place.directory
    os.chown(name, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
    if not stat.S_ISLNK(entry.mode):
        os.chmod(name, stat.S_IMODE(entry.mode), dir_fd=directory)
    if entry.HasField("mtim"):
        times = (_nanoseconds(entry.atim), _nanoseconds(entry.mtim))
        os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)


def _nanoseconds(time: Any) -> int:
    return int(time.tv_sec) * 10**9 + int(time.tv_usec) * 1000
