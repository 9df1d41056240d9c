# SPDX-License-Identifier: Apache-2.0
"""What tests of real processes share: a place for images and targets, and nothing left behind."""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from target import DEADLINE, become_subreaper


@pytest.fixture(scope="session", autouse=True)
def _subreaper() -> None:
    become_subreaper()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user may enter, unlike tmp_path: programs give up their rights."""
    directory = Path(tempfile.mkdtemp(prefix="ckpt-test-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """No process and no descriptor stays behind a test."""
    before = _descriptors()
    yield
    left = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # the child of one that we have just reaped
            if child.status() != psutil.STATUS_ZOMBIE:  # those are what a failed restore undid
                left.append(f"{child.pid} ({child.name()}, {child.status()})")
            child.send_signal(signal.SIGKILL)
            child.wait(DEADLINE)
    new = {fd: to for fd, to in _descriptors().items() if before.get(fd) != to}
    assert not left, f"processes left behind: {', '.join(left)}"
    assert not new, f"descriptors left behind: {new}"


def _descriptors() -> dict[str, str]:
    """Our open descriptors and what they are."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the one that lists the directory
            continue
    return found
