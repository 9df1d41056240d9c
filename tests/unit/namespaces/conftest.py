# SPDX-License-Identifier: Apache-2.0
"""Tests that run in an IPC namespace of their own, in a forked child."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from ckpt.image.directory import ImageDir
from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import syscall
from ckpt.memory import shmem
from ckpt.namespaces.ipc import Ipc
from ckpt.namespaces.kind import Dump, Restore

NS = 9


def leave_for_a_new_namespace() -> bool:
    return syscall(NR.unshare, Ipc.flag) == 0


class Place:
    """An image directory, dumped to and restored from in one process."""

    def __init__(self, directory: Path) -> None:
        self.image = ImageDir.create(directory / "image")
        self._pages = 0

    def _save(self, shmid: int, fd: int, size: int) -> None:
        self._pages += 1
        shmem.save(self.image, shmid, self._pages, fd, size)

    def dump(self, attached: dict[int, str] | None = None) -> Dump:
        return Dump(self.image, NS, self._save, attached or {})

    def restore(self) -> Restore:
        return Restore(self.image, NS, lambda shmid, fd: shmem.load(self.image, shmid, fd))


@pytest.fixture
def inside(tmp_path: Path) -> Callable[[Callable[[Place], None]], None]:
    """Run a test's body in a child that is alone in an IPC namespace."""

    def run(body: Callable[[Place], None]) -> None:
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            _child(body, tmp_path, writing)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            told = pipe.read()
        os.waitpid(pid, 0)
        if told == "skip":
            pytest.skip("may not make an IPC namespace")
        if told != "ok":
            pytest.fail(told, pytrace=False)

    return run


def _child(body: Callable[[Place], None], directory: Path, writing: int) -> NoReturn:
    told = "ok"
    try:
        if leave_for_a_new_namespace():
            body(Place(directory))
        else:
            told = "skip"
    except BaseException:
        told = traceback.format_exc()
    os.write(writing, told.encode())
    os._exit(0)
