# SPDX-License-Identifier: Apache-2.0
"""Attempts at harm, chosen by chance or all there are, and what is asked afterwards.

CKPT_KILLS says how many of each kind: a few by default, hundreds for a proof; `all` is every
boundary of a system call that there is. CKPT_SEED chooses others. CKPT_UNHARMED=gone has them
made on a process whose first thread has ended.
"""

import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from bystander import children
from harm import Harm, untouched
from programs import Program
from stepping import name, run
from target import DEADLINE, Target, wait_until

from ckpt.errors import ImageError

SEED = int(os.environ.get("CKPT_SEED", "20140515"))
KILLS = os.environ.get("CKPT_KILLS", "3")
PROGRAM = Program("unharmed", "unharmed", tuple(os.environ.get("CKPT_UNHARMED", "").split()))
as_long_as_it_takes = pytest.mark.timeout(0 if KILLS == "all" else 240 + 10 * int(KILLS))


def chosen(numbers: Sequence[int]) -> list[int]:
    """As many of these as we are to try: the same for one seed."""
    if KILLS == "all":
        return list(numbers)
    count = min(int(KILLS), len(numbers))
    print(f"CKPT_SEED={SEED}: {count} of {len(numbers)}")
    return sorted(random.Random(SEED).sample(numbers, count))


def tried(numbers: list[int], place: Path, attempt: Callable[[Path, int], Counter[str]]) -> None:
    """Make all these attempts, each in a place of its own; fails with every harm that was done."""
    harms: list[str] = []
    seen: Counter[str] = Counter()
    for number in numbers:
        there = place / str(number)
        there.mkdir()
        try:
            seen += attempt(there, number)
            others_gone()
        except Harm as harm:
            harms.append(f"at {number}: {harm}")
        shutil.rmtree(there)
    print(dict(seen))
    assert not harms, f"{len(harms)} of {len(numbers)}:\n" + "\n".join(harms)


def others_gone(but: int = 0) -> None:
    """Whoever came to us as an orphan of a killed command ends by himself."""

    def none_left() -> bool:
        for pid in children() - {but}:
            os.waitpid(pid, os.WNOHANG)
        return not children() - {but}

    wait_until(none_left, f"end of {children()}", DEADLINE)


def killing(at: int) -> tuple[Callable[[int, int], bool], list[str]]:
    """What Command.step kills a command with at a boundary, and the calls that it then has made."""
    calls: list[str] = []

    def visit(number: int, call: int) -> bool:
        calls.append(name(call))
        return number == at

    return visit, calls


def in_memory() -> Iterator[Path]:
    """A place that is no disk: that takes longer to sync than all the rest does."""
    directory = Path(tempfile.mkdtemp(prefix="ckpt-test-", dir="/dev/shm"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


# --- afterwards


def aftermath(
    target: Target, before: dict[str, object], images: Path, seen: Counter[str], *, twice: bool
) -> None:
    """Hold a target to what it was before a dump of it was killed; the image is whole, or none."""
    whole = (images / "inventory.img").exists()
    harm = untouched(before, target.pid)
    if whole and (target.task.ended() or harm == ["it is gone"]):  # or about to be
        seen["dead, with an image"] += 1
        target.ended()
        check_restored(target, images)
        return
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
    if (target.directory / "interrupted").exists():
        seen["EINTR from epoll_wait"] += 1
    if twice:
        seen["second dump"] += 1
        check_dumped_again(target, images)
    else:
        check_verdict(target)


def check_dumped_again(target: Target, images: Path) -> None:
    code, said = run(target.directory, "dump", "-t", target.pid, "-D", images)
    if code:
        raise Harm(f"the second dump fails: {code} {said}")
    target.ended()
    check_restored(target, images)


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
