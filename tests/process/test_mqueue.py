# SPDX-License-Identifier: Apache-2.0
"""POSIX message queues that a path leads to are opened again, with what is in them."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from bystander import ckpt, python
from target import Task, wait_until
from test_bad_input import refused

from ckpt.errors import Unsupported

pytestmark = pytest.mark.process

MQ_OPEN, MQ_UNLINK, MQ_SEND, MQ_RECEIVE, MQ_NOTIFY = 240, 241, 242, 243, 244
LIBC = ctypes.CDLL(None, use_errno=True)
SOURCE = f"""
name = b"ckpt-test-%d" % os.getpid()
fd = call({MQ_OPEN}, name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, None)
assert call({MQ_SEND}, fd, b"first", 5, 1, None) == 0
"""


@pytest.fixture
def mount(place: Path) -> Iterator[Path]:
    """Where the queues are to be seen."""
    point = place / "mqueue"
    point.mkdir()
    done = subprocess.run(["mount", "-t", "mqueue", "none", point], capture_output=True)
    if done.returncode:
        pytest.skip(f"no file system of message queues: {done.stderr.decode()}")
    yield point
    for name in point.glob("ckpt-test-*"):
        name.unlink()
    subprocess.run(["umount", point], check=True)


def test_opened_again(mount: Path, place: Path) -> None:
    """What was in it, and what was sent since, is received in order by who is restored."""
    images, seen = place / "images", place / "seen"
    receive = f"""
import threading
def receive():
    room = ctypes.create_string_buffer(10000)
    while not os.path.exists("{place}/go"):
        pass
    sizes = [call({MQ_RECEIVE}, fd, room, 10000, None, None) for _ in range(2)]
    open("{seen}.new", "w").write(repr((sizes, room[:6])))
    os.rename("{seen}.new", "{seen}")
threading.Thread(target=receive, daemon=True).start()
"""
    with python(SOURCE + receive) as task:
        assert ckpt("dump", "-t", task.pid, "-D", images) == (0, "")
        task.reap()
        assert ckpt("restore", "-d", "-D", images) == (0, "")
        with closing(Task(task.pid)):
            path = mount / f"ckpt-test-{task.pid}"
            fd = os.open(path, os.O_RDWR)
            assert LIBC.syscall(MQ_SEND, fd, b"second", 6, 0, None) == 0
            os.close(fd)
            (place / "go").touch()
            wait_until(seen.exists, "answer")
    assert seen.read_text() == "([5, 6], b'second')"


def test_who_is_to_be_told(mount: Path, place: Path) -> None:
    with python(SOURCE.replace("assert", f"call({MQ_NOTIFY}, fd, bytes(64))\nif 0: ")) as task:
        refused(task, place, Unsupported, r"asked to be told of messages \(mq_notify\)", "receive")


def test_unlinked(mount: Path, place: Path) -> None:
    with python(SOURCE + f"call({MQ_UNLINK}, name)") as task:
        refused(task, place, Unsupported, "a POSIX message queue that no path leads to", "unlinked")
