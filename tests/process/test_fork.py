# SPDX-License-Identifier: Apache-2.0
"""The fork engine: what it saves, and that the target does not notice a child it never had."""

import contextlib
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bystander import children, ckpt, look, python
from programs import PROGRAMS
from target import REPO, Ckpt, Target, Task, wait_until

from ckpt.image.directory import ImageDir
from ckpt.image.pages import PAGE, PageReader

pytestmark = pytest.mark.process

_NAMES = (
    *("anon_private", "file_private", "memfd_map", "hugetlb", "madvise", "mlock", "growsdown"),
    *("tls_threads", "threads_many", "regs", "restart_sleep", "fds_many", "sigactions"),
    *("sysv_shm", "subreaper", "creds_nobody", "vdso"),
)
_FILLED = """
import mmap
memory = mmap.mmap(-1, 192 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, len(memory), 4096):
    memory[at] = 1
"""


@pytest.mark.parametrize("program", [p for p in PROGRAMS if p.name in _NAMES], ids=lambda p: p.name)
def test_program(program, place):
    images = place / "images"
    with Target(program, place / "target") as target:
        Ckpt().dump(target, images, "-R", "--engine", "fork")
        target.judge("the target itself, running on", images)
        Ckpt().restore(target, images)
        target.judge("the restored copy", images)


def test_killed_after_it(place):
    """What is not to run on is stopped and copied as it is: exit code 0, and it is gone."""
    with python("") as task:
        assert ckpt("dump", "-t", task.pid, "-D", place / "images", "--engine", "fork") == (0, "")
        assert os.WTERMSIG(task.reap()) == signal.SIGKILL


def offspring(pid: int) -> list[int]:
    """The children of all threads."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for one in lists for child in one.read_text().split()]


def untouched(task: Task, before: tuple[object, ...]) -> None:
    assert not offspring(task.pid)
    wait_until(lambda: look(task.pid) == before, "target as it was before")


@contextlib.contextmanager
def dumping(pid: int, images: Path) -> Iterator[subprocess.Popen[str]]:
    """A dump that has made its child, which it is still copying: for half a second at least."""
    argv = [sys.executable, "-m", "ckpt", "dump", "-t", str(pid), "-D", str(images)]
    argv += ["-R", "--engine", "fork", "--max-rate", "384M"]
    with subprocess.Popen(argv, cwd=REPO, stderr=subprocess.PIPE, text=True) as dump:
        try:
            wait_until(lambda: offspring(pid) or dump.poll() is not None, "child")
            yield dump
        finally:
            dump.kill()


# --- the target does not notice

_WAITING = (
    _FILLED
    + """
told = []
signal.signal(signal.SIGCHLD, lambda *_: told.append(1))
def own_child():
    before, pid = len(told), os.fork()
    if not pid:
        os._exit(7)
    assert os.waitpid(-1, 0) == (pid, 7 << 8)
    while len(told) == before:
        signal.sigtimedwait([], 0.001)
    assert len(told) == before + 1
    try:
        raise SystemExit(f"a child: {os.waitpid(-1, os.WNOHANG)}")
    except ChildProcessError:
        pass
def main():
    while not os.path.exists(place + "/go"):
        signal.sigtimedwait([], 0.001)
    done = 0
    while not os.path.exists(place + "/stop"):
        own_child()
        done += 1
    signal.sigtimedwait([], 0.01)
    assert len(told) == done, (told, done)
    return f"ok {done}"
os.dup2(0, 1)
try:
    verdict = main()
except BaseException as error:
    verdict = repr(error)
with open(place + "/verdict", "w") as file:
    file.write(verdict)
"""
)


def test_waiting_is_not_disturbed(place):
    """A target waits for any child and handles SIGCHLD: it sees its own children, and only them."""
    with python(f"place = {str(place)!r}\n{_WAITING}") as task:
        with dumping(task.pid, place / "images") as dump:
            (place / "go").touch()
            assert not dump.communicate()[1]
            assert dump.returncode == 0
        (place / "stop").touch()
        verdict = place / "verdict"
        wait_until(lambda: verdict.exists() and verdict.read_text(), "verdict")
        word, _, count = verdict.read_text().partition(" ")
        assert word == "ok", verdict.read_text()
        assert int(count) > 0


_EXECUTING = (
    _FILLED
    + """
