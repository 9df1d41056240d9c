# SPDX-License-Identifier: Apache-2.0
"""Filters answer as the kernel has them answer; the judge is the kernel."""

import os
import random
from struct import pack

import pytest

from ckpt.kernel import seccomp
from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import ffi, syscall
from ckpt.kernel.seccomp import ALLOW, ERRNO, KILL, Filter, Pattern

PROGRAMS = 60
GONE = 134  # uselib(2): ENOSYS by itself
SEED = 7
LOAD, LOAD_X, STORE, STORE_X, RETURN, RETURN_A = 0x20, 0x61, 0x02, 0x03, 0x06, 0x16
ALU = [
    kind | source for kind in (0x04, 0x14, 0x24, 0x44, 0x54, 0x64, 0x74, 0xA4) for source in (0, 8)
]
JUMPS = [kind | by for kind in (0x15, 0x25, 0x35, 0x45) for by in (0, 8)]


def made_up(rng: random.Random) -> bytes:
    """A program of many instructions that ends in one of some errors."""
    code = [(LOAD, 0, 0, 16), (STORE, 0, 0, 0), (LOAD_X, 0, 0, 0)]
    length = rng.randrange(4, 24)
    for at in range(length):
        left = length - at
        k = rng.choice([0, 1, 2, 7, 0x80, rng.getrandbits(32)])
        code.append(
            rng.choice(
                [
                    (LOAD, 0, 0, rng.choice([0, 4, *range(16, 64, 4)])),  # not where it is called
                    (rng.choice([STORE, STORE_X]), 0, 0, 0),
                    (rng.choice([0x60, LOAD_X]), 0, 0, 0),
                    (rng.choice([0x00, 0x01, 0x80, 0x81]), 0, 0, k),
                    (rng.choice([0x07, 0x87, 0x84]), 0, 0, 0),
                    (rng.choice(ALU), 0, 0, k % 31),
                    (rng.choice(JUMPS), rng.randrange(left), rng.randrange(left), k),
                ]
            )
        )
    code += [(0x54, 0, 0, 0xFF), (0x44, 0, 0, ERRNO | 0x100), (RETURN_A, 0, 0, 0)]
    return b"".join(pack("<HBBI", *one) for one in code)


def by_the_kernel(program: bytes, args: list[int]) -> int:
    """The error that a call is answered with, in a child that has the filter."""
    child = os.fork()
    if not child:
        code = 255
        try:
            buffer = ffi.from_buffer(program)
            fprog = ffi.new("uint64_t[2]", [len(program) // 8, int(ffi.cast("uintptr_t", buffer))])
            syscall(NR.prctl, 38, 1, 0, 0, 0)
            ret = syscall(NR.seccomp, 1, 0, int(ffi.cast("uintptr_t", fprog)))
            code = 254 if ret else -syscall(GONE, *args) & 0xFF
        finally:
            syscall(NR.exit_group, code)
            os.kill(os.getpid(), 9)
    status = os.waitpid(child, 0)[1]
    return -1 if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def only_refusing(program: bytes) -> bytes:
    """The same, but whoever calls anything else is let through."""
    head = [(LOAD, 0, 0, 0), (0x15, 1, 0, GONE), (RETURN, 0, 0, ALLOW)]
    return b"".join(pack("<HBBI", *one) for one in head) + program


def test_random_programs_return_what_the_kernel_says() -> None:
    rng = random.Random(SEED)
    seen = set()
    for _ in range(PROGRAMS):
        program = only_refusing(made_up(rng))
        args = [rng.choice([0, 1, 7, rng.getrandbits(64)]) for _ in range(6)]
        error = by_the_kernel(program, args)
        if error == 254:  # it takes offence at a shift
            continue
        halves = [arg >> shift & 0xFFFF_FFFF for arg in args for shift in (0, 32)]
        data = [GONE, 0xC000_003E, None, None, *halves]
        seen.add(error)
        assert error in {(value or 0) & 0xFF for value in seccomp._run(program, data)}
        unknown = [GONE, 0xC000_003E, *[None] * 14]
        values = seccomp._run(program, unknown)
        assert None in values or error in {(value or 0) & 0xFF for value in values}
    assert len(seen) > PROGRAMS // 6


def program(*code: tuple[int, int, int, int]) -> Filter:
    return Filter(b"".join(pack("<HBBI", *one) for one in code))


ONLY_READ = program((LOAD, 0, 0, 0), (0x15, 0, 1, 0), (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, 0))
NO_TTY = program(  # ioctl(2) with one request is an error, all else is not
    (LOAD, 0, 0, 0), (0x15, 0, 3, 16), (LOAD, 0, 0, 24), (0x15, 0, 1, 0x5412),
    (RETURN, 0, 0, ERRNO | 1), (RETURN, 0, 0, ALLOW),
)  # fmt: skip
UNKNOWN = program((RETURN, 0, 0, 0x1234_0000))


@pytest.mark.parametrize(
    ("chain", "call", "expected"),
    [
        ((), Pattern(1), {ALLOW}),
        ((ONLY_READ,), Pattern(0), {ALLOW}),
        ((ONLY_READ,), Pattern(1), {0}),
        ((NO_TTY,), Pattern(16, (3, 0x5412)), {ERRNO}),
        ((NO_TTY,), Pattern(16, (3, None)), {ERRNO, ALLOW}),
        ((NO_TTY, ONLY_READ), Pattern(16), {0}),
        ((NO_TTY, ONLY_READ), Pattern(0), {ALLOW}),
        ((UNKNOWN, NO_TTY), Pattern(0), {KILL}),
        (seccomp.AS_STRICT, Pattern(15), {ALLOW}),
        (seccomp.AS_STRICT, Pattern(34), {0}),
    ],
)
def test_the_strictest_answer_counts(chain, call, expected) -> None:
    assert seccomp.answers(chain, call) == expected


def test_what_does_harm_is_named() -> None:
    calls = Pattern(0), Pattern(16, (0, 0x5412))
    assert seccomp.harmful((NO_TTY,), calls) is None
    assert seccomp.harmful((ONLY_READ,), calls) == calls[1]
