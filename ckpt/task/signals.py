# SPDX-License-Identifier: Apache-2.0
"""Pending signals with their siginfo, of a thread and of its process; alternate signal stacks."""

from collections.abc import Iterable
from struct import Struct

from ckpt.errors import ImageError
from ckpt.image import pb
from ckpt.kernel.arch import NR
from ckpt.kernel.remote import Batch, Buffer

_SIGINFO = 128
_STACK = Struct("<QIxxxxQ")  # stack_t: sp, flags, size
_SS_DISABLE = 2


def queue(pending: list[bytes]) -> pb.signal_queue_entry:
    """Return the record of pending signals, given their siginfos in their order."""
    return pb.signal_queue_entry(signals=[pb.siginfo_entry(siginfo=info) for info in pending])


def restore(record: pb.signal_queue_entry, tgid: int, tid: int | None, batch: Batch) -> None:
    """Add the calls that make signals pending: for thread tid, or for the process if None.

    The task queues them itself, as only itself may say that the kernel sent them; they are all
    blocked while it runs a batch.
    """
    for item in record.signals:
        if len(item.siginfo) != _SIGINFO:
            raise ImageError(f"core: a siginfo of {len(item.siginfo)} bytes")
        signo = int.from_bytes(item.siginfo[:4], "little")
        data = batch.data(item.siginfo)
        if tid is None:
            batch.call(NR.rt_sigqueueinfo, tgid, signo, data, must=True)
        else:
            batch.call(NR.rt_tgsigqueueinfo, tgid, tid, signo, data, must=True)


def forget(signo: int, batch: Batch) -> None:
    """Add the call that takes back a signal, which is blocked, should it be pending."""
    wanted = (1 << signo - 1).to_bytes(8, "little")
    batch.call(NR.rt_sigtimedwait, batch.data(wanted), 0, batch.room(16), 8)


def mask(queues: Iterable[pb.signal_queue_entry]) -> int:
    """Return the set of signals in any of the queues."""
    found = 0
    for queue in queues:
        for item in queue.signals:
            found |= 1 << (int.from_bytes(item.siginfo[:4], "little") - 1 & 63)
    return found


def ask_altstack(batch: Batch) -> Buffer:
    """Add the call that tells the alternate signal stack."""
    room = batch.room(_STACK.size)
    batch.call(NR.sigaltstack, 0, room, must=True)
    return room


def altstack(room: Buffer) -> pb.thread_sas_entry:
    """Return the record of the alternate signal stack."""
    sp, flags, size = _STACK.unpack(room.bytes)
    return pb.thread_sas_entry(ss_sp=sp, ss_size=size, ss_flags=flags)


def restore_altstack(entry: pb.thread_sas_entry, batch: Batch) -> None:
    """Add the call that sets the alternate signal stack.

    Whether the thread is running on it follows from its stack pointer; SS_ONSTACK is not to be
    set.
    """
    if entry.ss_flags & _SS_DISABLE:
        return
    stack = _STACK.pack(entry.ss_sp, entry.ss_flags & ~1, entry.ss_size)
    batch.call(NR.sigaltstack, batch.data(stack), 0, must=True)
