# SPDX-License-Identifier: Apache-2.0
"""A page that changes without a fault that tells of it does not get into an image as it was before.

The kernel lets guard pages come and go without a word, and with them the protection. Here it is
taken away by the dumper's own userfaultfd, which nobody else writes down either.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt import dump, live
from ckpt.errors import CkptError
from ckpt.image.directory import ImageDir
from ckpt.image.pages import PAGE, PageReader
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


def options(writer: subprocess.Popen[str], place: Path) -> DumpOptions:
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
