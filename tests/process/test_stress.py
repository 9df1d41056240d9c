# SPDX-License-Identifier: Apache-2.0
"""stress-ng, which checks its own work: memory that is written, processes that come and go."""

import os
import signal
from pathlib import Path

import psutil
import pytest
from service import Service
from target import Ckpt, wait_until

from tests.peers import peer

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]


class Stress(Service):
    """What it finds wrong, it says at its end, and by its exit code."""

    name = "stress-ng"

    def __init__(self, place: Path, *stressors: str) -> None:
        super().__init__(place)
        self.stressors = stressors

    def command(self) -> list[str]:
        words = ["--verify", "--oomable", "--temp-path", str(self.place), "--timeout", "0"]
        return [peer("stress-ng"), *words, *self.stressors]

    def is_up(self) -> bool:
        return bool(psutil.Process(self.pid).children())

    def judge(self) -> None:
        """Have it end, and see what it says."""
        os.kill(self.pid, signal.SIGINT)
        status = os.waitstatus_to_exitcode(self.task.reap())
        said = (self.place / "output").read_text()
        assert status == 0 and "successful run completed" in said and "fail" not in said, said


STRESSORS = {
    "vm": ("--vm", "1", "--vm-bytes", "16M", "--vm-keep"),
    "fork": ("--fork", "1", "--fork-max", "3"),
}


@pytest.mark.parametrize("name", STRESSORS)
def test_runs_on_and_comes_back(name: str, place: Path) -> None:
    with Stress(place, *STRESSORS[name]) as stress:
        for engine in ("stop", "live"):
            Ckpt().dump(stress, place / engine, "-R", "--engine", engine)
        stress.note()
        Ckpt().dump(stress, place / "killed", "--engine", "live")
        Ckpt().restore(stress, place / "killed")
        wait_until(stress.is_up, "its children")
        stress.judge()
