# SPDX-License-Identifier: Apache-2.0
"""Passes before the freeze, at a pace, and what is said of them; also for others' processes."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bystander import ckpt, python
from programs import program
from target import DEADLINE, REPO, Ckpt, Target, wait_until

from ckpt.errors import OptionsError

pytestmark = pytest.mark.process

WRITING = program("mutate_sweep")
OTHERS = program("creds_nobody", "nobody", source="creds")
MIB = 1 << 20


def dumped(pid: int, images: Path, *options: str) -> dict:
    """The figures of a dump of a process that runs on."""
    words = ("dump", "-R", "-t", str(pid), "-D", str(images), "--json", *options)
    done = subprocess.run(
        [sys.executable, "-m", "ckpt", *words],
        cwd=REPO, capture_output=True, text=True, timeout=DEADLINE, check=False,
        start_new_session=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "stopped instead" not in done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("engine", ["live", "stop"])
@pytest.mark.parametrize("passes", [1, 2])
def test_so_many_passes(engine: str, passes: int, place: Path) -> None:
    with Target(WRITING, place / "target") as target:
        options = ("--engine", engine, "--precopy", str(passes))
        figures = dumped(target.pid, place / "images", *options)
        assert 1 <= len(figures["passes"]) <= passes
        assert figures["passes"][0]["again"] == 0
        assert figures["frozen_pages"] > 0
        target.judge("the target itself", place / "images")
        Ckpt().restore(target, place / "images")
        target.judge("the copy", place / "images")


def test_none_unless_asked_for(place: Path) -> None:
    with Target(WRITING, place / "target") as target:
        assert dumped(target.pid, place / "images", "--engine", "stop")["passes"] == []


@pytest.mark.parametrize("words", [("live", "0"), ("fork", "1"), ("live", "many")])
def test_what_cannot_be(words: tuple[str, str], place: Path) -> None:
    engine, passes = words
    with Target(WRITING, place / "target") as target:
        options = ("-R", "--engine", engine, "--precopy", passes)
        code, said = ckpt("dump", "-t", target.pid, "-D", place / "images", *options)
        assert code == OptionsError.exit_code
        assert "precopy" in said
        assert not (place / "images").exists()


@pytest.mark.parametrize("engine", ["live", "fork"])
def test_pace(engine: str, place: Path) -> None:
    """So many bytes a second: half a second for these, and they are all there."""
    size, rate = 32 * MIB, 64 * MIB
    source = f"kept = os.urandom({size})"
    with python(source) as target:
        options = ("--engine", engine, "--max-rate", "64M")
        figures = dumped(target.pid, place / "images", *options)
        assert figures["bytes"] >= size
        assert figures["bytes"] / (figures["copying_ns"] / 1e9) <= 1.1 * rate


def test_another_users(place: Path) -> None:
    """userfaultfd(2) is not for everybody: the device is, in our hands."""
    with Target(OTHERS, place / "target") as target:
        figures = dumped(target.pid, place / "images", "--engine", "live")
        assert figures["passes"]
        target.judge("the target itself", place / "images")
        Ckpt().restore(target, place / "images")
        target.judge("the copy", place / "images")


@pytest.mark.parametrize("signo", [signal.SIGTSTP, signal.SIGHUP], ids=lambda signo: signo.name)
def test_a_terminal_does_no_harm(signo: signal.Signals, place: Path) -> None:
    """A dump that stood still would have its target wait for it; one that is hung up lets go."""
    images = place / "images"
    with Target(WRITING, place / "target") as target:
        argv = [sys.executable, "-m", "ckpt", "dump", "-R", "-t", str(target.pid)]
        argv += ["-D", str(images), "--max-rate", "128M"]
        # In a group of its own: nothing stops one whose group is an orphan (setpgid(2)).
        with subprocess.Popen(argv, cwd=REPO, stderr=subprocess.DEVNULL, process_group=0) as dump:
            try:
                wait_until(lambda: (images / "pages-1.img").exists(), "begin of the copying")
                dump.send_signal(signo)
                code = dump.wait(DEADLINE)
            finally:
                dump.kill()
        assert (code, images.exists()) == ((0, True) if signo == signal.SIGTSTP else (129, False))
        target.judge("the target itself", place)
