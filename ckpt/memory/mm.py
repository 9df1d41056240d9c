# SPDX-License-Identifier: Apache-2.0
"""The address space itself: where code, heap and arguments are, auxv, exe (PR_SET_MM_MAP)."""

from collections.abc import Callable
from struct import Struct

from ckpt.errors import ImageError
from ckpt.image import pb
from ckpt.kernel.arch import NR
from ckpt.kernel.procfs import Stat
from ckpt.kernel.remote import Batch

PR_GET_DUMPABLE, PR_SET_DUMPABLE = 3, 4
_PR_SET_MM, _PR_SET_MM_MAP = 35, 14
_PR_SET_THP_DISABLE, _PR_GET_THP_DISABLE = 41, 42
_MM_MAP = Struct("<12QII")  # struct prctl_mm_map
_FIELDS = (
    "start_code", "end_code", "start_data", "end_data", "start_brk", "brk",
    "start_stack", "arg_start", "arg_end", "env_start", "env_end",
)  # fmt: skip
_AUXV_MAX = 64
_UNCHANGED = 0xFFFFFFFF


def ask(batch: Batch) -> Callable[[Stat, list[int]], pb.mm_entry]:
    """Add the calls for what /proc does not show (the exact brk).

    Returns what makes the record from stat and auxv; the mappings and exe_file_id are to be added.
    """
    brk = batch.call(NR.brk, 0)
    dumpable = batch.call(NR.prctl, PR_GET_DUMPABLE)
    no_thp = batch.call(NR.prctl, _PR_GET_THP_DISABLE, 0, 0, 0, 0)

    def answer(stat: Stat, auxv: list[int]) -> pb.mm_entry:
        entry = pb.mm_entry(mm_brk=brk.ret, mm_saved_auxv=_used(auxv))
        for field in _FIELDS:
            if field != "brk":
                setattr(entry, f"mm_{field}", getattr(stat, field))
        entry.dumpable = dumpable.ret
        entry.thp_disabled = no_thp.ret == 1
        return entry

    return answer


def _used(auxv: list[int]) -> list[int]:
    """Cut the kernel's array at AT_NULL, which it adds by itself: CRIU has room for 44 words."""
    end = next((at for at in range(0, len(auxv), 2) if auxv[at] == 0), len(auxv))
    return auxv[:end]


def restore(
    entry: pb.mm_entry, exe: int, batch: Batch, inherited: pb.mm_entry | None = None
) -> None:
    """Add the calls that set the limits, auxv and exe (a descriptor in the task).

    The kernel takes a new exe only while no mapping of the old one is left. inherited is the
    record of the task whose fork it is, if that is not ourselves.
    """
    if len(entry.mm_saved_auxv) > _AUXV_MAX:
        raise ImageError(f"mm: an auxv of {len(entry.mm_saved_auxv)} words")
    auxv = b"".join(word.to_bytes(8, "little") for word in entry.mm_saved_auxv)
    if inherited and inherited.exe_file_id == entry.exe_file_id:
        exe = _UNCHANGED
    limits = [getattr(entry, f"mm_{field}") for field in _FIELDS]
    data = batch.data(_MM_MAP.pack(*limits, batch.data(auxv).address, len(auxv), exe))
    batch.call(NR.prctl, _PR_SET_MM, _PR_SET_MM_MAP, data, _MM_MAP.size, 0, must=True)
    if entry.thp_disabled or (inherited and inherited.thp_disabled):
        batch.call(NR.prctl, _PR_SET_THP_DISABLE, entry.thp_disabled, 0, 0, 0, must=True)


def restore_dumpable(entry: pb.mm_entry, batch: Batch) -> None:
    """Add the call for the dumpable flag, which changing credentials clears."""
    if entry.HasField("dumpable") and entry.dumpable in (0, 1):
        batch.call(NR.prctl, PR_SET_DUMPABLE, entry.dumpable, must=True)
