# SPDX-License-Identifier: Apache-2.0
"""What every System V IPC object has (ipc_desc_entry): id, key, owner, mode; and making one so."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ckpt.errors import KernelError
from ckpt.image import pb
from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import check
from ckpt.kernel.sysvipc import IPC_CREAT, IPC_EXCL, Msg, Sem, Shm, next_id, remove
from ckpt.namespaces.kind import Restore

_GET = {"shm": NR.shmget, "msg": NR.msgget, "sem": NR.semget}
_KEEP = -1


def desc(of: Shm | Msg | Sem, id_: int) -> pb.ipc_desc_entry:
    """Return the record of what an object has in common with all others."""
    return pb.ipc_desc_entry(
        key=of.key & 0xFFFFFFFF,
        uid=of.uid,
        gid=of.gid,
        cuid=of.cuid,
        cgid=of.cgid,
        mode=of.perms,
        id=id_,
    )


def make(kind: str, wanted: pb.ipc_desc_entry, of: Restore, *args: int, flags: int = 0) -> None:
    """Have the task make an empty object ("shm", "msg", "sem") with id, key and creator.

    args are those of shmget(2) or semget(2) between key and flags. Raises KernelError, with EEXIST
    if the id or the key is taken.
    """
    what = f"{kind}get id {wanted.id} key {wanted.key:#x}"
    flags |= IPC_CREAT | IPC_EXCL | wanted.mode & 0o777
    next_id(kind, wanted.id)
    with _being(wanted.cuid, wanted.cgid, of):
        got = check(of.syscall(_GET[kind], wanted.key, *args, flags), what)
    if got != wanted.id:
        remove(kind, got)
        raise KernelError(errno.EEXIST, what, hint="another object has its place: remove that one")


@contextmanager
def _being(uid: int, gid: int, of: Restore) -> Iterator[None]:
    """Have the task be another user for a moment: who makes an object is its creator for good."""
    ours = os.geteuid(), os.getegid()
    if (uid, gid) == ours or ours[0]:  # only root comes back with all its capabilities
        yield
        return
    check(of.syscall(NR.setresgid, _KEEP, gid, _KEEP), f"setresgid {gid}")
    check(of.syscall(NR.setresuid, _KEEP, uid, _KEEP), f"setresuid {uid}")
    try:
        yield
    finally:
        check(of.syscall(NR.setresuid, _KEEP, ours[0], _KEEP), "setresuid")
        check(of.syscall(NR.setresgid, _KEEP, ours[1], _KEEP), "setresgid")
