# SPDX-License-Identifier: Apache-2.0
"""More open files than we may have at first, and more than we may have at all."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from bystander import python
from target import DEADLINE, REPO, Task

from ckpt.errors import KernelError
from ckpt.kernel import procfs

pytestmark = pytest.mark.process

MANY = 600
SOURCE = f"kept = [os.eventfd(number) for number in range({MANY})]"


def ckpt(place: Path, *words: object, limits: tuple[int, int]) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "ckpt", *map(str, words), "-D", place / "images"],
        cwd=REPO, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE,
        check=False, start_new_session=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits),
    )  # fmt: skip
    return done.returncode, done.stderr


def test_more_than_at_first(place: Path) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with python(SOURCE) as task:
        before = procfs.fds(task.pid)
        assert ckpt(place, "dump", "-t", task.pid, limits=(256, most)) == (0, "")
        task.reap()
        assert ckpt(place, "restore", "-d", limits=(256, most)) == (0, "")
        again = Task(task.pid)
        assert procfs.fds(task.pid) == before
        again.close()


def test_more_than_we_may_have(place: Path) -> None:
    with python(SOURCE) as task:
        code, said = ckpt(place, "dump", "-t", task.pid, limits=(256, 256))
        assert code == KernelError.exit_code
        assert "more files open than we may" in said
        assert not (place / "images").exists()
        assert not task.ended()
