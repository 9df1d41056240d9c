# SPDX-License-Identifier: Apache-2.0
"""kcmp(2): are these two the same kernel object? Its answer orders them, too."""

from enum import IntEnum

from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import check, ffi, lib, syscall


class Kcmp(IntEnum):
    """KCMP_*: what is compared."""

    FILE = 0
    VM = 1
    FILES = 2
    FS = 3
    SIGHAND = 4
    IO = 5
    SYSVSEM = 6
    EPOLL_TFD = 7


_ORDER = (0, -1, 1, 2)


def kcmp(kind: Kcmp, pid1: int, pid2: int, index1: int = 0, index2: int = 0) -> int:
    """Compare: 0 the same, -1 or 1 an order that holds while both live, 2 different, unordered."""
    ret = check(syscall(NR.kcmp, pid1, pid2, kind, index1, index2), f"kcmp {kind.name}", pid=pid1)
    return _ORDER[ret]


def is_open(pid: int, number: int) -> bool:
    """Say whether a task has a descriptor of that number."""
    return syscall(NR.kcmp, pid, pid, Kcmp.FILE, number, number) == 0


def same_files(pid: int, theirs: list[int], ours: list[int]) -> bytes:
    """Say for each pair whether a task's descriptor and ours are one open file: 1, else 0."""
    same = ffi.new("uint8_t[]", len(theirs))
    lib.core_same_files(
        pid, ffi.new("int32_t[]", theirs), ffi.new("int32_t[]", ours), len(theirs), same
    )
    return bytes(ffi.buffer(same))
