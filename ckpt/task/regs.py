# SPDX-License-Identifier: Apache-2.0
"""Registers to core-TID.img and back, for the architecture of this machine.

A port adds `regs_ARCH.py` with these names, and its line here.
"""

from ckpt.task.regs_x86_64 import (
    MACHINE,
    clear_tid,
    dump,
    registers,
    restore_tls,
    xstate,
)

__all__ = [
    "MACHINE",
    "clear_tid",
    "dump",
    "registers",
    "restore_tls",
    "xstate",
]
