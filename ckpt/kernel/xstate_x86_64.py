# SPDX-License-Identifier: Apache-2.0
"""Where the parts of an x86 XSAVE area are: what cpuid leaf 0xD says of this machine's CPU.

Only the first 576 bytes are the same everywhere; the place of PKRU, for one, differs between
makers. The layout is the one without compaction, which ptrace gives whatever the kernel uses.
"""

from functools import cache
from typing import NamedTuple

from ckpt.kernel.ffi import ffi, lib

LEAF = 0xD


class Component(NamedTuple):
    """Offset and size in bytes; size 0 if the CPU has no such component."""

    offset: int
    size: int


@cache
def component(number: int) -> Component:
    """Return the place of state component `number` (2 AVX, 5 opmask, 9 PKRU ...)."""
    regs = ffi.new("uint32_t[4]")
    lib.core_cpuid(LEAF, number, regs)
    return Component(regs[1], regs[0])
