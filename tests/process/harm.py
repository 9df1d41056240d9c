# SPDX-License-Identifier: Apache-2.0
"""What a process looks like from outside, and whether it does so still after something was done."""

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ckpt.kernel.pidfd import pidfd_getfd

_PATIENCE = 5.0
_LOOKS = 10


class Harm(Exception):
    """Something that was done to a process."""


def look(pid: int) -> dict[str, object]:
    """All that a dump might leave behind in a process, or take away from it.

    A signal handler that is at work blocks signals for a moment: what is blocked at each of
    several looks counts, so that a process looks as it does at rest.
    """
    found = look_once(pid)
    for _ in range(_LOOKS):
        time.sleep(0.001)
        for tid in found["threads"]:
            key = f"{tid}: SigBlk"
            with suppress(FileNotFoundError, ProcessLookupError):
                blocked = int(dict(look_at_thread(pid, tid))["SigBlk"], 16)
                found[key] = f"{int(found[key], 16) & blocked:016x}"
    return found


def look_once(pid: int) -> dict[str, object]:
    threads = sorted(map(int, os.listdir(f"/proc/{pid}/task")))
    found: dict[str, object] = {"threads": threads}
    for tid in threads:
        found |= {f"{tid}: {key}": value for key, value in look_at_thread(pid, tid)}
    # A first thread that has ended has none of it any more.
    tid = next((tid for tid in threads if "zombie" not in str(found[f"{tid}: state"])), pid)
    pidfd = os.pidfd_open(tid, os.O_EXCL if tid != pid else 0)  # PIDFD_THREAD
    for fd in os.listdir(f"/proc/{tid}/fd"):
        found[f"fd {fd}"] = link = os.readlink(f"/proc/{tid}/fd/{fd}")
        if link.startswith("socket:"):
            found[f"options of fd {fd}"] = socket_options(pidfd, int(fd))
    os.close(pidfd)
    smaps = Path(f"/proc/{tid}/smaps").read_text()
    found["write-protected"] = len(re.findall(r"^VmFlags:.* uw( |$)", smaps, re.MULTILINE))
    maps = Path(f"/proc/{tid}/maps").read_text()
    # What the target itself does to its fault page is its own affair.
    found["maps"] = sorted({line for line in maps.splitlines() if not own(line)})
    return found


def socket_options(pidfd: int, fd: int) -> list[int | None]:
    """What a dump changes for a moment: TCP_REPAIR, SO_PEEK_OFF, SO_REUSEADDR, SO_PASSCRED."""
    found: list[int | None] = []
    with socket.socket(fileno=pidfd_getfd(pidfd, fd)) as copy:
        for level, option in ((6, 19), (1, 42), (1, 2), (1, 16)):
            try:
                found.append(copy.getsockopt(level, option))
            except OSError:
                found.append(None)
    return found


def own(line: str) -> bool:
    """Is this a mapping of three pages, or a part of one, that `unharmed` protects in turn?"""
    start, end = (int(part, 16) for part in line.split()[0].split("-"))
    return end - start <= 3 * 4096 and len(line.split()) == 5


def look_at_thread(pid: int, tid: int) -> Iterator[tuple[str, str]]:
    status = Path(f"/proc/{pid}/task/{tid}/status").read_text()
    fields = dict(re.findall(r"^(\w+):\t*(.*)$", status, re.MULTILINE))
    yield "state", "runs" if fields["State"][0] in "RSD" else fields["State"]
    for key in ("TracerPid", "SigBlk", "SigIgn", "SigCgt"):
        yield key, fields[key]


def differences(before: dict[str, object], pid: int) -> list[str]:
    """What is not as before."""
    try:
        now = look_once(pid)
    except (FileNotFoundError, ProcessLookupError):
        return ["it is gone"]
    if all("zombie" in str(now[f"{tid}: state"]) for tid in now["threads"]):
        return ["it is gone"]
    keys = {key for key in before | now if before.get(key) != now.get(key)}
    found = [f"{key}: {before.get(key)} -> {now.get(key)}" for key in keys - {"maps"}]
    if "maps" in keys:
        found += [f"maps: {line}" for line in {*before["maps"]} ^ {*now["maps"]}]
    return found


def untouched(before: dict[str, object], pid: int, timeout: float = _PATIENCE) -> list[str]:
    """What stays different from before, however long one waits."""
    deadline = time.monotonic() + timeout
    while (found := differences(before, pid)) and time.monotonic() < deadline:
        if found == ["it is gone"]:
            break
        time.sleep(0.005)
    return found
