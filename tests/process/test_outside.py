# SPDX-License-Identifier: Apache-2.0
"""What is not in the image, and what takes its place: --external, --inherit-fd, --evasive-devices.

Also what a restore that fails, or a dump that takes too long, leaves outside of itself.
"""

import contextlib
import os
import pty
import signal
import socket
import stat
import struct
import subprocess
import tty
from pathlib import Path

import pytest
from bystander import children, ckpt, look, python
from target import Task, wait_until
from test_bad_input import refused, said

from ckpt.errors import CkptError, ImageError, KernelError, OptionsError, Unsupported

pytestmark = pytest.mark.process

ANSWER = "signal.signal(signal.SIGUSR1, lambda *_: os.write({fd}, b'hello'))\n"
NULL = os.makedev(1, 3)


@pytest.fixture
def keep():
    """Have descriptors closed after the test."""
    with contextlib.ExitStack() as stack:

        def keep(*fds):
            for fd in fds:
                stack.callback(os.close, fd)
            return fds

        yield keep


def dump(task, place, *options):
    assert ckpt("dump", "-t", task.pid, "-D", place / "images", *options) == (0, "")
    task.reap()


@contextlib.contextmanager
def restored(task, place, *options, pass_fds=()):
    words = ("restore", "-d", "-D", place / "images", *options)
    assert ckpt(*words, pass_fds=pass_fds) == (0, "")
    copy = Task(task.pid)
    try:
        yield copy
    finally:
        copy.close()


def heard(copy, fd, size=5):
    os.kill(copy.pid, signal.SIGUSR1)
    return os.read(fd, size)


# --- who is at the other end


SENDING = """
connection = socket.create_connection(("127.0.0.1", {port}))
connection.setblocking(False)
try:
    while connection.send(bytes(1 << 20)): pass
except BlockingIOError: pass
def tell(*_):
    try: said = connection.send(b"more")
    except OSError as error: said = error.strerror
    with open("{place}/said.new", "w") as file: file.write(str(said))
    os.rename("{place}/said.new", "{place}/said")
signal.signal(signal.SIGUSR1, tell)
"""


def test_a_peer_that_has_gone(place):
    """What was to be sent to it is of no use; the others are to be served all the same."""
    listener = socket.create_server(("127.0.0.1", 0))
    program = SENDING.format(port=listener.getsockname()[1], place=place)
    with listener, python(program) as task:
        with listener.accept()[0] as peer:
            dump(task, place, "--tcp-established")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with restored(task, place, "--tcp-established") as copy:
            os.kill(copy.pid, signal.SIGUSR1)
            wait_until((place / "said").exists, "word of the copy")
    assert (place / "said").read_text() in ("Broken pipe", "Connection reset by peer")


# --- --inherit-fd


def test_a_pipe_of_ours(place, keep):
    _reader, writer = keep(*os.pipe())
    mine, other = keep(*os.pipe())
    pipe_id = os.fstat(writer).st_ino
    with python(ANSWER.format(fd=writer), pass_fds=[writer]) as task:
        dump(task, place)
    key = f"fd[{other}]:pipe:[{pipe_id}]"
    with restored(task, place, "--inherit-fd", key, pass_fds=[other]) as copy:
        assert heard(copy, mine) == b"hello"


def test_a_terminal_of_ours(place, keep):
    _master, slave = keep(*pty.openpty())
    master, other = keep(*pty.openpty())
    tty.setraw(other)
    st = os.fstat(slave)
    key = f"tty[{st.st_rdev:x}:{st.st_dev:x}]"
    with python(ANSWER.format(fd=slave), pass_fds=[slave]) as task:
        refused(task, place, Unsupported, "a terminal whose other end is outside", "shell-job")
        dump(task, place, "--external", key)
    said(ckpt("restore", "-d", "-D", place / "images"), OptionsError, "outside", "--inherit-fd")
    inherit = ("--inherit-fd", f"fd[{other}]:{key}")
    with restored(task, place, *inherit, pass_fds=[other]) as copy:
        assert heard(copy, master) == b"hello"


def test_a_file_of_ours_by_its_path(place, keep):
    (place / "log").touch()
    with python(f"fd = os.open('{place}/log', os.O_WRONLY)\n" + ANSWER.format(fd="fd")) as task:
        dump(task, place)
    (other,) = keep(os.open(place / "other", os.O_RDWR | os.O_CREAT))
    key = f"fd[{other}]:{place}/log".replace(":/", ":")
    with restored(task, place, "--inherit-fd", key, pass_fds=[other]) as copy:
        os.kill(copy.pid, signal.SIGUSR1)
        wait_until(lambda: (place / "other").read_text() == "hello", "what it writes")
    assert (place / "log").read_text() == ""


def test_a_descriptor_that_we_do_not_have(place):
    with python("") as task:
        dump(task, place)
    for fd in (3, 4, 5, 6, 7, 900):  # some of them are open, but not given to us
        words = ("restore", "-d", "-D", place / "images", "--inherit-fd", f"fd[{fd}]:pipe:[1]")
        said(ckpt(*words), OptionsError, f"we have no descriptor {fd}")
    words = ("restore", "-d", "-D", place / "images", "--inherit-fd", "fd[2]:socket:[1]")
    said(ckpt(*words), OptionsError, "sockets: not supported yet")


