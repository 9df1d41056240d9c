# SPDX-License-Identifier: Apache-2.0
"""File locks that are refused, and locks that somebody else has taken meanwhile."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bystander import ckpt, python
from test_bad_input import refused, said

from ckpt.errors import ImageError, KernelError, Unsupported
from ckpt.image.directory import ImageDir

pytestmark = pytest.mark.process

OFD_SETLK, SETLEASE = 37, 1024
LOCK = "struct.pack('hhxxxxqqixxxx', 1, 0, 0, 0, 0)"
TAKE = {
    "POSIX lock": f"fcntl.fcntl(fd, fcntl.F_SETLK, {LOCK})",
    r"BSD lock \(flock\)": "fcntl.flock(fd, fcntl.LOCK_EX)",
    "OFD lock": f"fcntl.fcntl(fd, {OFD_SETLK}, {LOCK})",
    "lease": f"fcntl.fcntl(fd, {SETLEASE}, fcntl.F_WRLCK)",
}
KINDS = pytest.mark.parametrize("kind", TAKE)
FREE = "import fcntl; fd = os.open('{path}', os.O_RDWR)"


@pytest.fixture
def path(place):
    path = place / "locked"
    path.touch()
    return path


def holder(kind, path, **how):
    return python(FREE.format(path=path) + "; " + TAKE[kind], **how)


def dump(task, place):
    assert ckpt("dump", "-t", task.pid, "-D", place / "images", "--file-locks") == (0, "")
    task.reap()


@KINDS
def test_refused_without_the_option(kind, path, place):
    with holder(kind, path) as task:
        message = rf"fd 3 of pid PID \({path}\): it holds a {kind}"
        refused(task, place, Unsupported, message, "--file-locks")


@KINDS
def test_somebody_else_has_it_now(kind, path, place):
    """What is in the way of a lease is an open file; another lease would be broken by our open."""
    with holder(kind, path) as task:
        dump(task, place)
    with python(FREE.format(path=path)) if kind == "lease" else holder(kind, path) as rival:
        comm = Path(f"/proc/{rival.pid}/comm").read_text().strip()
        message = rf"{kind} of fd 3 \({path}\): pid {rival.pid} \({comm}\) has"
        outcome = ckpt("restore", "-d", "-D", place / "images")
        said(outcome, KernelError, message, "end that first")
        assert not Path(f"/proc/{task.pid}").exists()


def test_a_lock_whose_taker_has_ended(path, place):
    """The open file has it, and whoever has inherited that; /proc/locks names the dead."""
    with holder(r"BSD lock \(flock\)", path) as task:
        dump(task, place)
    fd = os.open(path, os.O_RDWR)
    taking = f"import fcntl; fcntl.flock({fd}, fcntl.LOCK_EX)"
    subprocess.run([sys.executable, "-c", taking], pass_fds=[fd], check=True)
    with python("", pass_fds=[fd]) as heir:
        os.close(fd)
        outcome = ckpt("restore", "-d", "-D", place / "images")
        said(outcome, KernelError, f"pid {heir.pid} .* has a lock on it")


def test_a_lease_that_is_being_broken(path, place):
    source = "signal.signal(signal.SIGIO, signal.SIG_IGN)\n"
    with python(source + FREE.format(path=path) + "; " + TAKE["lease"]) as task:
        with pytest.raises(BlockingIOError):
            os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        refused(task, place, Unsupported, "somebody waits", "try again", ["--file-locks"])


def test_many_locks(path, place):
    """More than one batch takes."""
    lock = "struct.pack('hhxxxxqqixxxx', 1, 0, 2 * i, 1, 0)"
    source = f"\nfor i in range(9000): fcntl.fcntl(fd, {OFD_SETLK}, {lock})"
    with python(FREE.format(path=path) + source) as task:
        dump(task, place)
    assert ckpt("restore", "-d", "-D", place / "images") == (0, "")
    try:
        locks = Path(f"/proc/{task.pid}/fdinfo/3").read_text().count("OFDLCK")
        assert locks == 9000
        with path.open("r+") as other, pytest.raises(BlockingIOError):
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 2 * 8_999)
    finally:
        os.kill(task.pid, signal.SIGKILL)
        os.waitpid(task.pid, 0)


@pytest.mark.parametrize(
    ("field", "value"), [("flag", 16), ("flag", 3), ("type", 2), ("type", 2**31), ("fd", 9)]
)
def test_a_lock_that_cannot_be(path, place, field, value):
    with holder("POSIX lock", path) as task:
        dump(task, place)

    images = place / "images"
    with ImageDir.open(images) as image:
        entries = [entry for entry, _ in image.records("filelocks")]
    setattr(entries[0], field, value)
    (images / "filelocks.img").unlink()
    with ImageDir(str(images), os.open(images, os.O_RDONLY)) as image:
        image.write("filelocks", *entries)
    said(ckpt("restore", "-d", "-D", images), ImageError, "filelocks.img: a lock")
