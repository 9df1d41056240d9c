# SPDX-License-Identifier: Apache-2.0
"""seccomp(2): the filters of a stopped thread, and what they say to a system call.

Facts that bite:
- Filters are never taken away again, and another is only ever added at the end. So what was read
  of a thread is true as long as /proc/TID/status counts as many.
- PTRACE_O_SUSPEND_SECCOMP lets a tracee make any call, its own code as well, until it is let go:
  by our death, too. It takes CAP_SYS_ADMIN, and a tracer without filters.
- The strictest answer of all filters counts; of equal ones the newest filter's (its errno).
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import product
from struct import Struct
from typing import NamedTuple

from ckpt.kernel import procfs
from ckpt.kernel.arch import AUDIT_ARCH
from ckpt.kernel.ptrace import Tracee

DISABLED, STRICT, FILTER = range(3)
"""The modes of /proc/TID/status."""

TRAP, ERRNO, USER_NOTIF, TRACE, LOG, ALLOW = (
    0x0003_0000, 0x0005_0000, 0x7FC0_0000, 0x7FF0_0000, 0x7FFC_0000, 0x7FFF_0000,
)  # fmt: skip
KILL = -(1 << 31)
"""The strictest; so is what a kernel does not know."""
_HARMLESS = (ERRNO, TRACE, LOG, ALLOW)  # with nobody to trace it, TRACE is ENOSYS
_ACTIONS = {0, TRAP, USER_NOTIF, *_HARMLESS}

_INSTRUCTION = Struct("<HBBI")
SIZE = _INSTRUCTION.size
"""Bytes of an instruction."""
_WORD = 0xFFFF_FFFF
_STATUS = re.compile(rb"^Seccomp:\t(\d)\n(?:Seccomp_filters:\t(\d+)\n)?", re.MULTILINE)
_STRICT_PROGRAM = b"".join(
    _INSTRUCTION.pack(*one)
    for one in (
        *((0x20, 0, 0, 0), (0x15, 4, 0, 0), (0x15, 3, 0, 1)),  # read, write
        *((0x15, 2, 0, 60), (0x15, 1, 0, 15)),  # exit, rt_sigreturn
        *((0x06, 0, 0, 0), (0x06, 0, 0, ALLOW)),
    )
)


class Filter(NamedTuple):
    """A filter: its classic BPF program, and the SECCOMP_FILTER_FLAG_* it was installed with."""

    program: bytes
    flags: int = 0


Chain = tuple[Filter, ...]
"""The filters of a thread, the oldest first."""
AS_STRICT: Chain = (Filter(_STRICT_PROGRAM, flags=-1),)
"""What strict mode would be as filters; there are no such flags."""


class Pattern(NamedTuple):
    """A system call and its arguments; None where any value may stand."""

    nr: int
    args: tuple[int | None, ...] = ()


def of_status(status: bytes) -> tuple[int, int]:
    """Return the mode and the number of filters that a /proc/TID/status tells of."""
    if b"\nSeccomp:\t0\n" in status:
        return DISABLED, 0  # soon, as a freeze asks
    match = _STATUS.search(status)
    return (int(match[1]), int(match[2] or 0)) if match else (DISABLED, 0)


def suspend(tracee: Tracee) -> None:
    """Let a stopped thread make calls whatever its filters say, if it has any."""
    if of_status(procfs.read(tracee.tid, "status"))[0]:
        tracee.suspend_seccomp()


def read(tracee: Tracee) -> Chain:
    """Read the filters of a stopped thread. Raises KernelError (EACCES: we have no right to)."""
    found: list[Filter] = []
    while (program := tracee.seccomp_filter(len(found))) is not None:
        found.append(Filter(program, tracee.seccomp_flags(len(found))))
    return tuple(found)


# --- what filters say


@lru_cache(maxsize=4096)
def harmful(chain: Chain, calls: tuple[Pattern, ...]) -> Pattern | None:
    """Return the first of the calls that may do more than be made, or fail with an error."""
    return next((call for call in calls if not answers(chain, call) <= {*_HARMLESS}), None)


def answers(chain: Chain, call: Pattern) -> set[int]:
    """Return which actions the filters may answer a call with."""
    args = [*call.args, *[None] * 6][:6]
    halves = [None if arg is None else arg >> shift & _WORD for arg in args for shift in (0, 32)]
    data = call.nr, AUDIT_ARCH, None, None, *halves  # None: where it is called from
    each = [{_action(value) for value in _run(one.program, data)} for one in chain]
    return {min(values) for values in product(*each)} if each else {ALLOW}


def asks_others(chain: Chain) -> bool:
    """Say whether a filter leaves decisions to another process (SECCOMP_RET_USER_NOTIF)."""
    returned = {
        k & 0xFFFF_0000
        for one in chain
        for code, _, _, k in _INSTRUCTION.iter_unpack(one.program)
        if code == _RET_K
    }
    return USER_NOTIF in returned


def _action(value: int | None) -> int:
    known = value is not None and value & 0xFFFF_0000 in _ACTIONS
    return value & 0xFFFF_0000 if value is not None and known else KILL


_RET_K, _RET_A = 0x06, 0x16
_LD, _LDX, _ST, _STX, _ALU, _JMP, _MISC = 0, 1, 2, 3, 4, 5, 7
_ABS, _MEM, _LEN = 0x20, 0x60, 0x80
_DATA_SIZE, _MOST_STATES = 64, 1 << 15
_State = tuple[int, int | None, int | None, tuple[tuple[int, int | None], ...]]  # at, A, X, memory


def _run(program: bytes, data: Sequence[int | None]) -> set[int | None]:
    """Return all values that a program may return for a struct seccomp_data of these words.

    Both ways are gone where an unknown word decides; a program has no loops, but those ways may be
    many: if too many, anything may be returned.
    """
    code = [*_INSTRUCTION.iter_unpack(program)]
    returned: set[int | None] = set()
    ahead: list[_State] = [(0, 0, 0, ())]
    seen = set(ahead)
    while ahead:
        at, a, x, memory = ahead.pop()
        operation, _, _, k = code[at] if at < len(code) else (_RET_K, 0, 0, 0)
        if operation in (_RET_K, _RET_A):
            returned.add(k if operation == _RET_K else a)
            continue
        if len(seen) > _MOST_STATES:
            return {None}
        for state in _step(code[at], (at, a, x, memory), data):
            if state not in seen:
                seen.add(state)
                ahead.append(state)
    return returned


def _step(
    instruction: tuple[int, int, int, int], state: _State, data: Sequence[int | None]
) -> Iterable[_State]:
    operation, yes, no, k = instruction
    at, a, x, memory = state
    kind, value = operation & 7, x if operation & 8 else k
    if kind == _JMP:
        return [(at + 1 + by, a, x, memory) for by in _jumps(operation & 0xF0, a, value, yes, no)]
    if kind in (_LD, _LDX):
        loaded = _load(operation & 0xE0, k, memory, data)
        a, x = (loaded, x) if kind == _LD else (a, loaded)
    elif kind in (_ST, _STX):
        memory = tuple(sorted({**dict(memory), k: a if kind == _ST else x}.items()))
    elif kind == _ALU:
        a = _calculated(operation & 0xF0, a, value)
    elif operation & 0x80:  # TXA
        a = x
    else:  # TAX
        x = a
    return [(at + 1, a, x, memory)]


def _load(
    mode: int, k: int, memory: tuple[tuple[int, int | None], ...], data: Sequence[int | None]
) -> int | None:
    if mode == _ABS:
        return data[k // 4 % len(data)]
    if mode == _LEN:
        return _DATA_SIZE
    return dict(memory).get(k, 0) if mode == _MEM else k


def _jumps(kind: int, a: int | None, value: int | None, yes: int, no: int) -> Iterable[int]:
    """Return by how much an instruction may jump: JA, JEQ, JGT, JGE, JSET."""
    if kind == 0:
        return [value or 0]
    if a is None or value is None:
        return {yes, no}
    taken = {0x10: a == value, 0x20: a > value, 0x30: a >= value, 0x40: bool(a & value)}
    return [yes if taken.get(kind) else no]


def _calculated(kind: int, a: int | None, value: int | None) -> int | None:
    if kind == 0x50 and 0 in (a, value):  # AND
        return 0
    if a is None or (value is None and kind != 0x80):
        return None
    b = value or 0
    results = {
        0x00: a + b, 0x10: a - b, 0x20: a * b, 0x30: a // b if b else 0, 0x40: a | b,
        0x50: a & b, 0x60: a << (b & 31), 0x70: a >> (b & 31), 0x80: -a, 0xA0: a ^ b,
    }  # fmt: skip
    return results[kind] & _WORD if kind in results else None