# --- --external


def test_a_file_left_outside(place, keep):
    """It need not even have a path that leads to it."""
    source = f"fd = os.open('{place}/log', os.O_RDWR | os.O_CREAT)\nos.unlink('{place}/log')\n"
    with python(source + "os.write(fd, bytes(2 << 20))") as task:
        refused(task, place, Unsupported, "log", "ghost-limit")
        info = Path(f"/proc/{task.pid}/fdinfo/3").read_text()
        mount = int(info.split("mnt_id:")[1].split()[0])
        key = f"file[{mount:x}:{os.stat(f'/proc/{task.pid}/fd/3').st_ino:x}]"
        dump(task, place, "--external", key)
    said(ckpt("restore", "-d", "-D", place / "images"), OptionsError, "outside", "--inherit-fd")
    (other,) = keep(os.open(place / "other", os.O_RDWR | os.O_CREAT))
    inherit = ("--inherit-fd", f"fd[{other}]:{key}")
    with restored(task, place, *inherit, pass_fds=[other]) as copy:
        assert os.readlink(f"/proc/{copy.pid}/fd/3") == str(place / "other")


@pytest.mark.parametrize("resource", ["unix[812]", "net[4026531840]:root", "mnt[/x]:y", "veth"])
def test_what_cannot_be_left_outside(place, resource):
    kind = resource.partition("[")[0]
    with python("") as task:
        message, options = f"{kind}: not supported yet", ("--external", resource)
        refused(task, place, OptionsError, message, r"file\[", options)
        dump(task, place)
    words = ("restore", "-d", "-D", place / "images", *options)
    said(ckpt(*words), OptionsError, message, r"file\[")


# --- --evasive-devices


@pytest.fixture
def null(place):
    os.mknod(place / "null", 0o666 | stat.S_IFCHR, NULL)
    try:
        os.close(os.open(place / "null", os.O_RDWR))
    except PermissionError:
        pytest.skip("no devices on this file system")
    return place / "null"


def test_a_device_whose_node_is_gone(place, null):
    with python(f"os.open('{null}', os.O_RDWR)") as task:
        dump(task, place)
    null.unlink()
    words = ("restore", "-d", "-D", place / "images")
    said(ckpt(*words), ImageError, f"{null}: expected a character device", "bring it back")
    with restored(task, place, "--evasive-devices") as copy:
        assert os.stat(f"/proc/{copy.pid}/fd/3").st_rdev == NULL


def test_a_device_whose_path_leads_to_another_node(place, null):
    with python(f"os.open('{null}', os.O_RDWR)") as task:
        subprocess.run(["mount", "--bind", "/dev/null", null], check=True)
        try:
            refused(task, place, Unsupported, "its path leads to another file")
            dump(task, place, "--evasive-devices")
            with restored(task, place) as copy:
                assert os.stat(f"/proc/{copy.pid}/fd/3").st_rdev == NULL
        finally:
            subprocess.run(["umount", null], check=True)


# --- failures


def test_a_failed_restore_leaves_no_socket_file(place):
    """It fails late: the lock is what comes last."""
    lock = "import fcntl; fcntl.flock(os.open('{0}/locked', 66), fcntl.LOCK_EX)\n"
    bind = """
for name, kind in (("stream", 1), ("datagram", 2)):
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind("{0}/" + name)
    if kind == 1:
        sock.listen()
    os.dup(sock.fileno())
"""
    with python((lock + bind).format(place)) as task:
        dump(task, place, "--file-locks")
    for name in ("stream", "datagram"):
        assert (place / name).is_socket()  # of the one that was killed
    with python(lock.format(place)):
        said(ckpt("restore", "-d", "-D", place / "images"), KernelError, "BSD lock")
    assert not (place / "stream").exists() and not (place / "datagram").exists()
    with restored(task, place), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(place / "stream"))
        assert (place / "datagram").is_socket()


def test_a_process_that_does_not_stop(place):
    """The parent of a vfork waits where nothing but death wakes it."""
    vfork = "call(56, 0x4000 | 0x8000 | signal.SIGCHLD, 0, 0, 0, 0)"  # CLONE_VFORK | CLONE_PARENT
    source = "os.dup2(0, 1); " + vfork
    with python(source) as task:
        status = Path(f"/proc/{task.pid}/status")
        wait_until(lambda: "State:\tD" in status.read_text(), "vfork")
        before = look(task.pid)
        words = ("dump", "-t", task.pid, "-D", place / "images", "--timeout", "1")
        said(ckpt(*words), CkptError, "takes too long")
        assert look(task.pid) == before
        for child in children() - {task.pid}:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        wait_until(lambda: "State:\tS" in status.read_text(), "end of the wait")
        assert not (place / "images").exists()
        dump(task, place)
