# SPDX-License-Identifier: Apache-2.0
"""The architecture of this machine: the one place that chooses among the arch_* modules."""

import os

if os.uname().machine != "x86_64":
    raise ImportError(
        f"ckpt does not know {os.uname().machine} yet; docs/porting.md says what it takes"
    )

from ckpt.kernel.arch_x86_64 import (
    AUDIT_ARCH,
    CS_64,
    ERESTART_RESTARTBLOCK,
    NO_SYSCALL,
    NR,
    NT_XSTATE,
    TASK_SIZE,
    Regs,
    again,
    call_of,
    find_gadget,
    find_hold,
    hold,
    home,
    home_of,
    is_held,
)

__all__ = [
    "AUDIT_ARCH",
    "CS_64",
    "ERESTART_RESTARTBLOCK",
    "NO_SYSCALL",
    "NR",
    "NT_XSTATE",
    "TASK_SIZE",
    "Regs",
    "again",
    "call_of",
    "find_gadget",
    "find_hold",
    "hold",
    "home",
    "home_of",
    "is_held",
]
