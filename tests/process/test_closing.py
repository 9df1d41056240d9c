# SPDX-License-Identifier: Apache-2.0
"""What a target closes while it is dumped is closed: our copies of its descriptors keep nothing.

While one is open, the reader of a pipe hears no end, nor a client of a server that has hung up.
"""

import os
import sys
from pathlib import Path

import pytest
from bystander import ckpt, running

pytestmark = pytest.mark.process

LATEST_S = 0.3

CLOSING = """
import collections, os, sys, time
ballast = os.urandom(20 << 20)
pipes, worst = collections.deque(), 0
print(flush=True)
os.close(1)
while not os.path.exists(sys.argv[1] + "/go"):
    pipes.append(os.pipe())
    if len(pipes) < 20:
        continue
    reading, writing = pipes.popleft()
    closed = time.monotonic()
    os.close(writing)
    os.read(reading, 1)
    worst = max(worst, time.monotonic() - closed)
    os.close(reading)
    time.sleep(0.002)
with open(sys.argv[1] + "/worst", "w") as file:
    file.write(str(worst))
"""


@pytest.mark.parametrize("engine", ["live", "fork"])
def test_closes_at_once(engine: str, place: Path) -> None:
    """However long its memory takes to save."""
    slowly = ("--engine", engine, "--max-rate", "32M")
    with running([sys.executable, "-Sc", CLOSING, str(place)], ready=True) as task:
        assert ckpt("dump", "-R", "-t", task.pid, "-D", place / "images", *slowly) == (0, "")
        (place / "go").touch()
        assert os.WEXITSTATUS(task.reap()) == 0
    assert float((place / "worst").read_text()) < LATEST_S


CHANGING = """
import collections, os, select
watching, pipes = select.epoll(), collections.deque()
print(flush=True)
os.dup2(2, 1)
while True:
    reading, writing = os.pipe()
    watching.register(reading, select.EPOLLIN)
    pipes.append((reading, writing, os.dup(writing)))
    if len(pipes) > 20:
        for fd in pipes.popleft():
            os.close(fd)
"""


@pytest.mark.parametrize("engine", ["live", "stop"])
def test_files_come_and_go(engine: str, place: Path) -> None:
    """Closed while it is in an epoll set, or when the process runs on already."""
    with running([sys.executable, "-Sc", CHANGING], ready=True) as task:
        for number in range(4):
            words = ("dump", "-R", "-t", task.pid, "-D", place / f"images{number}")
            assert ckpt(*words, "--engine", engine) == (0, "")
