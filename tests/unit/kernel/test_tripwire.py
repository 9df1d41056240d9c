# SPDX-License-Identifier: Apache-2.0
"""A process that dies takes others along, by nobody's doing but the kernel's."""

import os
import signal
import subprocess

import pytest

from ckpt.kernel.tripwire import Tripwire


def who_dies_with(owners: list[int], *, disarmed: bool = False) -> None:
    """Have a child of ours die that has a tripwire."""
    pid = os.fork()
    if not pid:
        wire = Tripwire(owners)
        if disarmed:
            wire.disarm()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.fixture
def sleepers():
    started = [subprocess.Popen(["sleep", "60"], process_group=0) for _ in range(3)]
    yield started
    for one in started:
        one.kill()
        one.wait()


def test_all_that_are_named_die(sleepers):
    first, second, third = sleepers
    who_dies_with([first.pid, -second.pid])
    assert first.wait(10) == second.wait(10) == -signal.SIGKILL
    assert third.poll() is None


def test_nobody_dies_if_it_was_disarmed(sleepers):
    who_dies_with([one.pid for one in sleepers], disarmed=True)
    who_dies_with([])
    assert [one.poll() for one in sleepers] == [None, None, None]
