# SPDX-License-Identifier: Apache-2.0
"""What cannot be done is refused: with its exit code, its reason and a hint, and nothing harmed."""

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bystander import ckpt, look, python, running, tiny_elf
from target import REPO

from ckpt.errors import (
    ImageError,
    NoSuchTask,
    NotPermitted,
    OptionsError,
    PidTaken,
    Unsupported,
)
from ckpt.image import pb
from ckpt.image.directory import ImageDir

pytestmark = pytest.mark.process

_NOBODY = 65534


def said(outcome, kind, message, hint=""):
    """The exit code is the class's, the words are there, and it is no bug of ours."""
    code, text = outcome
    assert "internal error" not in text and "Traceback" not in text, text
    assert code == kind.exit_code, text
    first, _, second = text.partition("\n  hint: ")
    assert first.startswith("ckpt: "), text
    assert re.search(message, first), text
    assert bool(second) if hint else True, f"no hint: {text}"
    assert re.search(hint, second), text


def refused(task, place, kind, message, hint="", options=()):
    """A dump that fails and leaves both target and directory as they were."""
    images = place / "images"
    before = look(task.pid)
    outcome = ckpt("dump", "-t", task.pid, "-D", images, *options)
    said(outcome, kind, message.replace("PID", str(task.pid)), hint)
    assert look(task.pid) == before
    assert not images.exists()


