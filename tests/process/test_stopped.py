# SPDX-License-Identifier: Apache-2.0
"""A process that somebody has stopped stays stopped, here and there, until SIGCONT."""

import os
import signal
import time
from pathlib import Path

import pytest
from programs import PROGRAMS
from target import DEADLINE, POLL_INTERVAL, Ckpt, Criu, Target, Tool

from ckpt.kernel import procfs

pytestmark = pytest.mark.process
PROGRAM = next(program for program in PROGRAMS if program.name == "tls_threads")


def await_state(pid: int, state: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while procfs.stat(pid).state != state:
        assert time.monotonic() < deadline, f"pid {pid} is in {procfs.stat(pid).state}"
        time.sleep(POLL_INTERVAL)


@pytest.mark.parametrize("restorer", [Ckpt, Criu], ids=["ckpt", "criu"])
@pytest.mark.parametrize("engine", ["stop", "live"])
def test_stays_stopped(engine: str, restorer: type[Tool], place: Path) -> None:
    images = place / "images"
    with Target(PROGRAM, place / "target") as target:
        pid = target.pid
        os.kill(pid, signal.SIGSTOP)
        await_state(pid, "T")
        Ckpt().dump(target, images, "-R", "--engine", engine)
        assert procfs.stat(pid).state == "T"
        os.kill(pid, signal.SIGCONT)
        target.judge("the target itself, running on", images)
        restorer().restore(target, images)
        await_state(pid, "T")
        os.kill(pid, signal.SIGCONT)
        target.judge("the restored copy", images)