os.dup2(0, 1)
while not os.path.exists(place + "/go"):
    signal.sigtimedwait([], 0.001)
os.execv("/bin/sleep", ["sleep", "1000"])
"""
)


def test_executing_meanwhile(place):
    """The image is not touched by it, and the child goes all the same."""
    with python(f"place = {str(place)!r}\n{_EXECUTING}") as task:
        with dumping(task.pid, place / "images") as dump:
            (place / "go").touch()
            assert dump.communicate()[1] == ""
            assert dump.returncode == 0
        wait_until(lambda: os.readlink(f"/proc/{task.pid}/exe").endswith("sleep"), "exec")
        assert not offspring(task.pid)
        assert not task.ended()


def test_nothing_is_left(place):
    with python(_FILLED) as task:
        before = look(task.pid)
        with dumping(task.pid, place / "images") as dump:
            [child] = offspring(task.pid)
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            assert int(fields[35]) == 0, "an exit signal"
            adj = Path(f"/proc/{child}/oom_score_adj")
            wait_until(lambda: int(adj.read_text()) == 1000, "child that goes first")
            assert dump.communicate()[1] == ""
        untouched(task, before)
        assert not Path(f"/proc/{child}").exists()


# --- the image is of one instant

_SWEEPING = """
import mmap
memory = mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
anchor = ctypes.c_char.from_buffer(memory)
with open(place + "/address", "w") as file:
    file.write(str(ctypes.addressof(anchor)))
os.dup2(0, 1)
value = 0
while True:
    value += 1
    word = value.to_bytes(8, "little")
    for at in range(0, len(memory), 4096):
        memory[at:at + 8] = word
"""


def test_one_instant(place):
    """Pages are written in turn, at full speed: in the image only one sweep is under way."""
    images = place / "images"
    with python(f"place = {str(place)!r}\n{_SWEEPING}") as task:
        assert ckpt("dump", "-t", task.pid, "-D", images, "-R", "--engine", "fork") == (0, "")
        start = int((place / "address").read_text())
        found = []
        with ImageDir.open(images) as image, PageReader(image, "pagemap", task.pid) as reader:
            for run in reader:
                if run.end > start and run.vaddr < start + (32 << 20):
                    part = run.part(start, start + (32 << 20))
                    for at in range(part.offset, part.offset + part.nr_pages * PAGE, PAGE):
                        found += struct.unpack("<Q", os.pread(part.fd, 8, at))
    assert len(found) == (32 << 20) // PAGE
    assert found == sorted(found, reverse=True)
    assert found[0] - found[-1] <= 1


# --- what goes wrong

_NO_MORE = """
import resource
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
"""


def test_no_more_processes(place):
    with python(_NO_MORE) as task:
        before = look(task.pid)
        outcome = ckpt("dump", "-t", task.pid, "-D", place / "images", "-R", "--engine", "fork")
        assert outcome[0] == 7, outcome
        assert f"fork pid {task.pid}: Resource temporarily unavailable" in outcome[1]
        assert "RLIMIT_NPROC" in outcome[1]
        assert not (place / "images").exists()
        untouched(task, before)


def test_child_is_killed(place):
    with python(_FILLED) as task:
        before = look(task.pid)
        with dumping(task.pid, place / "images") as dump:
            [child] = offspring(task.pid)
            os.kill(child, signal.SIGKILL)
            said = dump.communicate()[1]
            assert dump.returncode == 1, said
            assert f"the copy of pid {task.pid}, pid {child}, was killed" in said
        assert not (place / "images").exists()
        untouched(task, before)


def test_we_are_killed(place):
    """The child dies with us, and is waited for, by whom we leave behind; who goes then, too."""
    with python(_FILLED) as task:
        before = look(task.pid)
        others = children()
        with dumping(task.pid, place / "images") as dump:
            wait_until(lambda: look(task.pid)[1] == "0", "end of the freeze")
            dump.kill()
        wait_until(lambda: not offspring(task.pid), "end of the child")
        untouched(task, before)
        for orphan in children() - others:
            os.waitpid(orphan, 0)
