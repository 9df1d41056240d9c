# SPDX-License-Identifier: Apache-2.0
"""One thread: the thread_core of core-TID.img and what goes with it, and back."""

import os
from collections.abc import Callable
from typing import NamedTuple

from ckpt.image import pb
from ckpt.image.text import get_text, set_text
from ckpt.kernel import procfs
from ckpt.kernel.arch import NR
from ckpt.kernel.ptrace import Rseq
from ckpt.kernel.remote import Batch
from ckpt.kernel.threads import State
from ckpt.task import creds, sched, signals

_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG, _PR_SET_NAME, _PR_GET_TID_ADDRESS = 1, 2, 15, 40
_RSEQ_UNREGISTER = 1


class Raw(NamedTuple):
    """What is taken of a stopped thread without its help, as the kernel gives it."""

    status: bytes
    state: State
    pending: list[bytes]


Answer = Callable[[Raw], tuple[pb.thread_core_entry, int]]


def ask(batch: Batch, *, keyrings: bool) -> Answer:
    """Add the calls a thread has to make about itself; whether it has keyrings only if it may.

    Returns what makes its record, and its clear_tid address, once the batch has run; that raises
    Unsupported for keyrings.
    """
    stack = signals.ask_altstack(batch)
    clear_tid, pdeath = batch.room(8), batch.room(4)
    batch.call(NR.prctl, _PR_GET_TID_ADDRESS, clear_tid)
    batch.call(NR.prctl, _PR_GET_PDEATHSIG, pdeath)
    securebits, slack = creds.ask(batch), sched.ask(batch)
    check_keyrings = creds.ask_keyrings(batch) if keyrings else None

    def answer(raw: Raw) -> tuple[pb.thread_core_entry, int]:
        status = procfs.parse_status(raw.status)
        if check_keyrings:
            check_keyrings(status)
        entry = _outside(raw, status.name)
        entry.sas.CopyFrom(signals.altstack(stack))
        entry.pdeath_sig = int.from_bytes(pdeath.bytes, "little")
        if not entry.pdeath_sig:
            entry.ClearField("pdeath_sig")
        entry.creds.CopyFrom(creds.dump(status, securebits.ret))
        sched.dump(raw.state, status.cpus_allowed, slack.ret, entry)
        return entry, int.from_bytes(clear_tid.bytes, "little")

    return answer


def _outside(raw: Raw, name: str) -> pb.thread_core_entry:
    (head, length), rseq = raw.state.robust_list, raw.state.rseq
    entry = pb.thread_core_entry(futex_rla=head, futex_rla_len=length, cg_set=1)
    set_text(entry, "comm", name)
    entry.signals_p.CopyFrom(signals.queue(raw.pending))
    if rseq:
        entry.rseq_entry.CopyFrom(
            pb.rseq_entry(
                rseq_abi_pointer=rseq.pointer,
                rseq_abi_size=rseq.size,
                signature=rseq.signature,
            )
        )
    return entry


# --- restore


def forget_rseq(rseq: Rseq, batch: Batch) -> None:
    """Add the call that takes back an rseq area, before its memory goes."""
    batch.call(NR.rseq, rseq.pointer, rseq.size, _RSEQ_UNREGISTER, rseq.signature, must=True)


def rename(comm: str, batch: Batch) -> None:
    """Add the call that names a thread."""
    name = batch.data(os.fsencode(comm)[:15] + b"\0")
    batch.call(NR.prctl, _PR_SET_NAME, name, must=True)


def restore(entry: pb.thread_core_entry, clear_tid: int, ours: procfs.Status, batch: Batch) -> None:
    """Add the calls that make a thread what its record says; credentials go last.

    ours are the credentials it was born with.
    """
    rename(get_text(entry, "comm"), batch)
    batch.call(NR.set_tid_address, clear_tid)
    if entry.futex_rla_len:
        batch.call(NR.set_robust_list, entry.futex_rla, entry.futex_rla_len, must=True)
    signals.restore_altstack(entry.sas, batch)
    rseq = entry.rseq_entry
    if rseq.rseq_abi_pointer:  # CRIU has the entry of a thread without one as well
        batch.call(NR.rseq, rseq.rseq_abi_pointer, rseq.rseq_abi_size, 0, rseq.signature, must=True)
    sched.restore_slack(entry, batch)
    creds.restore(entry.creds, ours, batch)
    if entry.pdeath_sig:
        batch.call(NR.prctl, _PR_SET_PDEATHSIG, entry.pdeath_sig, must=True)
    if entry.creds.no_new_privs:
        batch.call(NR.prctl, creds.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, must=True)
