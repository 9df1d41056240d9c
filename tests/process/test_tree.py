# SPDX-License-Identifier: Apache-2.0
"""Trees of processes through every way of being dumped and restored; each judges itself."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import partial
from itertools import combinations
from pathlib import Path

import psutil
import pytest
from google.protobuf.message import Message
from programs import TREES, Program
from target import REPO, Ckpt, Criu, Target, pagers, wait_until
from test_programs import Way

from ckpt.image.directory import ImageDir
from ckpt.kernel.ffi import ffi, lib
from ckpt.kernel.kcmp import Kcmp, kcmp

pytestmark = pytest.mark.process

WAYS = (
    Way(Criu, Ckpt),
    Way(Criu, Ckpt, lazy=True),
    Way(Ckpt, Ckpt, twice=True),
    Way(Ckpt, Ckpt, running=True),
    Way(Ckpt, Ckpt, running=True, lazy=True),
    Way(Ckpt, Criu),
)
PROVING = (Way(Criu, Criu),)
ON_DISK = ("tree_shared", "tree_shared_sysv", "tree_pidfd", "tree_locks")
"""Programs whose files are other ones by the time that another copy comes up."""
CASES = [
    pytest.param(program, way, id=f"{program.name}-{way}")
    for program in TREES
    for way in (PROVING if os.environ.get("CKPT_PROVE_PROGRAMS") else WAYS)
    if not way.why_not(program) and not (way.running and program.name in ON_DISK)
]


def gone(pids: list[int]) -> None:
    """See that all of a tree that was killed have ended, and free their pids."""

    def ended(pid: int) -> bool:
        with suppress(ChildProcessError):  # it is not an orphan yet, nor ours
            os.waitpid(pid, os.WNOHANG)
        return not psutil.pid_exists(pid)

    for pid in reversed(pids):
        wait_until(partial(ended, pid), f"end of {pid}")


def dump(way: Way, target: Target, images: Path) -> list[int]:
    """Dump a tree; returns the pids below its root."""
    below = [child.pid for child in psutil.Process(target.pid).children(recursive=True)]
    way.dumper().dump(target, images, *(["-R"] if way.running else []))
    if not way.running:
        gone(below)
    return below


@pytest.mark.parametrize(("program", "way"), CASES)
def test_tree(program: Program, way: Way, place: Path) -> None:
    images = place / "images"
    with Target(program, place / "target") as target:
        dump(way, target, images)
        if way.running:
            target.judge("the target itself, running on", images)
        way.restorer().restore(target, images, *(["--lazy-pages"] if way.lazy else []))
        if way.twice:
            images = place / "again"
            dump(way, target, images)
            way.restorer().restore(target, images)
        target.judge("the restored copy", images)
    wait_until(lambda: not pagers(), "end of the pagers, which keep something in the image")


def test_a_thread_whose_number_is_taken(place: Path) -> None:
    images, used = place / "images", Program("tree_many", "tree_many", ("3",))
    with Target(used, place / "target") as target:
        dump(WAYS[0], target, images)
        with ImageDir.open(str(images)) as image:
            threads = [tuple(entry.threads) for entry, _ in image.records("pstree")]
        for tid in threads[-1][1:3]:
            lifeline = os.pipe()
            assert lib.core_clone_paused(0, ffi.new("int32_t[]", [tid]), 1, lifeline) == tid
            with pytest.raises(pytest.fail.Exception, match=f"pid {tid} is taken"):
                Ckpt().restore(target, images)
            os.kill(tid, signal.SIGKILL)
            os.waitpid(tid, 0)
            for fd in lifeline:
                os.close(fd)
        gone([pids[0] for pids in threads])
        Ckpt().restore(target, images)
        target.judge("the restored copy", images)


def shared_memory(pid: int) -> int:
    """What the tree takes of memory, in bytes: a page of n processes is an nth of each one's."""
    tree = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return sum(psutil.Process(one).memory_full_info().pss for one in tree)


def test_workers_share_their_memory_as_before(place: Path) -> None:
    images, way = place / "images", WAYS[0]
    with Target(Program("tree_cow", "tree_cow"), place / "target") as target:
        before = shared_memory(target.pid)
        dump(way, target, images)
        way.restorer().restore(target, images)
        assert shared_memory(target.pid) < before * 1.05 + (1 << 20)
        target.judge("the restored copy", images)


def rewrite(file: Path, message: Message) -> None:
    """Have an image file hold this one record."""
    data = message.SerializeToString()
    file.write_bytes(file.read_bytes()[:8] + len(data).to_bytes(4, "little") + data)


