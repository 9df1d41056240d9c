# SPDX-License-Identifier: Apache-2.0
"""System V IPC (sysvipc(7)): shared memory, messages, semaphores of the namespace we are in.

Functions raise NotPermitted or KernelError. Layouts are those of asm-generic: shmbuf.h,
msgbuf.h and sembuf.h, which all 64-bit architectures share up to the fields used here.
"""

import errno
import os
from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

from ckpt.errors import KernelError
from ckpt.kernel import maps, procfs
from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import check, ffi, syscall

IPC_CREAT, IPC_EXCL, IPC_NOWAIT = 0o1000, 0o2000, 0o4000
SHM_DEST, SHM_LOCKED = 0o1000, 0o2000
"""Bits of a segment's mode: removed, and gone with the last that is attached; locked in memory."""
SHM_HUGETLB, SHM_RDONLY, SHM_EXEC = 0o4000, 0o10000, 0o100000

_IPC_RMID, _IPC_SET, _IPC_STAT, _SHM_LOCK, _GETALL, _SETALL = 0, 1, 2, 11, 13, 17
_MSG_COPY = 0o40000
_MADV_REMOVE = 9
_HUGE_SHIFT = 26
_PAGE = 4096
_DS_SIZE = 256  # more than any of shmid64_ds, msqid64_ds, semid64_ds
_PERM = Struct("<6I")  # struct ipc64_perm: key, uid, gid, cuid, cgid, mode
_QBYTES = 88  # offset of msg_qbytes in struct msqid64_ds
_LONG = Struct("<q")

Shm = procfs.Shm
shm = procfs.shm


class Msg(NamedTuple):
    """A message queue, as in /proc/sysvipc/msg; `cbytes` are the bytes of its `qnum` messages."""

    key: int
    msqid: int
    perms: int
    cbytes: int
    qnum: int
    lspid: int
    lrpid: int
    uid: int
    gid: int
    cuid: int
    cgid: int


class Sem(NamedTuple):
    """A set of semaphores, as in /proc/sysvipc/sem."""

    key: int
    semid: int
    perms: int
    nsems: int
    uid: int
    gid: int
    cuid: int
    cgid: int


def msg() -> list[Msg]:
    """The message queues of the caller's IPC namespace."""
    return [Msg(*_row(line, 11)) for line in _lines("msg")]


def sem() -> list[Sem]:
    """The semaphore sets of the caller's IPC namespace."""
    return [Sem(*_row(line, 8)) for line in _lines("sem")]


def _lines(name: str) -> list[bytes]:
    return procfs.read_path(f"/proc/sysvipc/{name}").splitlines()[1:]


def _row(line: bytes, count: int) -> list[int]:
    words: Sequence[bytes] = line.split()[:count]
    return [int(word, 8 if column == 2 else 10) for column, word in enumerate(words)]


# --- ids, owners, removal: alike for all three

_CTL = {"shm": NR.shmctl, "msg": NR.msgctl, "sem": NR.semctl}


def ctl(kind: str, id_: int, command: int, argument: int = 0) -> int:
    """shmctl(2), msgctl(2) or semctl(2), by kind: "shm", "msg", "sem"."""
    words = (0, command, argument) if kind == "sem" else (command, argument)
    return check(syscall(_CTL[kind], id_, *words), f"{kind}ctl {id_} command {command}")


def next_id(kind: str, id_: int) -> None:
    """Have the next object made get this id, if it is free (CONFIG_CHECKPOINT_RESTORE)."""
    path = f"/proc/sys/kernel/{kind}_next_id"
    try:
        with open(path, "w") as file:
            file.write(str(id_))
    except OSError as error:
        raise KernelError(error.errno or 0, f"writing {id_} to {path}") from error


def own(kind: str, id_: int, uid: int, gid: int, mode: int, qbytes: int = 0) -> None:
    """Set owner and mode (IPC_SET), and of a queue how many bytes it may hold."""
    state = ffi.new("uint8_t[]", _DS_SIZE)
    ffi.buffer(state)[: _PERM.size] = _PERM.pack(0, uid, gid, 0, 0, mode & 0o777)
    ffi.buffer(state)[_QBYTES : _QBYTES + 8] = _LONG.pack(qbytes)
    ctl(kind, id_, _IPC_SET, _address(state))


