# SPDX-License-Identifier: Apache-2.0
"""Whatever kills us, and whenever: a target runs on untouched, and no half process is left.

CKPT_KILLS says how many kills per way of being killed: a few by default, hundreds for a proof;
`all` is every boundary of a system call that there is.
"""

import os
import random
import re
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from bystander import children
from programs import Program
from stepping import Command, boundaries, name, run
from target import DEADLINE, Target, wait_until

from ckpt.errors import ImageError

pytestmark = pytest.mark.process

SEED = int(os.environ.get("CKPT_SEED", "20140515"))
KILLS = os.environ.get("CKPT_KILLS", "12")
ENGINES = {"stop": ("-R", "--engine", "stop"), "live": ("-R", "--engine", "live"), "end": ()}
PROGRAM = Program("unharmed", "unharmed")


@pytest.fixture
def place() -> Iterator[Path]:
    """In memory: a disk takes longer to sync than all the rest does."""
    directory = Path(tempfile.mkdtemp(prefix="ckpt-test-", dir="/dev/shm"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def chosen(numbers: range) -> list[int]:
    """As many of these as we are to try, always the same."""
    if KILLS.startswith("@"):
        first, last = map(int, KILLS[1:].split("-"))
        return list(range(first, last + 1))
    if KILLS == "all":
        return list(numbers)
    count = min(int(KILLS), len(numbers))
    print(f"seed {SEED}: {count} of {len(numbers)}")
    return sorted(random.Random(SEED).sample(numbers, count))


# --- what a target looks like


def look(pid: int) -> dict[str, object]:
    """All that a dump might leave behind in a process, or take away from it."""
    threads = sorted(map(int, os.listdir(f"/proc/{pid}/task")))
    found: dict[str, object] = {"threads": threads}
    for tid in threads:
        found |= {f"{tid}: {key}": value for key, value in look_at_thread(pid, tid)}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        found[f"fd {fd}"] = os.readlink(f"/proc/{pid}/fd/{fd}")
    smaps = Path(f"/proc/{pid}/smaps").read_text()
    found["write-protected"] = len(re.findall(r"^VmFlags:.* uw( |$)", smaps, re.MULTILINE))
    maps = Path(f"/proc/{pid}/maps").read_text()
    # What the target itself does to its fault page is its own affair.
    found["maps"] = sorted({line for line in maps.splitlines() if not own(line)})
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
    """What is not as before; a signal handler that is at work blocks signals for a moment."""
    try:
        now = look(pid)
    except (FileNotFoundError, ProcessLookupError):
        return ["it is gone"]
    if "zombie" in str(now[f"{pid}: state"]):
        return ["it is gone"]
    keys = {key for key in before | now if before.get(key) != now.get(key)}
    found = [f"{key}: {before.get(key)} -> {now.get(key)}" for key in keys - {"maps"}]
    if "maps" in keys:
        found += [f"maps: {line}" for line in {*before["maps"]} ^ {*now["maps"]}]
    return found


def untouched(before: dict[str, object], pid: int, timeout: float = 5.0) -> list[str]:
    """What stays different from before, however long one waits."""
    deadline = time.monotonic() + timeout
    while (found := differences(before, pid)) and time.monotonic() < deadline:
        if found == ["it is gone"]:
            break
        time.sleep(0.005)
    return found


# --- one kill


class Harm(Exception):
    """A kill that did harm."""


def killed_dump(place: Path, options: tuple[str, ...], at: int) -> Counter[str]:
    """Dump a fresh target and kill the dump at this boundary; returns what was seen."""
    seen: Counter[str] = Counter()
    images = place / "images"
    with Target(PROGRAM, place / "target") as target:
        before = look(target.pid)
        calls: list[int] = []

        def visit(number: int, call: int) -> bool:
            calls.append(call)
            return number == at

        command = Command(place, "dump", "-t", target.pid, "-D", images, *options)
        command.step(visit)
        where = f"killed at {at}, {name(calls[-1])}"
        seen["killed" if command.code == -signal.SIGKILL else "too late"] += 1
        try:
            aftermath(target, before, images, seen)
        except Harm as harm:
            raise Harm(f"{where}: {harm}") from None
    others_gone()
    return seen


def aftermath(target: Target, before: dict[str, object], images: Path, seen: Counter[str]) -> None:
    """Hold a target to what it was before a dump of it was killed; and the image to be none."""
    whole = (images / "inventory.img").exists()
    if whole and target.task.ended():
        seen["dead, with an image"] += 1
        target.ended()
        check_restored(target, images)
        return
    harm = untouched(before, target.pid)
    if target.task.ended():
        harm.append(f"wait status {target.task.reap():#x}")
    if harm:
        raise Harm("; ".join(harm))
    others_gone(but=target.pid)
    if not whole and images.exists():
        seen["half an image"] += 1
        code, said = run(target.directory, "restore", "-d", "-D", images)
        if code != ImageError.exit_code:
            raise Harm(f"half an image is taken: {code} {said}")
    shutil.rmtree(images, ignore_errors=True)
    again(target, images, seen)
    if (target.directory / "interrupted").exists():
        seen["EINTR from epoll_wait"] += 1


def again(target: Target, images: Path, seen: Counter[str]) -> None:
    """Now and then dump it once more, by stopping it, and restore it; else ask how it is."""
    if sum(seen.values()) % 2 and random.random() > 0.15:
        return check_verdict(target)
    code, said = run(target.directory, "dump", "-t", target.pid, "-D", images)
    if code:
        raise Harm(f"the second dump fails: {code} {said}")
    seen["second dumps"] += 1
    target.ended()
    return check_restored(target, images)


def check_restored(target: Target, images: Path) -> None:
    code, said = run(target.directory, "restore", "-d", "-D", images)
    if code:
        raise Harm(f"the restore fails: {code} {said}")
    target.restored(target.pid)
    check_verdict(target)


def check_verdict(target: Target) -> None:
    try:
        target.judge("it", target.directory)
    except pytest.fail.Exception as failure:
        raise Harm(str(failure)) from None


def others_gone(but: int = 0) -> None:
    """Whoever came to us as orphans of a killed command ends by himself."""

    def none_left() -> bool:
        for pid in children() - {but}:
            os.waitpid(pid, os.WNOHANG)
        return not children() - {but}

    wait_until(none_left, f"end of {children()}", DEADLINE)


def tried(place: Path, numbers: list[int], kill) -> Counter[str]:
    """Kill at each of these; fails with every harm that was done."""
    harms: list[str] = []
    seen: Counter[str] = Counter()
    for number in numbers:
        try:
            seen += kill(place / str(number), number)
        except Harm as harm:
            harms.append(str(harm))
    print(dict(seen))
    assert not harms, f"{len(harms)} of {len(numbers)}:\n" + "\n".join(harms)
    return seen


@pytest.mark.timeout(0)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_dump_killed_at_a_system_call(engine, place):
    options = ENGINES[engine]
    with Target(PROGRAM, place / "target") as target:
        survey = Command(place, "dump", "-t", target.pid, "-D", place / "images", *options)
        _, tracing = boundaries(survey)
        assert survey.code == 0, survey.said

    def kill(place: Path, number: int) -> Counter[str]:
        place.mkdir()
        try:
            return killed_dump(place, options, number)
        finally:
            shutil.rmtree(place)

    tried(place, chosen(tracing), kill)