@pytest.mark.parametrize("status", [signal.SIGCHLD, signal.SIGSTOP, 65, 127, 0xFF])
def test_a_status_that_none_ends_with(place: Path, status: int) -> None:
    images = place / "images"
    with Target(Program("tree_zombie", "tree_zombie"), place / "target") as target:
        dump(WAYS[0], target, images)
        with ImageDir.open(str(images)) as image:
            cores = {
                entry.pid: image.read("core", entry.pid) for entry, _ in image.records("pstree")
            }
        pid, core = next((pid, core) for pid, core in cores.items() if core.tc.exit_code)
        core.tc.exit_code = status
        rewrite(images / f"core-{pid}.img", core)
        with pytest.raises(pytest.fail.Exception, match="no process ends by signal"):
            Ckpt().restore(target, images)
        gone(list(cores))


@pytest.mark.parametrize("field", ["files_id", "fs_id", "ipc_ns_id"])
def test_what_is_not_restored_yet(place: Path, field: str) -> None:
    """Siblings that share what only a child can share with its parent, or nobody."""
    images = place / "images"
    with Target(Program("tree_shared", "tree_shared"), place / "target") as target:
        below = dump(WAYS[0], target, images)
        with ImageDir.open(str(images)) as image:
            first, last = image.read("ids", below[0]), image.read("ids", below[-1])
        setattr(last, field, getattr(first, field) if "ns" not in field else 77)
        rewrite(images / f"ids-{below[-1]}.img", last)
        with pytest.raises(pytest.fail.Exception, match="exit code 3") as failure:
            Ckpt().restore(target, images)
        assert f"pid {below[-1]}" in str(failure.value)
        assert "not restored yet" in str(failure.value)
        gone([target.pid, *below])


def shares_memory(one: int, other: int) -> bool:
    return kcmp(Kcmp.VM, one, other) == 0


