# SPDX-License-Identifier: Apache-2.0
import os
import signal
from collections.abc import Callable, Iterator

import pytest

from ckpt.kernel.witness import Witness


@pytest.fixture
def pids() -> Iterator[list[int]]:
    """Two processes that wait for their end."""
    found = []
    for _ in range(2):
        pid = os.fork()
        if not pid:
            signal.pause()
        found.append(pid)
    yield found
    for pid in found:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def ends(do: Callable[[], None]) -> None:
    """Do it in a process that is killed then."""
    pid = os.fork()
    if not pid:
        try:
            do()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


def test_all_die_with_us(pids):
    ends(lambda: Witness(pids).__enter__())
    for pid in pids:
        assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT).si_status == signal.SIGKILL


def test_all_die_if_it_fails(pids):
    with pytest.raises(ZeroDivisionError), Witness(pids):
        raise ZeroDivisionError
    for pid in pids:
        assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT).si_status == signal.SIGKILL


def test_all_live_once_it_is_well(pids):
    def well() -> None:
        with Witness(pids) as witness:
            witness.all_is_well()
        # It has left: nobody is there any more who would kill them.

    ends(well)
    with Witness(pids) as witness:
        witness.all_is_well()
    for pid in pids:
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)


def test_it_keeps_nothing_open(pids):
    before = os.listdir("/proc/self/fd")
    with Witness(pids) as witness:
        witness.all_is_well()
    assert os.listdir("/proc/self/fd") == before
