# SPDX-License-Identifier: Apache-2.0
"""A namespace dumped, left for a new one, and made again there."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt.errors import KernelError
from ckpt.image import pb
from ckpt.kernel import sysvipc
from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import check, syscall
from ckpt.kernel.sysvipc import IPC_CREAT, Attachment
from ckpt.namespaces import ipcvar
from ckpt.namespaces.ipc import Ipc
from ckpt.namespaces.ipcdesc import make
from ckpt.namespaces.kind import NamespaceKind

KEY, SIZE = 0x5EED, 3 * 4096
Inside = Callable[[Callable[[Any], None]], None]


def get(nr: NR, key: int, *args: int) -> int:
    return check(syscall(nr, key, *args, IPC_CREAT | 0o640), nr.name)


def again(place: Any) -> None:
    """Dump, move to an empty namespace, restore."""
    Ipc.dump(place.dump())
    assert syscall(NR.unshare, Ipc.flag) == 0
    assert not sysvipc.shm() + sysvipc.msg() + sysvipc.sem()
    restore = place.restore()
    Ipc.restore(restore)
    restore.close(ok=True)


def messages(queue: sysvipc.Msg) -> list[tuple[int, bytes]]:
    return [sysvipc.peek(queue.msqid, i, queue.cbytes) for i in range(queue.qnum)]


def test_messages(inside: Inside) -> None:
    def body(place: Any) -> None:
        sysvipc.remove("msg", get(NR.msgget, 0))
        queue = get(NR.msgget, KEY)
        sysvipc.own("msg", queue, 1, 2, 0o604, 5000)
        sent = [(7, b"seven bytes"), (1 << 40, b""), (2, bytes(range(256)) * 8)]
        for mtype, data in sent:
            sysvipc.send(queue, mtype, data)
        again(place)
        (found,) = sysvipc.msg()
        assert (found.msqid, found.key, found.perms) == (queue, KEY, 0o604)
        assert (found.uid, found.gid, found.cuid) == (1, 2, os.geteuid())
        assert sysvipc.qbytes(queue) == 5000
        assert messages(found) == sent

    inside(body)


def test_a_dump_takes_nothing_out_of_a_queue(inside: Inside) -> None:
    def body(place: Any) -> None:
        sysvipc.send(get(NR.msgget, KEY), 1, b"stays")
        Ipc.dump(place.dump())
        assert [messages(queue) for queue in sysvipc.msg()] == [[(1, b"stays")]]

    inside(body)


def test_semaphores(inside: Inside) -> None:
    def body(place: Any) -> None:
        values = b"\x01\x00\xff\x7f\x00\x00"
        sysvipc.remove("sem", get(NR.semget, 0, 1))
        there = get(NR.semget, KEY, 3)
        sysvipc.set_values(there, values)
        again(place)
        (found,) = sysvipc.sem()
        assert (found.semid, found.key, found.nsems, found.perms) == (there, KEY, 3, 0o640)
        assert sysvipc.values(there, 3) == values

    inside(body)


def test_segments(inside: Inside) -> None:
    def body(place: Any) -> None:
        sysvipc.remove("shm", get(NR.shmget, 0, SIZE))
        there = get(NR.shmget, KEY, SIZE - 100)
        removed = get(NR.shmget, 0, SIZE)
        with Attachment(there) as ours:
            os.pwrite(ours.fd, b"x" * 100, 4096)
        with Attachment(removed):  # by an outsider, as it were: nobody can attach it again
            sysvipc.remove("shm", removed)
            again(place)
        (found,) = sysvipc.shm()
        assert (found.shmid, found.key, found.size) == (there, KEY, SIZE - 100)
        assert (found.nattch, found.cpid) == (0, os.getpid())
        with Attachment(there, readonly=True) as ours:
            content = os.pread(ours.fd, SIZE - 100, 0)
        assert content == bytes(4096) + b"x" * 100 + bytes(SIZE - 100 - 4196)

    inside(body)


def test_sysctls(inside: Inside) -> None:
    def body(place: Any) -> None:
        for name in ("kernel/msgmnb", "kernel/shmmni", "fs/mqueue/msg_max"):
            Path("/proc/sys", name).write_text("33")
        sysvipc.next_id("msg", 77)
        Path("/proc/sys/kernel/sem").write_text("10 20 30 40")
        before = ipcvar.dump()
        again(place)
        assert ipcvar.dump() == before
        assert (before.msg_ctlmnb, before.shm_ctlmni, before.mq_msg_max) == (33, 33, 33)
        assert (before.msg_next_id, list(before.sem_ctls)) == (77, [10, 20, 30, 40])
        assert not before.HasField("shm_next_id")

    inside(body)


def test_a_segment_never_attached_outlives_a_dump_where_detaching_destroys(inside: Inside) -> None:
    def body(place: Any) -> None:
        Path("/proc/sys/kernel/shm_rmid_forced").write_text("1")
        there = get(NR.shmget, KEY, SIZE)
        Ipc.dump(place.dump())
        assert [one.shmid for one in sysvipc.shm()] == [there]

    inside(body)


def test_limits_are_raised_for_what_is_above_them() -> None:
    wanted = pb.ipc_var_entry(
        sem_ctls=[1, 1, 1, 9], shm_ctlmax=10, shm_ctlall=100, shm_ctlmni=1, shm_rmid_forced=1,
        msg_ctlmax=5, msg_ctlmnb=5, msg_ctlmni=5, shm_next_id=8,
    )  # fmt: skip
    room = ipcvar.roomy(wanted, segments=[4097, 1], queues=[50], messages=[4, 6], sets=[2, 3])
    assert list(room.sem_ctls) == [3, 5, 1, 9]
    assert (room.shm_ctlmax, room.shm_ctlall, room.shm_ctlmni) == (4097, 100, 2)
    assert (room.msg_ctlmax, room.msg_ctlmnb, room.msg_ctlmni) == (6, 50, 5)
    assert not room.HasField("shm_rmid_forced") and not room.HasField("shm_next_id")


@pytest.mark.parametrize("key", [0, KEY])
def test_a_taken_place_is_told(inside: Inside, key: int) -> None:
    def body(place: Any) -> None:
        there = get(NR.msgget, key)
        desc = pb.ipc_desc_entry(key=key, mode=0o600, id=there)
        with pytest.raises(KernelError, match="File exists"):
            make("msg", desc, place.restore())
        assert [queue.msqid for queue in sysvipc.msg()] == [there]

    inside(body)


def test_ipc_is_a_kind() -> None:
    assert issubclass(Ipc, NamespaceKind)
    assert Ipc.name == "ipc"