def as_nobody(*words):
    """Run our command without privileges, imported before: nobody may not read all of Python."""
    program = (
        "import os, sys, ckpt.cli.stories, ckpt.dump, ckpt.restore, tempfile, traceback, signal\n"
        f"os.setgroups([]); os.setresgid(*[{_NOBODY}] * 3); os.setresuid(*[{_NOBODY}] * 3)\n"
        "sys.exit(ckpt.cli.run(sys.argv[1:]))"
    )
    argv = [sys.executable, "-c", program, *map(str, words)]
    done = subprocess.run(argv, cwd=REPO, stderr=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stderr


# --- targets that cannot be dumped

HOLDS = {
    "io_uring": (
        "assert call(425, 4, ctypes.create_string_buffer(120)) == 3",
        r"fd 3 of pid PID \(anon_inode:\[io_uring\]\): not supported", "epoll",
    ),
    "perf": (
        "assert call(298, struct.pack('<IIQ112x', 1, 128, 0), 0, -1, -1, 0) == 3",
        r"fd 3 of pid PID \(anon_inode:\[perf_event\]\): not supported", "profiler",
    ),
    "bpf": (
        "assert call(321, 0, struct.pack('<IIII112x', 2, 4, 4, 1), 128) == 3",
        r"fd 3 of pid PID \(anon_inode:bpf-map\): not supported", "BPF",
    ),
    "userfaultfd": (
        "assert call(323, 0) == 3",
        r"fd 3 of pid PID \(anon_inode:\[userfaultfd\]\): not supported", "page faults",
    ),
    "aio": (
        "assert call(206, 8, ctypes.create_string_buffer(8)) == 0",
        r"mapping 0x\w+-0x\w+ of pid PID \(/\[aio\] \(deleted\)\): not supported", "AIO context",
    ),
    "half_a_mount": (
        "assert call(430, b'tmpfs', 0) == 3",
        r"fd 3 of pid PID \(anon_inode:\[fscontext\]\): not supported", "close it",
    ),
    "namespace": (
        "assert os.open('/proc/self/ns/net', os.O_RDONLY) == 3",
        r"fd 3 of pid PID \(net:\[\d+\]\): not supported", "close it",
    ),
    "in_flight": (
        "import select\na, b = socket.socketpair(); e = select.epoll()\n"
        "socket.send_fds(a, [b'x'], [e.fileno()]); e.close()",
        r"a descriptor in flight in a socket of pid PID \(anon_inode:\[eventpoll\]\)", "received",
    ),
    "vfork": (
        "os.dup2(0, 1)\nif not libc.vfork():\n libc.prctl(1, 9)",
        r"pid \d+ has the memory of who waits for it in a vfork", "try again",
    ),
    "uts": ("assert not libc.unshare(0x04000000)", "pid PID is in another uts namespace", "inside"),
    "net": ("assert not libc.unshare(0x40000000)", "pid PID is in another net namespace", "inside"),
    "mnt": ("assert not libc.unshare(0x00020000)", "pid PID is in another mnt namespace", "inside"),
    "large_ghost": (
        "f = os.open('/tmp', os.O_TMPFILE | os.O_RDWR); os.write(f, b'x' * (2 << 20))",
        "2097152 bytes", "--ghost-limit",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOLDS)
def test_a_target_that_holds_what_cannot_be_dumped(name, place):
    source, message, hint = HOLDS[name]
    with python(source) as task:
        try:
            refused(task, place, Unsupported, message, hint)
        finally:
            for child in Path(f"/proc/{task.pid}/task/{task.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)


def test_a_session_that_goes_on_without_it(place):
    with python("", session=False) as task:
        refused(task, place, Unsupported, f"in session {os.getsid(0)}", "--shell-job")


def test_a_32_bit_program(place):
    with running([str(tiny_elf(place / "tiny32", bits=32))]) as task:
        refused(task, place, Unsupported, "pid PID runs a 32-bit program", "64-bit")


def test_a_thread(place):
    source = "import threading; threading.Thread(target=signal.pause, daemon=True).start()"
    with python(source) as task:
        (tid,) = {int(tid) for tid in os.listdir(f"/proc/{task.pid}/task")} - {task.pid}
        outcome = ckpt("dump", "-t", tid, "-D", place / "images")
        said(outcome, OptionsError, f"pid {tid} is a thread", f"its process, {task.pid}")


def test_no_such_process(place):
    child = subprocess.Popen(["true"])
    child.wait()
    said(ckpt("dump", "-t", child.pid, "-D", place / "images"), NoSuchTask, f"pid {child.pid}")
    said(ckpt("dump", "-t", 0, "-D", place / "images"), OptionsError, "0")
    said(ckpt("dump", "-t", 2**31, "-D", place / "images"), OptionsError, str(2**31))
    assert not (place / "images").exists()


def test_a_kernel_thread(place):
    if "kthreadd" not in Path("/proc/2/comm").read_text():
        pytest.skip("no kernel threads in this pid namespace")
    said(ckpt("dump", "-t", 2, "-D", place / "images"), Unsupported, "pid 2 .*kernel thread")


def test_a_zombie(place):
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    outcome = ckpt("dump", "-t", child.pid, "-D", place / "images")
    said(outcome, Unsupported, f"pid {child.pid} .*zombie", f"parent, {os.getpid()}")
    child.wait()


def test_ourselves_and_whom_we_come_from(place):
    words = f"exec {sys.executable} -m ckpt dump -t $$ -D {place}/images"
    done = subprocess.run(["sh", "-c", words], stderr=subprocess.PIPE, text=True, check=False)
    said((done.returncode, done.stderr), OptionsError, "ckpt itself", "somewhere else")
    outcome = ckpt("dump", "-t", os.getpid(), "-D", place / "images")
    said(outcome, OptionsError, "an ancestor", "somewhere else")


def test_a_traced_target(place):
    with running([str(tiny_elf(place / "tiny"))]) as task:
        seize = f"assert not libc.ptrace(0x4206, {task.pid}, 0, 0)"
        with python(seize) as tracer:
            tracing = f"pid {task.pid} is traced by pid {tracer.pid}"
            refused(task, place, NotPermitted, tracing, "debugger")


def test_without_privileges(place):
    place.chmod(0o777)
    with running([str(tiny_elf(place / "tiny"))]) as task:
        before = look(task.pid)
        outcome = as_nobody("dump", "-t", task.pid, "-D", place / "images")
        said(outcome, NotPermitted, f"dump of pid {task.pid}", "as root")
        assert look(task.pid) == before and not (place / "images").exists()


# --- where to


def test_a_directory_that_cannot_be(place):
    (place / "file").touch()
    with running([str(tiny_elf(place / "tiny"))]) as task:
        for images, why in (("no/such", "No such file"), ("file", "Not a directory")):
            outcome = ckpt("dump", "-t", task.pid, "-D", place / images)
            said(outcome, ImageError, f"{place / images}: {why}")
            outcome = ckpt("dump", "-t", task.pid, "-D", place / images, "-o", "dump.log")
            said(outcome, ImageError, f"{place / images}.*{why}")
        (place / "used").mkdir()
        (place / "used/core-1.img").touch()
        outcome = ckpt("dump", "-t", task.pid, "-D", place / "used")
        said(outcome, ImageError, "there is an image already", "new directory")
        assert [entry.name for entry in (place / "used").iterdir()] == ["core-1.img"]


@contextlib.contextmanager
def small_disk(path, size):
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize("size", ["4k", "16k", "64k", "1m"])
def test_a_disk_that_is_full_half_way(place, size):
    with python("big = bytearray(os.urandom(8 << 20))") as task, small_disk(place / "d", size):
        before = look(task.pid)
        outcome = ckpt("dump", "-t", task.pid, "-D", place / "d/images")
        said(outcome, ImageError, "No space left on device")
        assert look(task.pid) == before
        assert not list((place / "d").iterdir())


@pytest.mark.parametrize("limit", [0, 100, 4096, 1 << 20])
def test_a_limit_on_the_size_of_files(place, limit):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    with python("big = bytearray(os.urandom(8 << 20))") as task:
        before = look(task.pid)
        outcome = ckpt("dump", "-t", task.pid, "-D", place / "images", preexec_fn=limited)
        said(outcome, ImageError, "File too large")
        assert look(task.pid) == before and not (place / "images").exists()


# --- restores that cannot be


@pytest.fixture
def image(place):
    """The image of a tiny program that is gone; its executable is in the same place."""
    with running([str(tiny_elf(place / "tiny"))]) as task:
        assert ckpt("dump", "-t", task.pid, "-D", place / "images") == (0, "")
        task.reap()
    return place / "images"


def pid_of(images):
    (core,) = images.glob("core-*.img")
    return int(core.stem.removeprefix("core-"))


def not_restored(images, kind, message, hint=""):
    pid = pid_of(images) if list(images.glob("core-*.img")) else 0
    said(ckpt("restore", "-d", "-D", images), kind, message, hint)
    assert not pid or not Path(f"/proc/{pid}").exists()


def test_it_can_be_restored_when_nothing_is_wrong(image):
    assert ckpt("restore", "-d", "-D", image) == (0, "")
    pid = pid_of(image)
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


def rewrite(images, kind, number, change):
    """Change the one message of an image file."""
    with ImageDir.open(images) as opened:
        message = opened.read(kind, number)
    change(message)
    path = images / f"{kind}-{number}.img"
    path.unlink()
    with ImageDir(str(images), os.open(images, os.O_RDONLY)) as opened:
        opened.write(kind, message, id=number)


def test_no_image(place, image):
    not_restored(place / "nowhere", ImageError, "nowhere: No such file or directory")
    (place / "empty").mkdir()
    not_restored(place / "empty", ImageError, "no inventory.img", "finished")
    not_restored(place / "tiny", ImageError, "Not a directory")
    (image / "inventory.img").write_bytes(b"garbage")
    not_restored(image, ImageError, r"inventory.img")


def test_every_file_cut_short(image):
    whole = {entry: entry.read_bytes() for entry in image.iterdir()}
    for file, data in whole.items():
        if file.name.startswith(("stats-", "timens", "seccomp")):
            continue
        for length in {0, 1, 4, 8, len(data) // 2, len(data) - 1}:
            file.write_bytes(data[:length])
            code, text = ckpt_restore_and_kill(image)
            if not data or (length == 8 and file.name.startswith("fdinfo")):
                continue  # a process without descriptors
            assert code == ImageError.exit_code, f"{file.name} cut to {length}: {code} {text}"
            assert file.name in text, text
        file.write_bytes(data)


def ckpt_restore_and_kill(images):
    outcome = ckpt("restore", "-d", "-D", images)
    if outcome[0] == 0:
        os.kill(pid_of(images), signal.SIGKILL)
        os.waitpid(pid_of(images), 0)
    return outcome


def test_every_file_missing(image):
    for file in list(image.iterdir()):
        data = file.read_bytes()
        if file.name.startswith(("stats-", "timens", "seccomp", "pages-")) or not data:
            continue
        file.unlink()
        code, text = ckpt_restore_and_kill(image)
        assert code == ImageError.exit_code and file.name in text, f"{file.name}: {code} {text}"
        file.write_bytes(data)


def test_another_architecture(image):
    def aarch64(core):
        core.mtype = pb.core_entry.AARCH64

    rewrite(image, "core", pid_of(image), aarch64)
    not_restored(image, ImageError, "of another architecture, AARCH64")


def test_a_version_of_tomorrow(image):
    with ImageDir.open(image) as opened:
        message = opened.read("inventory")
    message.img_version = 9
    (image / "inventory.img").unlink()
    with ImageDir(str(image), os.open(image, os.O_RDONLY)) as opened:
        opened.seal(message)
    not_restored(image, ImageError, "image version 9; we read 2")


def test_a_pid_that_is_taken(place):
    with running([str(tiny_elf(place / "tiny"))]) as task:
        assert ckpt("dump", "-t", task.pid, "-D", place / "images", "-R") == (0, "")
        before = look(task.pid)
        outcome = ckpt("restore", "-d", "-D", place / "images")
        said(outcome, PidTaken, f"pid {task.pid} is taken", "end that process")
        assert look(task.pid) == before


def test_an_executable_that_is_missing_or_another(place, image):
    (place / "tiny").rename(place / "away")
    not_restored(image, ImageError, f"{place}/tiny: expected .*found no such file", "bring")
    (place / "tiny").write_bytes((place / "away").read_bytes() + b"more")
    not_restored(image, ImageError, f"{place}/tiny: expected 129 bytes, found 133", "changed")
    (place / "tiny").unlink()
    (place / "tiny").mkdir()
    not_restored(image, ImageError, f"{place}/tiny: expected", "")


def test_a_mapped_file_that_is_missing_or_another(place):
    mapped = place / "mapped"
    mapped.write_bytes(bytes(8192))
    source = f"import mmap; m = mmap.mmap(os.open('{mapped}', 2), 8192); os.close(3)"
    with python(source) as task:
        assert ckpt("dump", "-t", task.pid, "-D", place / "images") == (0, "")
        task.reap()
    mapped.unlink()
    not_restored(place / "images", ImageError, f"{mapped}: expected", "bring it back")
    mapped.write_bytes(bytes(4096))
    not_restored(place / "images", ImageError, f"{mapped}: expected 8192 bytes, found 4096")


def test_a_restore_without_privileges(image):
    for path in (image.parent, image, *image.iterdir()):
        path.chmod(0o755)
    said(as_nobody("restore", "-d", "-D", image), NotPermitted, "clone3", "as root")
    assert not Path(f"/proc/{pid_of(image)}").exists()


def test_a_pidfile_that_cannot_be_written(image):
    outcome = ckpt("restore", "-d", "-D", image, "--pidfile", "/no/such/file")
    said(outcome, OptionsError, "/no/such/file: No such file")
    assert not Path(f"/proc/{pid_of(image)}").exists()


# --- signals, and waiting


@pytest.mark.parametrize(("kill", "code"), [(signal.SIGKILL, 137), (signal.SIGUSR1, 138)])
def test_a_restore_in_the_foreground_ends_as_its_process_does(image, place, kill, code):
    argv = [sys.executable, "-m", "ckpt", "restore", "-D", image, "--pidfile", place / "pid"]
    tool = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    while not (place / "pid").exists() or not (place / "pid").read_text():
        assert tool.poll() is None
    os.kill(int((place / "pid").read_text()), kill)
    assert tool.wait(10) == code


@pytest.mark.parametrize(("kill", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_dump_that_is_interrupted(place, kill, code):
    with python("big = bytearray(256 << 20)\nbig[:] = b'x' * len(big)") as task:
        before = look(task.pid)
        images = place / "images"
        argv = [sys.executable, "-m", "ckpt", "dump", "-t", str(task.pid), "-D", str(images)]
        tool = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while not list(images.glob("pages-*.img")) if images.exists() else True:
            assert tool.poll() is None, tool.stderr.read()
        tool.send_signal(kill)
        _, text = tool.communicate(timeout=10)
        assert tool.returncode == code and f"interrupted by {kill.name}" in text
        assert look(task.pid) == before and not images.exists()
