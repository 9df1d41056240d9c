# SPDX-License-Identifier: Apache-2.0
"""memfd_create(2): memory that is a file. Its content is shared memory's, and saved as such.

One memfd may be open several times and mapped, too (`save_mapped`), each with an entry that
refers to one record of memfd.img. Its seals come when all is restored: after the content, and
after the mappings, as F_SEAL_FUTURE_WRITE allows those that were there before.
"""

import fcntl
import os
import stat
from typing import Any

from ckpt.errors import ImageError
from ckpt.files.kind import Dump, FileKind, OpenFile, Restore
from ckpt.files.regfile import common, nobody
from ckpt.image import pb
from ckpt.image.text import get_path, set_text
from ckpt.kernel import files

_LINK, _DELETED = "/memfd:", " (deleted)"
# Shared anonymous memory is the same without a call to make it; CRIU, too, saves it as a memfd.
_UNNAMED = ("/dev/zero", "/anon_hugepage")
_MFD_HUGETLB, _MFD_HUGE_SHIFT, _MFD_HUGE_MASK = 4, 26, 0x3F << 26
_MAP_HUGETLB = 0x40000
_PAGE = 4096
_OF_FILES = 1 << 31  # System V segments have the pagemap-shmem numbers below, their ids


class Memfd(FileKind):
    """An open memfd."""

    type = pb.FD_MEMFD
    field = "memfd"

    @classmethod
    def claims(cls, file: OpenFile) -> bool:
        """Recognise it by its link, `/memfd:name (deleted)`, and by having seals."""
        return is_memfd(file.fd, file.link)

    @classmethod
    def dump(cls, file: OpenFile, out: Dump) -> Any:
        """Dump position and flags, and with the first opener the memfd itself."""
        inode = _inode(file.fd, file.link, out)
        return pb.memfd_file_entry(**common(file), pos=file.info.pos, inode_id=inode)

    @classmethod
    def create(cls, entry: Any, make: Restore) -> int:
        """Open it again: several openers have positions and flags of their own."""
        fd = open_memfd(entry, make, entry.flags)
        if entry.pos:
            os.lseek(fd, entry.pos, os.SEEK_SET)
        return fd


def is_memfd(fd: int, link: str) -> bool:
    """Say whether what a descriptor (of a file or a map_files link) is open on is a memfd."""
    nameless = link.removesuffix(_DELETED) in _UNNAMED and link.endswith(_DELETED)
    if not (nameless or link.startswith(_LINK)) or not stat.S_ISREG(os.fstat(fd).st_mode):
        return False
    own = _reopen(fd, os.O_RDONLY)
    try:
        fcntl.fcntl(own, fcntl.F_GET_SEALS)
    except OSError:  # EINVAL: an ordinary file of that name
        return False
    finally:
        os.close(own)
    return True


def _reopen(fd: int, flags: int) -> int:
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)


# --- dump


def save_mapped(fd: int, link: str, out: Dump) -> int:
    """Dump a memfd that is mapped, by a descriptor of it (O_PATH will do); returns its id."""

    def save() -> int:
        file_id = out.next_id()
        inode = _inode(fd, link, out)
        entry = pb.memfd_file_entry(id=file_id, flags=0, pos=0, fown=nobody(), inode_id=inode)
        out.add_entry(pb.file_entry(type=pb.FD_MEMFD, id=file_id, memfd=entry))
        return file_id

    st = os.fstat(fd)
    return out.memo(("mapped memfd", st.st_dev, st.st_ino), save)


def _name(link: str) -> str:
    return link.removeprefix(_LINK).removesuffix(_DELETED)


def _inode(fd: int, link: str, out: Dump) -> int:
    """Save a memfd, once; returns its number in memfd.img."""
    st = os.fstat(fd)
    ids: dict[tuple[int, int], int] = out.memo("memfds", dict)
    key = (st.st_dev, st.st_ino)
    if key not in ids:
        ids[key] = len(ids) + 1
        own = _reopen(fd, os.O_RDONLY)
        try:
            _save(own, _name(link), ids[key], out)
        finally:
            os.close(own)
    return ids[key]


def _save(fd: int, name: str, inode_id: int, out: Dump) -> None:
    st = os.fstat(fd)
    entry = pb.memfd_inode_entry(
        uid=st.st_uid,
        gid=st.st_gid,
        size=st.st_size,
        # Inodes of memfds and of shared anonymous memory are numbered together (shm_mnt).
        shmid=_OF_FILES | st.st_ino & (_OF_FILES - 1),
        seals=fcntl.fcntl(fd, fcntl.F_GET_SEALS),
        inode_id=inode_id,
        mode=st.st_mode,
    )
    set_text(entry, "name", name)
    if st.st_blksize > _PAGE and os.fstatvfs(fd).f_bsize > _PAGE:
        # hugetlbfs; log2 of the page size as in memfd_create(2)
        entry.hugetlb_flag = _MFD_HUGETLB | st.st_blksize.bit_length() - 1 << _MFD_HUGE_SHIFT
    out.writer("memfd").append(entry)
    out.save_shmem(entry.shmid, fd, st.st_size)


# --- restore


def open_memfd(entry: Any, make: Restore, flags: int) -> int:
    """Open the memfd of a memfd_file_entry with these flags, whatever the entry's own are."""
    inode = make.once(("memfd", entry.inode_id), lambda: _make(entry.inode_id, make))
    return _reopen(inode, flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_ASYNC))


def _make(inode_id: int, make: Restore) -> int:
    records: dict[int, Any] = make.once("memfds", lambda: _read(make))
    entry = records.get(inode_id)
    if entry is None:
        raise ImageError(f"memfd.img: no memfd with id {inode_id}")
    fd = _make_empty(entry)
    make.at_end(lambda ok: _finish(fd, entry.seals if ok else 0))
    # Content comes in whole pages; the size proper cuts the last one.
    os.ftruncate(fd, -(-entry.size // _PAGE) * _PAGE)
    os.fchown(fd, entry.uid, entry.gid)
    if entry.HasField("mode"):
        os.fchmod(fd, stat.S_IMODE(entry.mode))
    make.load_shmem(entry.shmid, fd)
    os.ftruncate(fd, entry.size)
    return fd


def _make_empty(entry: Any) -> int:
    huge = entry.hugetlb_flag & _MFD_HUGE_MASK if entry.HasField("hugetlb_flag") else None
    name = get_path(entry, "name")
    if name in _UNNAMED:
        return files.anonymous_file(entry.size, None if huge is None else _MAP_HUGETLB | huge)
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    if huge is not None:
        flags |= _MFD_HUGETLB | huge
    return os.memfd_create(name, flags)


def _read(make: Restore) -> dict[int, Any]:
    return {entry.inode_id: entry for entry, _ in make.image.records("memfd")}


def _finish(fd: int, seals: int) -> None:
    try:
        if seals & ~fcntl.fcntl(fd, fcntl.F_GET_SEALS):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    finally:
        os.close(fd)
