# SPDX-License-Identifier: Apache-2.0
"""In another's namespace for a while, and back."""

import os
import signal
from collections.abc import Iterator

import pytest

from ckpt.errors import NoSuchTask
from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import syscall
from ckpt.kernel.nsfs import entered, is_ours

CLONE_NEWIPC = 0x0800_0000


def here() -> str:
    return os.readlink("/proc/thread-self/ns/ipc")


@pytest.fixture
def stranger() -> Iterator[int]:
    """A child in an IPC namespace of its own."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        done = syscall(NR.unshare, CLONE_NEWIPC)
        os.write(writing, b"y" if done == 0 else b"n")
        signal.pause()
    answer = os.read(reading, 1)
    os.close(reading)
    os.close(writing)
    try:
        if answer != b"y":
            pytest.skip("may not make an IPC namespace")
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_there_and_back(stranger: int) -> None:
    before, theirs = here(), os.readlink(f"/proc/{stranger}/ns/ipc")
    assert before != theirs
    assert is_ours("ipc", os.getpid()) and not is_ours("ipc", stranger)
    with entered("ipc", stranger):
        assert here() == theirs
    assert here() == before


def test_back_after_an_error(stranger: int) -> None:
    before = here()
    with pytest.raises(ZeroDivisionError), entered("ipc", stranger):
        _ = 1 / 0
    assert here() == before


def test_ones_own_is_entered_without_a_call() -> None:
    with entered("ipc", os.getpid()):
        pass


def test_nobody() -> None:
    with pytest.raises(NoSuchTask), entered("ipc", 1 << 22):
        pass
