# SPDX-License-Identifier: Apache-2.0
"""Signal actions of a process: what rt_sigaction(2) tells of each signal but KILL and STOP."""

import signal
from collections.abc import Callable, Iterable
from struct import Struct

from ckpt.errors import ImageError
from ckpt.image import pb
from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import check, ffi, syscall
from ckpt.kernel.remote import Batch

SIGNALS = [n for n in range(1, 65) if n not in (signal.SIGKILL, signal.SIGSTOP)]
_SIGACTION = Struct("<QQQQ")  # the kernel's: handler, flags, restorer, mask


def ask(batch: Batch) -> Callable[[], list[pb.sa_entry]]:
    """Add the calls, and return what turns their results into records, in SIGNALS' order."""
    room = batch.room(_SIGACTION.size * len(SIGNALS))
    for i, signo in enumerate(SIGNALS):
        batch.call(NR.rt_sigaction, signo, 0, room.address + i * _SIGACTION.size, 8, must=True)
    return lambda: [_entry(*fields) for fields in _SIGACTION.iter_unpack(room.bytes)]


def _entry(handler: int, flags: int, restorer: int, mask: int) -> pb.sa_entry:
    return pb.sa_entry(
        sigaction=handler, flags=flags, restorer=restorer, mask=mask, compat_sigaction=False
    )


def be_told_of_children(batch: Batch) -> None:
    """Add the call with which children that end stay to be waited for, until all are restored."""
    default = batch.room(_SIGACTION.size)
    batch.call(NR.rt_sigaction, signal.SIGCHLD, default, 0, 8, must=True)


def own() -> list[bytes]:
    """Return our own actions, which those have that we fork."""
    action = ffi.new("uint8_t[]", _SIGACTION.size)
    found = []
    for signo in SIGNALS:
        check(
            syscall(NR.rt_sigaction, signo, 0, int(ffi.cast("uintptr_t", action)), 8), "sigaction"
        )
        found.append(bytes(ffi.buffer(action)))
    return found


def restore(entries: Iterable[pb.sa_entry], now: list[bytes], batch: Batch) -> None:
    """Add the calls that set all actions that are not what they are now, but for SIGCHLD's."""
    wanted = [_packed(entry) for entry in entries]
    if len(wanted) != len(SIGNALS):
        raise ImageError(f"core: expected {len(SIGNALS)} signal actions, found {len(wanted)}")
    for signo, action, before in zip(SIGNALS, wanted, now, strict=True):
        if action != before or signo == signal.SIGCHLD:
            batch.call(NR.rt_sigaction, signo, batch.data(action), 0, 8, must=True)


def _packed(entry: pb.sa_entry) -> bytes:
    return _SIGACTION.pack(entry.sigaction, entry.flags, entry.restorer, entry.mask)
