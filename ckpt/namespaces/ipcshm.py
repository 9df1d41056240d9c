# SPDX-License-Identifier: Apache-2.0
"""System V shared memory: ipcns-shm-NS.img, and the contents as of any shared memory.

Of a namespace of the target's own, all segments are in the image, as CRIU has them. Of ours, only
those that the target has attached, in the same format: others may use them meanwhile, so a segment
that is still there at restore is attached as it is, and only one that is gone is made again.
"""

import errno
import os
from collections.abc import Iterable
from functools import partial
from typing import Any

from ckpt.errors import ImageError, KernelError, Unsupported
from ckpt.image import pb
from ckpt.kernel import sysvipc
from ckpt.kernel.sysvipc import SHM_DEST, SHM_LOCKED, Attachment, Shm
from ckpt.namespaces import ipcdesc
from ckpt.namespaces.ipcvar import rmid_forced
from ckpt.namespaces.kind import Dump, Restore, records

_SHM = "ipcns-shm"
_HUGE = sysvipc.SHM_HUGETLB | 0x3F << 26


def check(pid: int, attached: set[int]) -> None:
    """Refuse attached segments (ids) that are not of the process's namespace, which we are in."""
    if lost := attached - {one.shmid for one in sysvipc.shm()}:
        raise Unsupported(
            f"pid {pid} has System V segment {min(lost)} attached, of another IPC namespace",
            hint="it left that namespace with the segment attached: not supported",
        )


def dump(out: Dump) -> None:
    """Write all segments of the namespace that we are in.

    Not the removed ones that no task of the dump has: nobody can get at those any more.
    """
    there = sysvipc.shm()
    _write([one for one in there if one.shmid in out.attached or not one.perms & SHM_DEST], out)


def dump_attached(out: Dump) -> None:
    """Write the segments that the tasks of the dump have attached."""
    if out.attached:
        _write([one for one in sysvipc.shm() if one.shmid in out.attached], out)


def _write(segments: Iterable[Shm], out: Dump) -> None:
    out.image.write(_SHM, *[_dump(one, out) for one in segments], id=out.id)


def _dump(one: Shm, out: Dump) -> pb.ipc_shm_entry:
    entry = pb.ipc_shm_entry(desc=ipcdesc.desc(one, one.shmid), size=one.size, in_pagemaps=True)
    if link := out.attached.get(one.shmid):
        _save(one, os.open(link, os.O_RDONLY | os.O_CLOEXEC), entry, out)
    # Else the kernel would destroy it when we detach it. It was never attached: all zeros.
    elif one.nattch or not rmid_forced():
        with Attachment(one.shmid, readonly=True) as ours:
            _save(one, os.dup(ours.fd), entry, out)
    return entry


def _save(one: Shm, fd: int, entry: pb.ipc_shm_entry, out: Dump) -> None:
    try:
        if huge := sysvipc.huge_flag(fd):
            entry.hugetlb_flag = huge
        out.save_shmem(one.shmid, fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)


# --- restore


def read(make: Restore) -> list[Any]:
    """Return the records of the segments, checked."""
    entries = []
    for entry, _ in records(_SHM, make):
        if not entry.in_pagemaps:
            raise ImageError(f"{_SHM}-{make.id}: contents as CRIU wrote them before version 2")
        entries.append(entry)
    return entries


def restore(entries: Iterable[Any], make: Restore) -> None:
    """Make segments in the namespace that we are in, a new one."""
    for entry in entries:
        _make(entry, make)


def restore_attached(entries: Iterable[Any], make: Restore) -> None:
    """Make the segments that are gone from our namespace; those made go again if that fails."""
    live = {one.shmid: one for one in sysvipc.shm()}
    for entry in entries:
        shmid = entry.desc.id
        if shmid not in live:
            _make(entry, make)
            if not entry.desc.mode & SHM_DEST:
                make.at_end(partial(_undo, shmid))
        elif not _is_same(live[shmid], entry):
            raise KernelError(
                errno.EEXIST,
                f"System V segment {shmid}",
                hint="another one has its id: remove that one",
            )
        elif not live[shmid].nattch:
            with Attachment(shmid) as ours:
                ours.clear()
                make.load_shmem(shmid, ours.fd)


def _undo(shmid: int, ok: bool) -> None:
    if not ok:
        sysvipc.remove("shm", shmid)


def _is_same(one: Shm, entry: Any) -> bool:
    """Say whether a segment is the saved one: it may have been removed since, not the reverse."""
    if one.size != entry.size:
        return False
    removed = bool(one.perms & SHM_DEST)
    same_key = one.key & 0xFFFFFFFF == entry.desc.key
    return removed or (same_key and not entry.desc.mode & SHM_DEST)


def _make(entry: Any, make: Restore) -> None:
    desc = entry.desc
    ipcdesc.make("shm", desc, make, entry.size, flags=entry.hugetlb_flag & _HUGE)
    sysvipc.own("shm", desc.id, desc.uid, desc.gid, desc.mode)
    if make.image.exists("pagemap-shmem", desc.id) or desc.mode & SHM_DEST:
        # Attached until the tasks have it: the last to detach a removed one ends it.
        ours = Attachment(desc.id)
        make.at_end(lambda ok: ours.close())
        make.load_shmem(desc.id, ours.fd)
    if desc.mode & SHM_LOCKED:
        sysvipc.lock(desc.id)
    if desc.mode & SHM_DEST:
        sysvipc.remove("shm", desc.id)