def remove(kind: str, id_: int) -> None:
    """Remove an object (IPC_RMID); a segment stays until the last has detached it."""
    ctl(kind, id_, _IPC_RMID)


def _address(data: object) -> int:
    return int(ffi.cast("uintptr_t", data))


# --- shared memory


def lock(shmid: int) -> None:
    """Keep a segment in memory (SHM_LOCK)."""
    ctl("shm", shmid, _SHM_LOCK)


class Attachment:
    """A segment attached to us, and a descriptor of its memory, until closed."""

    def __init__(self, shmid: int, *, readonly: bool = False) -> None:
        flags = SHM_RDONLY if readonly else 0
        self._at = check(syscall(NR.shmat, shmid, 0, flags), f"shmat {shmid}")
        try:
            self._size, path = _link(self._at)
            mode = os.O_RDONLY if readonly else os.O_RDWR
            self.fd = os.open(path, mode | os.O_CLOEXEC)
        except BaseException as error:
            syscall(NR.shmdt, self._at)
            if isinstance(error, OSError):
                raise KernelError(error.errno or 0, f"opening segment {shmid}") from error
            raise

    def clear(self) -> None:
        """Make all of it zeros."""
        ret = syscall(NR.madvise, self._at, self._size, _MADV_REMOVE)
        check(ret, "MADV_REMOVE", addr=self._at)

    def close(self) -> None:
        """Detach it; a removed one that nobody else has attached is gone."""
        if self._at:
            os.close(self.fd)
            syscall(NR.shmdt, self._at)
            self._at = 0

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _link(at: int) -> tuple[int, str]:
    """The size of our mapping at an address, and the link that opens what is mapped."""
    end = next(entry.end for entry in maps.maps("self") if entry.start == at)
    return end - at, f"/proc/self/map_files/{at:x}-{end:x}"


def huge_flag(fd: int) -> int:
    """SHM_HUGETLB and the page size, as in shmget(2), of the memory at fd; 0 for small pages."""
    size = os.fstatvfs(fd).f_bsize
    return SHM_HUGETLB | size.bit_length() - 1 << _HUGE_SHIFT if size > _PAGE else 0


# --- messages


def qbytes(msqid: int) -> int:
    """How many bytes a queue may hold."""
    state = ffi.new("uint8_t[]", _DS_SIZE)
    ctl("msg", msqid, _IPC_STAT, _address(state))
    return int(_LONG.unpack_from(ffi.buffer(state), _QBYTES)[0])


def peek(msqid: int, index: int, size: int) -> tuple[int, bytes]:
    """The message at an index of a queue, which keeps it: its type, and up to size bytes.

    Raises KernelError: ENOMSG if there are not so many, ENOSYS without CONFIG_CHECKPOINT_RESTORE,
    EINVAL for a message larger than msgmax, which has been lowered since.
    """
    message = ffi.new("uint8_t[]", 8 + size)
    flags = _MSG_COPY | IPC_NOWAIT
    got = syscall(NR.msgrcv, msqid, _address(message), size, index, flags)
    if got == -errno.EINVAL:
        hint = f"raise kernel.msgmax in its IPC namespace to {size}"
        raise KernelError(errno.EINVAL, f"copying a message of queue {msqid}", hint=hint)
    check(got, f"msgrcv MSG_COPY {msqid} message {index}")
    return _LONG.unpack_from(ffi.buffer(message))[0], ffi.buffer(message)[8 : 8 + got]


def send(msqid: int, mtype: int, data: bytes) -> None:
    """Append a message to a queue."""
    message = ffi.from_buffer(_LONG.pack(mtype) + data)
    ret = syscall(NR.msgsnd, msqid, _address(message), len(data), IPC_NOWAIT)
    check(ret, f"msgsnd {msqid}")


# --- semaphores


def values(semid: int, count: int) -> bytes:
    """The values of a set, as u16 each."""
    state = ffi.new("uint8_t[]", 2 * count)
    ctl("sem", semid, _GETALL, _address(state))
    return bytes(ffi.buffer(state))


def set_values(semid: int, data: bytes) -> None:
    """Set all values of a set, given as `values` returns them."""
    ctl("sem", semid, _SETALL, _address(ffi.from_buffer(data)))