def test_memory_that_is_shared(place: Path) -> None:
    """It is saved once, and shared again by the same, but not by who cannot be made so."""
    images = place / "images"
    with Target(Program("tree_vm", "tree_vm"), place / "target") as target:
        pids = [target.pid, *(one.pid for one in psutil.Process(target.pid).children())]
        alive = [pid for pid in pids if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
        before = [shares_memory(*pair) for pair in combinations(alive, 2)]
        below = [one.pid for one in psutil.Process(target.pid).children(recursive=True)]
        Ckpt().dump(target, images, "-R", "--engine", "fork")
        for pid in (target.pid, *below):
            os.kill(pid, signal.SIGKILL)
        target.ended()
        gone(below)
        with ImageDir.open(str(images)) as image:
            ids = {pid: image.read("ids", pid) for pid in alive}
            assert len({one.vm_id for one in ids.values()}) == len(image.ids("pagemap")) == 3
            grandchild = next(e for e, _ in image.records("pstree") if e.ppid not in (0, pids[0]))
            changed = image.read("ids", grandchild.pid)
        mine, changed.vm_id = changed.vm_id, ids[target.pid].vm_id
        rewrite(images / f"ids-{grandchild.pid}.img", changed)
        with pytest.raises(pytest.fail.Exception, match="exit code 6"):  # handlers of another
            Ckpt().restore(target, images)
        changed.sighand_id = 99
        rewrite(images / f"ids-{grandchild.pid}.img", changed)
        with pytest.raises(pytest.fail.Exception, match="which cannot make it: not restored yet"):
            Ckpt().restore(target, images)
        gone([target.pid, *below])
        changed.vm_id = mine
        rewrite(images / f"ids-{grandchild.pid}.img", changed)
        Ckpt().restore(target, images)
        assert [shares_memory(*pair) for pair in combinations(alive, 2)] == before
        target.judge("the restored copy", images)


def test_memory_that_is_shared_with_who_is_not_dumped(place: Path) -> None:
    with Target(Program("tree_vm", "tree_vm"), place / "target") as target:
        with_it = psutil.Process(target.pid).children()
        one = next(one for one in with_it if one.name() == "vm0")
        options = ["-t", str(one.pid), "--shell-job", "-D", str(place / "images")]
        command = [sys.executable, "-m", "ckpt", "dump", *options]
        done = subprocess.run(command, cwd=REPO, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 3
        assert f"pid {one.pid} shares its memory with its parent" in done.stderr
        assert f"dump the parent, pid {target.pid}" in done.stderr
        target.judge("the target itself, running on", place)


def test_memory_that_nobody_could_give_again(place: Path) -> None:
    images = place / "images"
    with Target(Program("tree_vm", "tree_vm", ("nephew",)), place / "target") as target:
        with pytest.raises(pytest.fail.Exception, match="neither its parent nor") as failure:
            Ckpt().dump(target, images, "-R")
        assert "exit code 3" in str(failure.value)
        assert not list(images.glob("*.img"))
        target.judge("the target itself, running on", images)


def test_the_root_is_waited_for(place: Path) -> None:
    images, pidfile = place / "images", place / "pid"
    with Target(Program("tree_sessions", "tree_sessions"), place / "target") as target:
        dump(WAYS[0], target, images)
        words = ["restore", "-D", str(images), "--pidfile", str(pidfile)]
        command = subprocess.Popen([sys.executable, "-m", "ckpt", *words], cwd=REPO)
        wait_until(lambda: pidfile.exists() and bool(pidfile.read_text()), "pid file")
        assert int(pidfile.read_text()) == target.pid
        (target.directory / "go").touch()
        assert command.wait() == 0
        assert (target.directory / "verdict").read_text() == "ok"


def test_who_ignores_sigchld_restores_zombies(place: Path) -> None:
    images = place / "images"
    with Target(Program("tree_zombie", "tree_zombie"), place / "target") as target:
        dump(WAYS[0], target, images)
        before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        words = ["restore", "-d", "-D", str(images)]
        done = subprocess.Popen([sys.executable, "-m", "ckpt", *words], cwd=REPO)
        signal.signal(signal.SIGCHLD, before)
        assert done.wait() == 0
        target.restored(target.pid)
        target.judge("the restored copy", images)


def test_a_directory_that_is_shared(place: Path) -> None:
    """CRIU dumps no such thing, so its image is changed to say so."""
    images, way = place / "images", WAYS[0]
    program = Program("tree_files", "tree_files", ("will",))
    with Target(program, place / "target") as target:
        dump(way, target, images)
        with ImageDir.open(str(images)) as image:
            wanted = image.read("ids", target.pid).fs_id
            pids = [entry.pid for entry, _ in image.records("pstree")]
            for pid in pids[1:]:
                ids = image.read("ids", pid)
                ids.fs_id = wanted
                rewrite(images / f"ids-{pid}.img", ids)
        way.restorer().restore(target, images)
        target.judge("the restored copy", images)


SERVER = """
import os, signal, socket, sys
ballast = [str(number) * 50 for number in range(20000)]
listener = socket.create_server(("127.0.0.1", 0))
for _ in range(20):
    if os.fork() == 0:
        os.close(1)
        served = 0
        while True:
            client, _ = listener.accept()
            served += 1
            word = client.recv(100)
            client.send(f"{os.getpid()} {served} {ballast[served][:4]} ".encode() + word)
            client.close()
os.write(1, f"{listener.getsockname()[1]}\\n".encode())
os.dup2(os.open("/dev/null", os.O_RDWR), 1)
while True:
    signal.pause()
"""


def asked(port: int, times: int) -> set[int]:
    """Ask a server so often; returns the pids of those who answered."""
    found = set()
    for number in range(times):
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.send(str(number).encode())
            pid, _, _, word = client.recv(100).split()
            assert word == str(number).encode()
            found.add(int(pid))
    return found


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
def test_a_prefork_server(place: Path, lazy: bool) -> None:
    images = place / "images"
    images.mkdir()
    argv = [sys.executable, "-c", SERVER]
    server = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        start_new_session=True, text=True,
    )  # fmt: skip
    port = int(server.stdout.readline())
    asked(port, 100)
    below = [child.pid for child in psutil.Process(server.pid).children()]
    before = shared_memory(server.pid)
    options = ["-D", str(images), "--tcp-established"]
    subprocess.run([*Criu().command, "dump", "-t", str(server.pid), *options], check=True)
    server.wait()
    server.stdout.close()
    gone(below)
    options += ["--lazy-pages"] if lazy else []
    command = [sys.executable, "-m", "ckpt", "restore", "-d", "--json", *options]
    done = subprocess.run(command, cwd=REPO, check=True, stdout=subprocess.PIPE)
    print(json.loads(done.stdout), f"memory: {before} before, {shared_memory(server.pid)} after")
    try:
        assert lazy or shared_memory(server.pid) < before * 1.05 + (1 << 20)
        assert asked(port, 200) <= set(below)
        wait_until(lambda: not pagers(), "end of the pagers")
        assert [child.pid for child in psutil.Process(server.pid).children()] == below
    finally:
        os.kill(server.pid, signal.SIGKILL)
        os.waitpid(server.pid, 0)
        for pid in below:
            os.kill(pid, signal.SIGKILL)
        gone(below)
