# SPDX-License-Identifier: Apache-2.0
"""Which shared memory may come when the process runs already.

It may if nobody can get at it but by mappings that are known, and can be registered:
read(2) or a new mapping finds zeros where a page has still to come, and tells nobody. So no
descriptor of it may be open, and a System V segment, which can be attached again, is never late.
Nor are huge pages (hugetlb), private ones included: to the child of a fork those that had still to
come would come as its own, of a pool that need not have as many, where copy-on-write takes none.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ckpt.image import pb
from ckpt.memory.vmas import FILE_BACKED, MAP_LOCKED, Status

_ACCESS, _READ_WRITE = 3, 2
_SEAL_SEAL = 1


def late_objects(
    memfds: Iterable[pb.memfd_inode_entry],
    files: Mapping[int, pb.file_entry],
    opened: Iterable[int],
    mappings: Iterable[pb.vma_entry],
) -> dict[int, list[pb.vma_entry]]:
    """Return which shared memory objects may be late, by their shmid, and all mappings of each.

    opened are the ids of files that somebody has another way to than by a mapping.
    """
    closed = {file_id for file_id in opened if file_id in files}
    inodes = {_inode(files[file_id]) for file_id in closed}
    mapped: dict[int, list[pb.vma_entry]] = {}
    for entry in mappings:
        if entry.status & FILE_BACKED and entry.shmid in files:
            mapped.setdefault(_inode(files[entry.shmid]), []).append(entry)
    return {
        memfd.shmid: mapped[memfd.inode_id]
        for memfd in memfds
        if memfd.inode_id in mapped
        and memfd.inode_id not in inodes
        and _is_plain(memfd)
        and all(_can_be_registered(entry) for entry in mapped[memfd.inode_id])
    }


def _inode(file: Any) -> int:
    """Return the number of the memfd that a file is of; 0 for other files."""
    return file.memfd.inode_id if file.type == pb.FD_MEMFD else 0


def _is_plain(memfd: pb.memfd_inode_entry) -> bool:
    """Say whether the object has small pages, and no seal that keeps us from mapping it anew."""
    return not memfd.HasField("hugetlb_flag") and not memfd.seals & ~_SEAL_SEAL


def _can_be_registered(entry: pb.vma_entry) -> bool:
    """Say whether a mapping touches nothing until it is used, and a userfaultfd takes it.

    A private one that has pages of its own has taken its neighbours in by then, and one of a
    descriptor that was open to read only is refused (VM_MAYWRITE).
    """
    writable = entry.fdflags & _ACCESS == _READ_WRITE
    return bool(entry.status & Status.FILE_SHARED) and writable and not entry.flags & MAP_LOCKED
