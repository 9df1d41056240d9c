# SPDX-License-Identifier: Apache-2.0
"""A child that ends at any moment of a dump is left out, or is in it as one that has ended.

The moments are counted in calls of functions of ours, so that those are tried that take no time.
"""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from target import wait_until

import ckpt
from ckpt import dump
from ckpt.errors import CkptError
from ckpt.hooks import POST_DUMP, PRE_DUMP, Hooks
from ckpt.image.directory import ImageDir
from ckpt.kernel import procfs
from ckpt.options import DumpOptions
from ckpt.snapshot import Snapshot
from ckpt.targets import Targets

pytestmark = pytest.mark.process

_TREE = """
import os, signal, socket
pairs = [socket.socketpair(), os.pipe()]
if not os.fork():
    if not os.fork():
        while True:
            signal.pause()
    while True:
        try:
            os.wait()
        except ChildProcessError:
            signal.pause()
print(flush=True)
while True:
    try:
        os.wait()
    except ChildProcessError:
        signal.pause()
"""
_OURS = os.path.dirname(ckpt.__file__)
MOMENTS = 5


class Tree:
    """Three generations, each of one process that waits for the one below."""

    def __init__(self) -> None:
        argv = [sys.executable, "-c", _TREE]
        self.root = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
        assert self.root.stdout and self.root.stdout.readline()
        self.middle = _child(self.root.pid)
        self.leaf = _child(self.middle)

    def __enter__(self) -> "Tree":
        return self

    def __exit__(self, *_: object) -> None:
        assert not procfs.is_ending(self.root.pid)
        for pid in (self.root.pid, self.middle, self.leaf):
            if not procfs.is_ending(pid):
                os.kill(pid, signal.SIGKILL)
        self.root.communicate()

    def end(self, pid: int) -> None:
        """Kill one, and see it end: its parent, which waits for it, may be stopped."""
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: _state(pid) in "ZX", "end")


def _child(pid: int) -> int:
    wait_until(lambda: bool(procfs.children(pid)), "child")
    return procfs.children(pid)[0]


def _state(pid: int) -> str:
    try:
        return procfs.stat(pid).state
    except ProcessLookupError:
        return "X"


@contextmanager
def at_call(number: int, do: Callable[[], None]) -> Iterator[list[int]]:
    """Do it when so many calls of our functions were made; gives how many there are."""
    calls, pid = [0], os.getpid()

    def called(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(_OURS) and os.getpid() == pid:
            calls[0] += 1
            if calls[0] == number:
                do()

    sys.setprofile(called)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def options(tree: Tree, images: Path, engine: str) -> DumpOptions:
    return DumpOptions(pid=tree.root.pid, images_dir=images, leave_running=True, engine=engine)


@pytest.fixture(scope="module", params=["live", "fork", "stop"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An engine; what is found out but once has been."""
    with Tree() as tree:
        dump.dump(options(tree, tmp_path_factory.mktemp("first"), request.param))
    return str(request.param)


@pytest.mark.parametrize("who", ["middle", "leaf"])
def test_a_child_ends(engine: str, who: str, place: Path) -> None:
    with Tree() as tree, at_call(0, lambda: None) as calls:
        dump.dump(options(tree, place / "all", engine))
    seed = int(os.environ.get("CKPT_SEED", random.randrange(1 << 32)))
    for moment in random.Random(seed).sample(range(calls[0]), MOMENTS):
        images = place / str(moment)
        with Tree() as tree:
            pid = getattr(tree, who)
            with at_call(moment, lambda: tree.end(pid)):  # noqa: B023 - at once
                dump.dump(options(tree, images, engine))
            with ImageDir.open(images) as image:
                found = [record.pid for record, _ in image.records("pstree")]
            everybody = [tree.root.pid, tree.middle, tree.leaf]
            assert found == everybody[: len(found)], (seed, moment)


def test_an_objection_is_an_objection(
    engine: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who objects to an image is heard once, though a child has just ended."""
    tell, points = Hooks._tell, []

    def object_at_last(self: Hooks, point: str, pid: int) -> None:
        tell(self, point, pid)
        points.append(point)
        if point == POST_DUMP:
            tree.end(tree.leaf)
            raise CkptError("no")

    monkeypatch.setattr(Hooks, "_tell", object_at_last)
    with Tree() as tree, pytest.raises(CkptError, match=r"^no$"):
        dump.dump(options(tree, place / "images", engine))
    assert points == [PRE_DUMP, POST_DUMP]
    assert not list(place.glob("images/inventory.img"))


_SHARING = """
import ctypes, os, signal
syscall, CLONE_FILES, CLONE_FS, CLONE_PARENT = ctypes.CDLL(None).syscall, 0x400, 0x200, 0x8000
if not os.fork():
    for _ in range(2):
        if not syscall(56, CLONE_FILES | CLONE_FS | CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0):
            break
    while True:
        signal.pause()
print(flush=True)
while True:
    signal.pause()
"""


def test_who_had_shared_with_it_still_share(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of three with the same descriptors and directories ends; two are left."""
    argv = [sys.executable, "-c", _SHARING]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as root:
        try:
            wait_until(lambda: len(procfs.children(root.pid)) == 3, "children")
            first, *others = procfs.children(root.pid)
            begin = Targets.begin

            def after_its_end(self: Targets, tree: Snapshot) -> None:
                os.kill(first, signal.SIGKILL)
                wait_until(lambda: _state(first) in "ZX", "end")
                begin(self, tree)

            monkeypatch.setattr(Targets, "begin", after_its_end)
            dump.dump(DumpOptions(pid=root.pid, images_dir=place / "images", leave_running=True))
        finally:
            os.killpg(root.pid, signal.SIGKILL)
    with ImageDir.open(place / "images") as image:
        ids = [next(iter(image.records("ids", pid)))[0] for pid in (root.pid, *others)]
        assert len({one.files_id for one in ids}) == len({one.fs_id for one in ids}) == 2
        assert ids[1].files_id == ids[2].files_id and ids[1].fs_id == ids[2].fs_id
        assert [*image.records("fdinfo", ids[1].files_id)]


_BUSY = """
import os, random, threading, time
def one():
    while True:
        child = os.fork()
        if not child:
            time.sleep(random.uniform(0.001, 0.026))
            os._exit(0)
        os.waitpid(child, 0)
for _ in range(6):
    threading.Thread(target=one, daemon=True).start()
print(flush=True)
while True:
    time.sleep(100)
"""


def test_children_of_a_moment(engine: str, place: Path) -> None:
    """Some end at each step, all the time: there is an image all the same."""
    argv = [sys.executable, "-c", _BUSY]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as root:
        try:
            assert root.stdout and root.stdout.readline()
            for number in range(3):
                images = place / str(number)
                dump.dump(
                    DumpOptions(pid=root.pid, images_dir=images, leave_running=True, engine=engine)
                )
                assert (images / "inventory.img").exists()
        finally:
            os.killpg(root.pid, signal.SIGKILL)
