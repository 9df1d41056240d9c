# SPDX-License-Identifier: Apache-2.0
"""A first thread that ends at any moment of a dump, while another goes on: there is an image.

CKPT_MOMENTS says how many moments are tried, CKPT_SEED chooses others.
"""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from programs import Program
from target import Ckpt, Criu, Target, wait_until
from test_ending import at_call

from ckpt import dump
from ckpt.errors import TargetDied
from ckpt.image.directory import ImageDir
from ckpt.kernel import procfs
from ckpt.options import DumpOptions
from ckpt.task.ended import is_ended
from ckpt.task.restart import Sleeps

pytestmark = pytest.mark.process

_TREE = """
import ctypes, os, signal, sys, threading
def execute():
    os.read(0, 1)
    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(1000)"])
if bool(os.fork()) == (sys.argv[1] == "root"):
    threading.Thread(target=threading.Event().wait).start()
    if sys.argv[2] == "execute":
        threading.Thread(target=execute).start()
        signal.pause()
    os.read(0, 1)
    ctypes.CDLL(None).syscall(60, 7)
while True:
    signal.pause()
"""
MOMENTS = int(os.environ.get("CKPT_MOMENTS", "1"))
WAYS = [("live", "root"), ("fork", "child"), ("stop", "root")]
if MOMENTS > 1:
    WAYS += [("live", "child"), ("fork", "root"), ("stop", "child")]


class Tree:
    """A process and a child; one of them has two threads, of which the first can be ended."""

    def __init__(self, who: str, do: str = "end") -> None:
        argv = [sys.executable, "-c", _TREE, who, do]
        self.root = subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True)
        wait_until(lambda: bool(procfs.children(self.root.pid)), "child")
        self.pid = self.root.pid if who == "root" else procfs.children(self.root.pid)[0]
        count = 3 if do == "execute" else 2
        wait_until(lambda: len(procfs.threads(self.pid)) == count, "threads")

    def __enter__(self) -> "Tree":
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self.root.pid, signal.SIGKILL)
        self.root.communicate()

    def end_first_thread(self) -> None:
        """Have it end; if it is stopped it will, as soon as it goes on."""
        assert self.root.stdin
        os.write(self.root.stdin.fileno(), b".")
        wait_until(self.has_begun, "end")

    def has_begun(self) -> bool:
        """Whether it has ended, or stands still."""
        return procfs.stat(self.pid).state in "Zt"

    def is_gone(self) -> bool:
        """Whether it has ended."""
        return procfs.stat(self.pid).state == "Z"


@pytest.mark.parametrize(("engine", "who"), WAYS)
def test_a_first_thread_ends(engine: str, who: str, place: Path) -> None:
    def options(tree: Tree, images: Path) -> DumpOptions:
        return DumpOptions(pid=tree.root.pid, images_dir=images, leave_running=True, engine=engine)

    with Tree(who) as tree:
        dump.dump(options(tree, place / "first"))
        with at_call(0, lambda: None) as calls:
            dump.dump(options(tree, place / "all"))
    seed = int(os.environ.get("CKPT_SEED", random.randrange(1 << 32)))
    for moment in random.Random(seed).sample(range(calls[0]), MOMENTS):
        images = place / str(moment)
        with Tree(who) as tree:
            with at_call(moment, tree.end_first_thread):
                dump.dump(options(tree, images))
            wait_until(tree.is_gone, f"end, {seed=}, {moment=}")
            assert len(procfs.threads(tree.pid)) == 2, (seed, moment)
            with ImageDir.open(images) as image:
                (item,) = [one for one, _ in image.records("pstree") if one.pid == tree.pid]
                leader, *others = [image.read("core", tid) for tid in item.threads]
            assert len(others) == 1, (seed, moment)
            assert leader.HasField("thread_info") is not is_ended(leader), (seed, moment)


@pytest.mark.parametrize("who", ["root", "child"])
@pytest.mark.parametrize("running", [True, False], ids=["running", "killed"])
def test_it_ends_when_it_is_seized(
    who: str, running: bool, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is ever told of it then: it is no more to be waited for."""
    with Tree(who) as tree:
        look = Sleeps.look

        def ended_by_then(self: Sleeps, tids: Iterable[int]) -> None:
            look(self, tids)
            if not tree.has_begun():
                tree.end_first_thread()

        monkeypatch.setattr(Sleeps, "look", ended_by_then)
        images = place / "images"
        dump.dump(
            DumpOptions(pid=tree.root.pid, images_dir=images, leave_running=running, engine="stop")
        )
        with ImageDir.open(images) as image:
            assert is_ended(image.read("core", tree.pid))
        if running:
            assert len(procfs.threads(tree.pid)) == 2 and tree.is_gone()


@pytest.mark.parametrize("who", ["root", "child"])
def test_another_executes_when_they_are_seized(
    who: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the first one's end, and has its id then: of its own nothing is told."""
    with Tree(who, "execute") as tree:
        look = Sleeps.look

        def executing_by_then(self: Sleeps, tids: Iterable[int]) -> None:
            look(self, tids)
            if len(procfs.threads(tree.pid)) == 3:
                tree.end_first_thread()

        monkeypatch.setattr(Sleeps, "look", executing_by_then)
        options = DumpOptions(pid=tree.root.pid, images_dir=place / "images", leave_running=True)
        if who == "root":
            with pytest.raises(TargetDied, match="executed another program"):
                dump.dump(options)
        else:
            dump.dump(options)
        assert procfs.threads(tree.pid) == [tree.pid]
        assert procfs.status(tree.pid).tracer_pid == 0


def test_criu_refuses_the_image(place: Path) -> None:
    """It would take the record for that of a thread that lives, and has none of its registers."""
    images = place / "images"
    with Target(Program("leader_gone", "leader_gone"), place / "target") as target:
        Ckpt().dump(target, images)
        command = [*Criu().command, "restore", "-d", "-D", str(images), "-o", "criu.log"]
        assert subprocess.run(command, check=False).returncode == 1
        assert "missed for non-zombie" in (images / "criu.log").read_text()
        assert not os.path.exists(f"/proc/{target.pid}")
        Ckpt().restore(target, images)
        target.judge("the restored copy", images)
