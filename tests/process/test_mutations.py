# SPDX-License-Identifier: Apache-2.0
"""Damaged images against the whole reading side of a restore, and against real restores.

The image layer has a fuzz of its own (tests/unit/image); this one goes a level up. A damaged image
is refused with a CkptError, or by luck restored: nothing else may happen, and nothing be left.
"""

import gc
import os
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from select import epoll

import pytest
from bystander import children, ckpt, running, tiny_elf
from target import Task

from ckpt import cli
from ckpt.errors import CkptError
from ckpt.image.directory import ImageDir
from ckpt.image.pages import PageReader
from ckpt.options import RestoreOptions
from ckpt.saved import Files, read
from tests.unit.image.test_fuzz import mutate

pytestmark = pytest.mark.process

MUTATIONS = 10_000
RESTORES = 300
SEED = 20140515
_NOBODY = 65534
_SLOWEST = 5  # seconds, for one image


def descriptors(place):
    """One of many kinds, for a target to inherit; closed here when it has them."""
    reader, writer = os.pipe()
    os.write(writer, b"queued")
    one, other = socket.socketpair()
    one.send(b"queued too")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place / "listener"))
    listener.listen()
    inet = socket.socket()
    inet.bind(("127.0.0.1", 0))
    memfd = os.memfd_create("content")
    os.write(memfd, b"x" * 5000)
    events = epoll()
    events.register(reader)
    regular = os.open(place / "regular", os.O_RDWR | os.O_CREAT, 0o666)
    os.mkfifo(place / "fifo", 0o666)
    fifo = os.open(place / "fifo", os.O_RDWR)
    ghost = os.open(place / "ghost", os.O_RDWR | os.O_CREAT, 0o666)
    os.unlink(place / "ghost")
    sockets = [each.detach() for each in (one, other, listener, inet)]
    counter = os.eventfd(3)
    return [reader, writer, memfd, os.dup(events.fileno()), regular, fifo, ghost, counter, *sockets]


@pytest.fixture
def place():
    """On tmpfs: ten thousand images are written. A damaged name may lead a socket beside it."""
    before = set(Path("/dev/shm").iterdir())
    directory = Path(tempfile.mkdtemp(prefix="ckpt-test-", dir="/dev/shm"))
    directory.chmod(0o777)
    yield directory
    shutil.rmtree(directory)
    for stray in set(Path("/dev/shm").glob("ckpt-*")) - before:
        if stray.is_socket() and stray.stat().st_uid == _NOBODY:
            stray.unlink()


def dumped(place, passed=()):
    """The image of a tiny program that is gone, as name and content of each file."""
    with running([str(tiny_elf(place / "tiny"))], pass_fds=passed) as task:
        assert ckpt("dump", "-t", task.pid, "-D", place / "images") == (0, "")
        task.reap()
    return {file.name: file.read_bytes() for file in (place / "images").iterdir()}


def damaged(image, images, random_):
    """Damage one file of it; a second of the same name heals it."""
    name = random_.choice([name for name, data in image.items() if not name.startswith("stats-")])
    data = image[name]
    for _ in range(random_.choice((1, 1, 2, 8))):
        data = mutate(data, random_)
    (images / name).write_bytes(data)
    return name


def read_all(images):
    """All that a restore reads and makes before it makes a task."""
    with ExitStack() as stack:
        image = stack.enter_context(ImageDir.open(images))
        saved = read(image)
        for pid in saved.tasks:
            for _ in stack.enter_context(PageReader(image, "pagemap", pid)):
                pass
        stack.enter_context(Files(image, saved, RestoreOptions(images_dir=str(images))))


def too_slow(*_):
    raise TimeoutError("hangs")


def attempt(images):
    """What came of one image: an empty word if that is what should."""
    signal.alarm(_SLOWEST)
    try:
        read_all(images)
    except CkptError:
        return ""
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno} {frame.name})"
    finally:
        signal.alarm(0)
    return ""


def read_many(image, images, count):
    """Read so many damaged images without any privilege; returns what should not have come."""
    random_ = random.Random(SEED)
    os.chdir("/")
    os.setgroups([])
    os.setresgid(*[_NOBODY] * 3)
    os.setresuid(*[_NOBODY] * 3)
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    signal.signal(signal.SIGALRM, too_slow)
    assert attempt(images) == ""
    read_all(images)
    found = Counter()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(count):
        name = damaged(image, images, random_)
        if what := attempt(images):
            found[f"{name}: {what}"] += 1
        if len(os.listdir("/proc/self/fd")) != before:
            gc.collect()
        if (now := len(os.listdir("/proc/self/fd"))) != before:
            found[f"{name}: {now - before} descriptors left open (mutation {number})"] += 1
            before = now
        (images / name).write_bytes(image[name])
    return found


def test_only_a_ckpt_error_comes_of_reading_a_damaged_image(place):
    os.setegid(_NOBODY), os.seteuid(_NOBODY)  # whose they are, for nobody to make them again
    try:
        passed = descriptors(place)
    finally:
        os.seteuid(0), os.setegid(0)
    try:
        image = dumped(place, passed)
    finally:
        for fd in passed:
            os.close(fd)
    for path in (place / "images", *(place / "images").iterdir(), place / "listener"):
        path.chmod(0o777)
    report = place / "report"
    report.touch()
    report.chmod(0o666)
    child = os.fork()
    if not child:
        code = 1
        try:
            found = read_many(image, place / "images", MUTATIONS)
            report.write_text("\n".join(f"{n} x {what}" for what, n in found.most_common(40)))
            code = 0
        except BaseException:
            report.write_text(traceback.format_exc())
        finally:
            os._exit(code)
    began = time.monotonic()
    assert os.waitpid(child, 0)[1] == 0, report.read_text()
    assert not report.read_text(), report.read_text()
    assert time.monotonic() - began < 60


# --- real restores

CODES = {0, *(kind.exit_code for kind in (CkptError, *CkptError.__subclasses__()))}


def restore(images):
    """Restore in a child of ours; returns its exit code."""
    child = os.fork()
    if not child:
        os.setsid()
        code = -1
        try:
            with (images.parent / "said").open("w", errors="backslashreplace") as sys.stderr:
                code = cli.run(["restore", "-d", "-D", str(images)])
        finally:
            os._exit(code & 0xFF)
    task = Task(child)
    try:
        return os.waitstatus_to_exitcode(task.reap(_SLOWEST))
    finally:
        task.close()


def test_a_restore_of_a_damaged_image_leaves_nothing(place):
    image, random_ = dumped(place), random.Random(SEED)
    ours = children()
    restored = 0
    for number in range(RESTORES):
        name = damaged(image, place / "images", random_)
        code = restore(place / "images")
        said = (place / "said").read_text()
        left = reap(children() - ours)
        restored += code == 0
        what = f"mutation {number} of {name}: exit code {code}: {said}"
        assert code in CODES, what
        assert not left or code == 0, f"{what}: {left} left"
        (place / "images" / name).write_bytes(image[name])
    assert restored > RESTORES // 20  # or no damage got past the first look


def reap(pids):
    """Kill and reap; returns those that were alive."""
    alive = []
    for pid in pids:
        if os.waitpid(pid, os.WNOHANG) == (0, 0):
            alive.append(pid)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return alive
