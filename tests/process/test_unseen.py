# SPDX-License-Identifier: Apache-2.0
"""A page that changes without a fault that tells of it does not get into an image as it was before.

The kernel lets guard pages come and go without a word, and with them the protection. Here it is
taken away by the dumper's own userfaultfd, which nobody else writes down either.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from target import wait_until

from ckpt import dump, live
from ckpt.errors import CkptError
from ckpt.image.directory import ImageDir
from ckpt.image.pages import PAGE, PageReader
from ckpt.kernel import procfs
from ckpt.memory.coverage import Coverage
from ckpt.options import DumpOptions

pytestmark = pytest.mark.process

_WRITER = """
import ctypes, mmap, sys
memory = mmap.mmap(-1, 64 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[:] = b"a" * len(memory)
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
for line in sys.stdin:
    memory[int(line) * 4096] = ord("b")
    print("written", flush=True)
"""
_PAGE = 7


@pytest.fixture
def writer() -> Iterator[subprocess.Popen[str]]:
    """A process that writes to a page of its memory when it is told which."""
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", _WRITER]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as one:
        yield one
        one.kill()


def write_unseen(engine: live.Live, writer: subprocess.Popen[str], start: int) -> None:
    """Have the page written to without a fault."""
    assert writer.stdin and writer.stdout
    engine._tracker._uffd.protect([(start + _PAGE * PAGE, PAGE)], on=False)
    writer.stdin.write(f"{_PAGE}\n")
    writer.stdin.flush()
    assert writer.stdout.readline() == "written\n"


def options(writer: subprocess.Popen[Any], place: Path) -> DumpOptions:
    return DumpOptions(
        pid=writer.pid, images_dir=place, leave_running=True, engine="live"
    )  # its pipes lead to us, who are outside: they are saved all the same


@pytest.mark.parametrize("times", [1, 9])
def test_is_found(
    times: int,
    writer: subprocess.Popen[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is dumped once more, with that page copied in the freeze; in the end it is refused."""
    assert writer.stdout
    start, approach, left = int(writer.stdout.readline()), live.Live.approach, [times]

    def unseen(self: live.Live) -> None:
        approach(self)
        left[0] -= 1
        if left[0] >= 0:
            write_unseen(self, writer, start)

    monkeypatch.setattr(live.Live, "approach", unseen)
    if times > 1:
        monkeypatch.setattr(Coverage, "distrust", lambda self, ranges: None)
    images = tmp_path / "images"
    if times > 1:
        with pytest.raises(CkptError, match="changed unseen"):
            dump.dump(options(writer, images))
        assert not list(images.glob("*.img"))
        return
    dump.dump(options(writer, images))
    assert content(images, writer.pid, start + _PAGE * PAGE)[:2] == b"ba"


def content(images: Path, pid: int, address: int) -> bytes:
    """The saved page at an address."""
    with ImageDir.open(images) as image, PageReader(image, "pagemap", pid) as reader:
        for run in reader:
            if run.vaddr <= address < run.end:
                return os.pread(run.fd, PAGE, run.offset + address - run.vaddr)
    raise AssertionError(f"no page at {address:#x}")


_TREE = """
import os, signal
if not os.fork():
    if not os.fork():
        signal.pause()
    signal.pause()
signal.pause()
"""


def test_who_leaves_the_tree_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parent ends just before the freeze, so it is somebody else's: dumped without it."""
    approach = live.Live.approach
    with subprocess.Popen([sys.executable, "-c", _TREE], start_new_session=True) as root:
        try:
            middle = wait_for_child(root.pid)
            leaf = wait_for_child(middle)

            def orphan(self: live.Live) -> None:
                approach(self)
                if self.pid == leaf and not procfs.is_ending(middle):
                    os.kill(middle, signal.SIGKILL)
                    wait_until(lambda: procfs.stat(leaf).ppid != middle, "orphan")

            monkeypatch.setattr(live.Live, "approach", orphan)
            images = tmp_path / "images"
            dump.dump(
                DumpOptions(pid=root.pid, images_dir=images, leave_running=True, engine="live")
            )
            with ImageDir.open(images) as image:
                found = [tree.pid for tree, _ in image.records("pstree")]
            assert found == [root.pid, middle]
        finally:
            root.kill()
            os.kill(leaf, signal.SIGKILL)
            os.waitpid(leaf, 0)


_CHILD = """
import os, signal
if not os.fork():
    signal.signal(signal.SIGUSR1, lambda *_: os.execv("/bin/sleep", ["sleep", "1000"]))
    while True:
        signal.pause()
signal.pause()
"""


def test_a_child_that_executes_another_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does just before the freeze: what was saved of it is of no use; it is dumped anew."""
    approach = live.Live.approach
    with subprocess.Popen([sys.executable, "-c", _CHILD], start_new_session=True) as root:
        child = wait_for_child(root.pid)
        try:
            wait_until(lambda: procfs.status(child).sig_cgt >> 9 & 1 == 1, "handler")

            def another(self: live.Live) -> None:
                approach(self)
                if self.pid == child and procfs.stat(child).comm != "sleep":
                    os.kill(child, signal.SIGUSR1)
                    wait_until(lambda: procfs.stat(child).comm == "sleep", "another program")

            monkeypatch.setattr(live.Live, "approach", another)
            images = tmp_path / "images"
            dump.dump(options(root, images))
            with ImageDir.open(images) as image:
                assert image.read("core", child).tc.comm == "sleep"
        finally:
            root.kill()
            root.wait()
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def wait_for_child(pid: int) -> int:
    wait_until(lambda: len(procfs.children(pid)) == 1, "child")
    return procfs.children(pid)[0]
