# SPDX-License-Identifier: Apache-2.0
"""Registers of an x86-64 thread: thread_info_x86 of core-TID.img, and back.

The format names the XSAVE components one by one. A thread that uses others (AMX tiles) has its
whole area kept beside them, in a field of ours that other readers pass over.
"""

from array import array
from struct import Struct
from typing import Any

from ckpt.errors import ImageError, Unsupported
from ckpt.image import pb
from ckpt.kernel.arch import CS_64, Regs
from ckpt.kernel.ptrace import Tracee
from ckpt.kernel.threads import State
from ckpt.kernel.xstate_x86_64 import component

_LEGACY = Struct("<HHHHQQII")  # cwd swd twd fop rip rdp mxcsr mxcsr_mask, then st and xmm
_HEADER = 512
# Field of user_x86_xsave_entry, number of the component, item type of the array module.
_PARTS = (
    ("ymmh_space", 2, "I"),
    ("bndreg_state", 3, "Q"),
    ("bndcsr_state", 4, "Q"),
    ("opmask_reg", 5, "Q"),
    ("zmm_upper", 6, "Q"),
    ("hi16_zmm", 7, "Q"),
    ("pkru", 9, "I"),
)
_NAMED = 0b11 | sum(1 << number for _, number, _ in _PARTS)


MACHINE = pb.core_entry.X86_64


TLS_ENTRIES = range(12, 15)
"""The GDT's slots for set_thread_area(2); the format has all three, used or not."""
_DESC = Struct("<IIII")  # struct user_desc: entry, base, limit, and bits
_DESC_BITS = (
    "seg_32bit", "contents_h", "contents_l", "read_exec_only",
    "limit_in_pages", "seg_not_present", "usable",
)  # fmt: skip
_DESC_SHIFTS = (0, 2, 1, 3, 4, 5, 6)


def dump(regs: Regs, state: State, clear_tid: int, core: pb.core_entry) -> None:
    """Fill in the registers of a thread's record; clear_tid is its set_tid_address(2).

    regs are the general ones, as they are to be saved. Raises Unsupported for a 32-bit thread.
    """
    if regs.cs != CS_64:
        raise Unsupported("32-bit code: not supported", hint="only 64-bit programs can be dumped")
    core.mtype = MACHINE
    core.thread_info.CopyFrom(
        pb.thread_info_x86(
            clear_tid_addr=clear_tid,
            gpregs=pb.user_x86_regs_entry(**regs._asdict(), mode=pb.REGS_NATIVE),
            fpregs=_fpregs(state.xstate),
            tls=[_user_desc(*desc) for desc in _DESC.iter_unpack(state.tls)],
        )
    )


def _user_desc(entry: int, base: int, limit: int, bits: int) -> pb.user_desc_t:
    flags = {
        name: bool(bits >> shift & 1) for name, shift in zip(_DESC_BITS, _DESC_SHIFTS, strict=True)
    }
    return pb.user_desc_t(entry_number=entry, base_addr=base, limit=limit, **flags)


def restore_tls(core: pb.core_entry, tracee: Tracee) -> None:
    """Set the TLS slots that were in use."""
    for desc in core.thread_info.tls:
        if desc.usable and desc.entry_number in TLS_ENTRIES:
            bits = sum(
                getattr(desc, name) << shift
                for name, shift in zip(_DESC_BITS, _DESC_SHIFTS, strict=True)
            )
            packed = _DESC.pack(desc.entry_number, desc.base_addr, desc.limit, bits)
            tracee.set_thread_area(desc.entry_number, packed)


def _fpregs(xstate: bytes) -> pb.user_x86_fpregs_entry:
    names = ("cwd", "swd", "twd", "fop", "rip", "rdp", "mxcsr", "mxcsr_mask")
    entry = pb.user_x86_fpregs_entry(**dict(zip(names, _LEGACY.unpack_from(xstate), strict=True)))
    entry.st_space.extend(array("I", xstate[32:160]))
    entry.xmm_space.extend(array("I", xstate[160:416]))
    xsave = entry.xsave
    xsave.xstate_bv = int.from_bytes(xstate[_HEADER : _HEADER + 8], "little")
    for field, number, kind in _PARTS:
        offset, size = component(number)
        if size:
            getattr(xsave, field).extend(array(kind, xstate[offset : offset + size]))
    if xsave.xstate_bv & ~_NAMED:
        xsave.area = xstate
    return entry


def registers(core: pb.core_entry) -> Regs:
    """Return the general registers of a record; raises ImageError for 32-bit ones."""
    entry = core.thread_info.gpregs
    if entry.mode != pb.REGS_NATIVE or entry.cs != CS_64:
        raise ImageError("core: the image is of a 32-bit task, which is not restored here")
    return Regs(*(getattr(entry, field) for field in Regs._fields))


def clear_tid(core: pb.core_entry) -> int:
    """Return the set_tid_address(2) of a record."""
    return core.thread_info.clear_tid_addr


def xstate(core: pb.core_entry, size: int) -> bytes:
    """Return the XSAVE area of a record, size bytes as this CPU has it.

    Raises ImageError if the record needs a component that this CPU lacks.
    """
    entry = core.thread_info.fpregs
    xsave = entry.xsave
    area = bytearray(size)
    if len(xsave.area) == size:
        area[:] = xsave.area
    _LEGACY.pack_into(
        area, 0, entry.cwd & 0xFFFF, entry.swd & 0xFFFF, entry.twd & 0xFFFF, entry.fop & 0xFFFF,
        entry.rip, entry.rdp, entry.mxcsr, entry.mxcsr_mask,
    )  # fmt: skip
    _place(area, 32, 128, "I", entry.st_space)
    _place(area, 160, 256, "I", entry.xmm_space)
    for field, number, kind in _PARTS:
        values = getattr(xsave, field)
        if xsave.xstate_bv >> number & 1:
            _place(area, *component(number), kind, values)
    area[_HEADER : _HEADER + 8] = xsave.xstate_bv.to_bytes(8, "little")
    return bytes(area)


def _place(area: bytearray, offset: int, size: int, kind: str, values: Any) -> None:
    data = array(kind, values).tobytes()
    if not size or len(data) > size or offset + size > len(area):
        raise ImageError(
            "core: the thread uses registers that this CPU does not have",
            hint="restore on a CPU with at least the features of the one it was dumped on",
        )
    area[offset : offset + len(data)] = data
