# SPDX-License-Identifier: Apache-2.0
"""Targets for bad input: tiny programs, and a look at whether one was harmed."""

import contextlib
import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from target import DEADLINE, REPO, Task, wait_until

_PAUSES = ("34", "29")  # the number of pause(2), 64 and 32 bits
_PAUSE_64 = bytes.fromhex("b822000000 0f05 ebf7")  # pause(), for ever
_PAUSE_32 = bytes.fromhex("b81d000000 cd80 ebf7")


def tiny_elf(path: Path, bits: int = 64) -> Path:
    """A program of one page that does nothing but pause(), made without a compiler."""
    code = _PAUSE_64 if bits == 64 else _PAUSE_32
    ident = b"\x7fELF" + bytes([bits // 32, 1, 1]).ljust(12, b"\0")
    at = 0x400000
    word = 8 if bits == 64 else 4
    header, segment = (64, 56) if bits == 64 else (52, 32)
    entry = at + header + segment
    size = header + segment + len(code)

    def numbers(*pairs: tuple[int, int]) -> bytes:
        return b"".join(value.to_bytes(length, "little") for value, length in pairs)

    head = ident + numbers(
        (2, 2), (62 if bits == 64 else 3, 2), (1, 4), (entry, word), (header, word), (0, word),
        (0, 4), (header, 2), (segment, 2), (1, 2), (0, 2), (0, 2), (0, 2),
    )  # fmt: skip
    rest = [(0, word), (at, word), (at, word), (size, word), (size, word)]
    if bits == 64:
        load = numbers((1, 4), (5, 4), *rest, (0x1000, word))
    else:
        load = numbers((1, 4), *rest, (5, 4), (0x1000, word))
    path.write_bytes(head + load + code)
    path.chmod(0o755)
    return path


@contextlib.contextmanager
def running(
    argv: list[str], *, session: bool = True, ready: bool = False, pass_fds: Sequence[int] = ()
) -> Iterator[Task]:
    """A process, killed and reaped at the end; without ready it is one of tiny_elf's.

    With ready it says so by closing its stdout.
    """
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if ready else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=session,
        cwd="/",
        pass_fds=pass_fds,
    )
    process.returncode = 0  # a Task reaps it, by pid: Popen must not
    task = Task(process.pid)
    try:
        if not ready:
            syscall = Path(f"/proc/{task.pid}/syscall")
            wait_until(lambda: syscall.read_text().split()[0] in _PAUSES, "pause()")
        else:
            with process.stdout as said:
                assert select.select([said], [], [], DEADLINE)[0], "not ready"
                assert not task.ended(), "it ended before it was ready"
        yield task
    finally:
        task.close()


PRELUDE = """
import ctypes, os, signal, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(nr, *args):
    ret = libc.syscall(nr, *args)
    if ret < 0:
        raise OSError(ctypes.get_errno(), nr)
    return ret
"""


def python(source: str, **how: bool) -> contextlib.AbstractContextManager[Task]:
    """A Python process that runs this, then pauses."""
    end = "\nos.dup2(0, 1)\nwhile 1: signal.pause()"
    return running([sys.executable, "-ISc", PRELUDE + source + end], ready=True, **how)


def look(pid: int) -> tuple[object, ...]:
    """What a refused dump must leave as it was."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(re.findall(r"^(\w+):\t*(.*)$", status, re.MULTILINE))
    state = "running" if fields["State"][0] in "RSD" else fields["State"]
    names = ("TracerPid", "SigBlk", "SigPnd", "ShdPnd", "Threads")
    links = sorted(
        (fd, os.readlink(f"/proc/{pid}/fd/{fd}")) for fd in os.listdir(f"/proc/{pid}/fd")
    )
    maps = Path(f"/proc/{pid}/maps").read_text()
    return state, *(fields[name] for name in names), links, maps


def ckpt(*words: object, timeout: float = DEADLINE, **how: object) -> tuple[int, str]:
    """Run our command; its exit code and what it says on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "ckpt", *map(str, words)],
        cwd=REPO,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        timeout=timeout,
        text=True,
        check=False,
        **how,
    )
    return done.returncode, done.stderr


def children() -> set[int]:
    """Our children, and those whose subreaper we are, that have not been reaped."""
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return set(map(int, found.split()))
