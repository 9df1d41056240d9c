# SPDX-License-Identifier: Apache-2.0
"""A live dump is of one instant, byte for byte, and its target does not notice.

The targets (tests/programs/mutate_*.c) change their memory at full speed and check all of it all
the time, while they are dumped and when they are restored.
"""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from bystander import children, ckpt, python
from programs import Program, program
from target import DEADLINE, Ckpt, Target, Task, wait_until
from test_bad_input import refused

from ckpt.errors import CkptError, TargetDied, Unsupported
from ckpt.image.directory import ImageDir
from ckpt.kernel import maps, procfs

pytestmark = pytest.mark.process

MUTATING = (
    program("mutate_sweep"),
    program("mutate_maps"),
    program("mutate_maps_guards", "guards", source="mutate_maps"),
    program("mutate_kernel"),
    program("mutate_kernel_wakes", "wakes", source="mutate_kernel"),
    program("mutate_io"),
    program("mutate_shared"),
)
BESIDES = (
    program("mutate_shared_sizes", "sizes", source="mutate_shared"),
    program("mutate_shared_deleted", "deleted", source="mutate_shared"),
)
OWN_AREAS = range(1 << 40, 1 << 41)  # where mutate.h has what a target attaches itself
TIMES = 3


@pytest.fixture(params=["disk", "memory"])
def images(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Where images go: gaps in a file are opened and closed on the one, and not on the other."""
    directory = Path(tempfile.mkdtemp(dir="/dev/shm" if request.param == "memory" else None))
    yield directory
    shutil.rmtree(directory)


def traces(pid: int) -> dict[str, object]:
    """What a dump could leave with a process that runs on."""
    mappings = maps.smaps(pid)
    return {
        "userfaultfd": [one for one in mappings if one.vm_flags & {"um", "uw", "ui"}],
        "descriptors": {fd: procfs.fd_link(pid, fd) for fd in procfs.fds(pid)},
        "tracer": procfs.status(pid).tracer_pid,
        "files mapped": sorted({one.path for one in mappings if one.path}),
        "segments": [
            one for one in mappings if one.path.startswith("/SYSV") and one.start not in OWN_AREAS
        ],
    }


def dump(target: Target, images: Path, engine: str) -> None:
    """Dump it and let it run on; whatever goes wrong, its own word for it comes first."""
    try:
        Ckpt().dump(target, images, "-R", "--engine", engine)
    finally:
        if (target.directory / "verdict").exists() or target.task.ended():
            target.judge("the target itself, dumped", images)


def dump_and_restore(target: Target, images: Path, engine: str, times: int) -> None:
    """Dump it some times as it runs; then restore each image, and have the copy check itself."""
    before = traces(target.pid)
    places = [images / str(number) for number in range(times)]
    for place in places:
        dump(target, place, engine)
        assert traces(target.pid) == before
    target.judge("the target itself, running on", places[-1])
    for place in places:
        Ckpt().restore(target, place)
        target.judge(f"the copy from {place}", place)


@pytest.mark.parametrize("mutating", MUTATING, ids=lambda one: one.name)
def test_live(mutating: Program, place: Path, images: Path) -> None:
    with Target(mutating, place / "target") as target:
        dump_and_restore(target, images, "live", TIMES)


@pytest.mark.parametrize("mutating", BESIDES, ids=lambda one: one.name)
def test_live_beside_memory(mutating: Program, place: Path) -> None:
    """The size of a memfd and the content of a deleted file are of the same instant."""
    with Target(mutating, place / "target") as target:
        dump_and_restore(target, place, "live", TIMES)


def dumped_or(error: type[CkptError], words: str, target: Target, images: Path) -> bool:
    """Whether a dump was made; else it failed in this way, and did no harm."""
    code, text = ckpt("dump", "-t", target.pid, "-D", images, "-R", "--engine", "live")
    assert not target.task.ended(), text
    if code == error.exit_code:
        assert words in text
        assert not images.exists()
        return False
    assert code == 0, text
    return True


def test_live_with_children(place: Path) -> None:
    """They come and go while it is dumped; what they do with its memory is as it was."""
    places = [place / str(number) for number in range(TIMES)]
    with Target(program("mutate_children"), place / "target") as target:
        for images in places:
            alone = partial(dumped_or, Unsupported, "in a vfork", target, images)
            wait_until(alone, "moment without a vfork", 2 * DEADLINE)
        target.judge("the target itself, running on", places[-1])
        for images in places:
            Ckpt().restore(target, images)
            target.judge(f"the copy from {images}", images)


@pytest.mark.parametrize("mutating", (*MUTATING, *BESIDES), ids=lambda one: one.name)
def test_stop(mutating: Program, place: Path) -> None:
    """The same with the engine that has no such promise to keep: are the programs right?"""
    with Target(mutating, place / "target") as target:
        dump_and_restore(target, place, "stop", 1)


@pytest.mark.parametrize("engine", ["live", "fork", "stop"])
def test_child_born_late(engine: str, place: Path) -> None:
    """The first look finds none. The directory is made after it, and so is a child, to stay.

    It is taken in, in the freeze if it must be.
    """
    images = place / "images"
    source = f"""
import threading
def late():
    while not os.path.exists('{images}'):
        pass
    if not os.fork():
        os.execv('/bin/sleep', ['sleep', '1000'])
threading.Thread(target=late, daemon=True).start()
"""
    ours = children()
    with python(source) as task:
        outcome = ckpt("dump", "-t", task.pid, "-D", images, "-R", "--engine", engine)
    for orphan in children() - ours:
        os.kill(orphan, signal.SIGKILL)
        os.waitpid(orphan, 0)
    assert outcome == (0, "")
    with ImageDir.open(images) as image:
        parent, child = (tree for tree, _ in image.records("pstree"))
    assert (parent.pid, child.ppid) == (task.pid, task.pid)


def test_live_with_execs(place: Path) -> None:
    """A dump of a program that is no more says so; sooner or later there is time for one."""
    images = place / "images"
    with Target(program("mutate_exec"), place / "target") as target:
        there = partial(dumped_or, TargetDied, "executed another program", target, images)
        wait_until(there, "program that stays", 2 * DEADLINE)
        target.judge("the target itself, running on", images)
        Ckpt().restore(target, images)
        target.judge("the copy", images)


def test_live_with_a_file_that_grows(place: Path) -> None:
    """It is mapped, and as large as the image says when the dump has killed who has it grow."""
    source = f"""
import mmap, threading
with open('{place}/grows', 'w+b') as file:
    file.truncate(4096)
    memory = mmap.mmap(file.fileno(), 4096)
def grow():
    for size in range(4097, 1 << 40):
        os.truncate('{place}/grows', size)
threading.Thread(target=grow, daemon=True).start()
"""
    words = ("-D", place / "images")
    with python(source) as task:
        assert ckpt("dump", "-t", task.pid, *words, "--engine", "live") == (0, "")
        task.reap()
        assert ckpt("restore", "-d", *words) == (0, "")
        Task(task.pid).close()


def test_aio_is_refused(place: Path) -> None:
    """What io_submit(2) has begun is written with no thread in the kernel that could be awaited."""
    with python("context = ctypes.c_ulong(); call(206, 8, ctypes.byref(context))") as task:
        refused(task, place, Unsupported, r"/\[aio\].*not supported", "io_setup")
