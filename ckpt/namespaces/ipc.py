# SPDX-License-Identifier: Apache-2.0
"""An IPC namespace (ipc_namespaces(7)): System V objects with ids and contents, and sysctls.

What the kernel does not show is lost: what SEM_UNDO would take back, times and pids of last use.
So are POSIX message queues, whose names nobody has mounted.
"""

from collections.abc import Iterator
from struct import Struct
from typing import Any, NamedTuple

from ckpt.image import pb
from ckpt.kernel import sysvipc
from ckpt.kernel.sysvipc import Msg
from ckpt.namespaces import ipcdesc, ipcshm, ipcvar
from ckpt.namespaces.kind import Dump, NamespaceKind, Restore, records

_VAR, _MSG, _SEM = "ipcns-var", "ipcns-msg", "ipcns-sem"
_U32 = Struct("<I")


class Ipc(NamespaceKind):
    """An IPC namespace of a task's own."""

    name = "ipc"
    flag = 0x0800_0000

    @classmethod
    def dump(cls, out: Dump) -> None:
        """Write sysctls and objects; queues keep their messages."""
        out.image.write(_VAR, ipcvar.dump(), id=out.id)
        ipcshm.dump(out)
        with out.image.writer(_MSG, out.id) as writer:
            for queue in sysvipc.msg():
                writer.append(_queue(queue), b"".join(_messages(queue)))
        with out.image.writer(_SEM, out.id) as writer:
            for one in sysvipc.sem():
                entry = pb.ipc_sem_entry(desc=ipcdesc.desc(one, one.semid), nsems=one.nsems)
                writer.append(entry, _padded(sysvipc.values(one.semid, one.nsems)))

    @classmethod
    def restore(cls, make: Restore) -> None:
        """Make objects and set sysctls."""
        wanted = make.image.read(_VAR, make.id)
        segments = ipcshm.read(make)
        queues = [_Queue.read(entry, tail) for entry, tail in records(_MSG, make)]
        sets = list(records(_SEM, make))
        room = ipcvar.roomy(
            wanted,
            segments=[entry.size for entry in segments],
            queues=[queue.room for queue in queues],
            messages=[len(data) for queue in queues for _, data in queue.messages],
            sets=[entry.nsems for entry, _ in sets],
        )
        ipcvar.restore(room)
        ipcshm.restore(segments, make)
        for queue in queues:
            queue.make(make)
        for entry, values in sets:
            _make_set(entry, values, make)
        ipcvar.restore(wanted)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


# --- messages


def _queue(queue: Msg) -> pb.ipc_msg_entry:
    return pb.ipc_msg_entry(
        desc=ipcdesc.desc(queue, queue.msqid),
        qbytes=sysvipc.qbytes(queue.msqid),
        qnum=queue.qnum,
    )


def _messages(queue: Msg) -> Iterator[bytes]:
    """Yield each message as it is in the image: a sized ipc_msg, and its bytes padded to 8."""
    for index in range(queue.qnum):
        mtype, data = sysvipc.peek(queue.msqid, index, queue.cbytes)
        head = pb.ipc_msg(mtype=mtype, msize=len(data)).SerializeToString()
        yield _U32.pack(len(head)) + head + _padded(data)


class _Queue(NamedTuple):
    """A queue of the image: its record, and the types and bytes of its messages."""

    entry: Any
    messages: list[tuple[int, bytes]]

    @classmethod
    def read(cls, entry: Any, tail: bytes) -> "_Queue":
        """Take the messages from the raw tail, whose lengths have been checked when it was read."""
        messages, at = [], 0
        for _ in range(entry.qnum):
            size = _U32.unpack_from(tail, at)[0]
            at += _U32.size
            head = pb.ipc_msg.FromString(tail[at : at + size])
            at += size
            messages.append((head.mtype, tail[at : at + head.msize]))
            at += -(-head.msize // 8) * 8
        return cls(entry, messages)

    @property
    def room(self) -> int:
        """The bytes, or empty messages, that it must hold: its limit may have been lowered."""
        size = sum(len(data) for _, data in self.messages)
        limit: int = self.entry.qbytes
        return max(limit, size, len(self.messages))

    def make(self, make: Restore) -> None:
        """Make it and fill it."""
        desc = self.entry.desc
        ipcdesc.make("msg", desc, make)
        sysvipc.own("msg", desc.id, desc.uid, desc.gid, desc.mode, self.room)
        for mtype, data in self.messages:
            sysvipc.send(desc.id, mtype, data)
        sysvipc.own("msg", desc.id, desc.uid, desc.gid, desc.mode, self.entry.qbytes)


# --- semaphores


def _make_set(entry: Any, values: bytes, make: Restore) -> None:
    desc = entry.desc
    ipcdesc.make("sem", desc, make, entry.nsems)
    sysvipc.own("sem", desc.id, desc.uid, desc.gid, desc.mode)
    sysvipc.set_values(desc.id, values)
