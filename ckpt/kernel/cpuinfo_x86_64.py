# SPDX-License-Identifier: Apache-2.0
"""What this CPU offers, in the words that cpuinfo.img has: the kernel's, filled by cpuid.

Which words and which bits of them matter to a process is said here; what comes of it is not.
"""

from typing import NamedTuple

from ckpt.kernel.ffi import ffi, lib

_EAX, _EBX, _ECX, _EDX = range(4)
_LINUX = -1  # words that the kernel makes up
_SIGNS = {"rep_good": 1 << 16, "nopl": 1 << 20, "cpuid": 1 << 25}  # those of word 3 that are kept
_SSE = 2

_WORDS = (  # leaf, subleaf, register, and the bits that are instructions a process may use
    (0x1, 0, _EDX, 0x0788_8111),
    (0x8000_0001, 0, _EDX, 0xE840_0800),
    (0x8086_0001, 0, _EDX, 0),
    (_LINUX, 3, 0, 0),
    (0x1, 0, _ECX, 0x7ED8_3203),
    (0xC000_0001, 0, _EDX, 0),
    (0x8000_0001, 0, _ECX, 0x2021_89E1),
    (_LINUX, 7, 0, 0),
    (_LINUX, 8, 0, 0),
    (0x7, 0, _EBX, 0xFDEF_0B39),
    (0xD, 1, _EAX, 0x0000_0007),
    (0x7, 0, _ECX, 0x1A40_5F6A),
    (0xF, 1, _EDX, 0),
    (0x8000_0008, 0, _EBX, 0x0000_0011),
    (0x6, 0, _EAX, 0),
    (0x8000_000A, 0, _EDX, 0),
    (0xF, 0, _EDX, 0),
    (0x8000_0007, 0, _EBX, 0),
    (0x7, 0, _EDX, 0x03C1_411C),
)
VERSION = 2
"""`capability_ver`: that there are as many words."""
INSTRUCTIONS = tuple(mask for *_, mask in _WORDS)
"""Of each word, the bits that a process may rely on."""
FEATURES = 0x2FD
"""The parts of an XSAVE area that count; SSE is not among them, and everywhere."""


class Cpu(NamedTuple):
    """One CPU, as cpuid tells it; sizes of the XSAVE area in bytes."""

    maker: str
    family: int
    model: int
    stepping: int
    words: tuple[int, ...]
    name: str
    features: int
    size: int
    largest_size: int


def _cpuid(leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
    """Ask; a leaf that there is not has nothing, and not what the highest one has."""
    regs = ffi.new("uint32_t[4]")
    lib.core_cpuid(leaf & 0xFFFF_0000, 0, regs)
    if leaf > regs[_EAX]:
        return 0, 0, 0, 0
    lib.core_cpuid(leaf, subleaf, regs)
    return regs[_EAX], regs[_EBX], regs[_ECX], regs[_EDX]


def _bytes(*regs: int) -> bytes:
    return b"".join(reg.to_bytes(4, "little") for reg in regs)


def cpu() -> Cpu:
    """Return what this CPU is."""
    _, ebx, ecx, edx = _cpuid(0)
    signature = _cpuid(1)[_EAX]
    family, model = signature >> 8 & 15, signature >> 4 & 15
    if family in (6, 15):
        model |= signature >> 12 & 0xF0
    if family == 15:
        family += signature >> 20 & 0xFF
    name = b"".join(_bytes(*_cpuid(leaf)) for leaf in range(0x8000_0002, 0x8000_0005))
    low, size, largest, high = _cpuid(0xD)
    return Cpu(
        maker=_bytes(ebx, edx, ecx).decode("ascii", "replace"),
        family=family,
        model=model,
        stepping=signature & 15,
        words=tuple(_word(leaf, subleaf, reg) for leaf, subleaf, reg, _ in _WORDS),
        name=name.decode("ascii", "replace").strip("\0 "),
        features=(high << 32 | low) & FEATURES,
        size=size,
        largest_size=largest,
    )


def _word(leaf: int, subleaf: int, reg: int) -> int:
    if leaf == _LINUX:
        return _signs() if subleaf == 3 else 0
    return _cpuid(leaf, subleaf)[reg]


def _signs() -> int:
    """Return what the kernel has found out by other means than cpuid."""
    with open("/proc/cpuinfo") as file:
        flags = next((line.split() for line in file if line.startswith("flags")), [])
    return sum(bit for name, bit in _SIGNS.items() if name in flags)
