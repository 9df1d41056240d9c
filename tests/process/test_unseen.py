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
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
madvise = ctypes.CDLL(None).madvise
madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
print(address, flush=True)
for line in sys.stdin:
    page, *guard = line.split()
    memory[int(page) * 4096] = ord("b")
    if guard and madvise(address + int(page) * 4096, 4096, 102):  # MADV_GUARD_INSTALL
        sys.exit("no guard page")
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
    engine._tracker._uffd.protect([(start + _PAGE * PAGE, PAGE)], on=False)
    tell(writer, f"{_PAGE}\n")


def tell(writer: subprocess.Popen[str], line: str) -> None:
    """Have the page written to; and be a guard page then, if the line says so."""
    assert writer.stdin and writer.stdout
    writer.stdin.write(line)
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


def test_a_guard_page_comes_up_at_last(
    writer: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is in the log, so that it is to be copied in the freeze, which it cannot be."""
    assert writer.stdout
    start, approach, left = int(writer.stdout.readline()), live.Live.approach, [1]

    def guarded(self: live.Live) -> None:
        approach(self)
        left[0] -= 1
        if left[0] >= 0:
            tell(writer, f"{_PAGE} guard\n")

    monkeypatch.setattr(live.Live, "approach", guarded)
    images = tmp_path / "images"
    dump.dump(options(writer, images))
    assert left[0] < 0
    assert content(images, writer.pid, start)[:1] == b"a"
    with pytest.raises(AssertionError, match="no page"):
        content(images, writer.pid, start + _PAGE * PAGE)


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
