# SPDX-License-Identifier: Apache-2.0
"""The lazy-pages daemon, ours and CRIU's, with restores by either."""

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from programs import TREES, Program, program
from target import DEADLINE, REPO, Ckpt, Criu, Target, Tool, pagers, wait_until
from test_lazy import prefetch_what_is_small
from test_programs import Way
from test_tree import gone

pytestmark = pytest.mark.process

PAIRS = [(Ckpt, Ckpt), (Ckpt, Criu), (Criu, Ckpt)]
SOCKET = "lazy-pages.socket"
RANDOM = program("lazy-random", "random", source="lazy")
SLOWLY = program("lazy-slowly", "slowly", source="lazy")


@contextlib.contextmanager
def daemon(tool: Tool, images: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon that is ready for a restore."""
    ours, theirs = os.pipe()
    argv = [*tool.command, "lazy-pages", "-D", str(images), "-v4", "-o", "lazy-pages.log"]
    argv += ["--status-fd", str(theirs), *options]
    process = subprocess.Popen(argv, cwd=REPO, stdin=subprocess.DEVNULL, pass_fds=[theirs])
    os.close(theirs)
    try:
        with open(ours, "rb") as status:
            assert status.read() == b"\0"
        assert (images / SOCKET).exists()
        yield process
    finally:
        process.kill()
        process.wait()


def dump(target: Target, images: Path) -> None:
    """Dump it, to be told to go on as soon as it is restored."""
    below = [child.pid for child in psutil.Process(target.pid).children(recursive=True)]
    Ckpt().dump(target, images)
    gone(below)
    (target.directory / "go").touch()


CASES = [
    pytest.param(server, restorer, used, id=f"{server.name}-{restorer.name}-{used.name}")
    for server, restorer in PAIRS
    for used in (RANDOM, *(one for one in TREES if one.name in ("tree_zombie", "tree_cow")))
    if not Way(Ckpt, restorer).why_not(used)
]


@pytest.mark.parametrize(("server", "restorer", "used"), CASES)
def test_it_brings_the_pages(
    server: type[Tool], restorer: type[Tool], used: Program, place: Path
) -> None:
    images = place / "images"
    with Target(used, place / "target") as target:
        dump(target, images)
        with daemon(server(), images) as process:
            restorer().restore(target, images, "--lazy-pages")
            target.judge("the restored copy", images)
            assert process.wait(DEADLINE) == 0
            if server is Ckpt:
                figures = json.loads((images / f"lazy-{target.pid}.json").read_text())
                assert figures["faults"] > 0
                assert f"pid {target.pid}: {figures['late_pages']} pages" in log(images)
    assert not pagers()


def log(images: Path) -> str:
    return (images / "lazy-pages.log").read_text()


def test_in_the_background(place: Path) -> None:
    """With -d the command ends when a restore may begin; it serves one, and the next has none."""
    images = place / "images"
    with Target(RANDOM, place / "target") as target:
        dump(target, images)
        words = ["lazy-pages", "-d", "-D", str(images), "--pidfile", "pid", "-v3", "-o", "log"]
        subprocess.run([*Ckpt.command, *words], cwd=REPO, check=True, timeout=DEADLINE)
        server = psutil.Process(int((images / "pid").read_text()))
        assert (images / SOCKET).exists()
        Ckpt().restore(target, images, "--lazy-pages")
        target.judge("the restored copy", images)
        assert os.waitstatus_to_exitcode(os.waitpid(server.pid, 0)[1]) == 0
        assert "lazy-pages finished" in (images / "log").read_text()
        assert not (images / SOCKET).exists()
        (target.directory / "go").touch()
        Ckpt().restore(target, images, "--lazy-pages")  # by a pager of its own
        target.judge("the copy without a daemon", images)
    wait_until(lambda: not pagers(), "end of the pagers")


def test_a_socket_that_nobody_listens_on(place: Path) -> None:
    images = place / "images"
    with Target(RANDOM, place / "target") as target:
        dump(target, images)
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(images / SOCKET))
        Ckpt().restore(target, images, "--lazy-pages")
        target.judge("the restored copy", images)
    wait_until(lambda: not pagers(), "end of the pagers")


def test_interrupted_before_a_restore(place: Path) -> None:
    images = place / "images"
    with Target(RANDOM, place / "target") as target:
        dump(target, images)
        with daemon(Ckpt(), images) as process:
            process.terminate()
            assert process.wait(DEADLINE) == 128 + signal.SIGTERM
        assert not (images / SOCKET).exists()


def half_restored(restorer: Tool, target: Target, images: Path) -> None:
    """Restore a process that needs its pages for a while, and see its pagers at work."""
    for path in images.glob("pages-*.img"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    restorer.restore(target, images, "--lazy-pages")


def test_the_daemon_may_die(place: Path) -> None:
    """It only waits when the pagers are there."""
    images = place / "images"
    with Target(SLOWLY, place / "target") as target:
        dump(target, images)
        with daemon(Ckpt(), images) as process:
            half_restored(Ckpt(), target, images)
            process.kill()
            target.judge("the restored copy", images)
    wait_until(lambda: not pagers(), "end of the pagers")


@pytest.mark.parametrize("restorer", [Ckpt, Criu])
def test_all_pagers_killed(restorer: type[Tool], place: Path) -> None:
    images = place / "images"
    with Target(SLOWLY, place / "target") as target:
        dump(target, images)
        with daemon(Ckpt(), images) as process:
            half_restored(restorer(), target, images)
            alive = pagers()
            assert len(alive) == 2
            for pager in alive:
                os.kill(pager, signal.SIGKILL)
            assert os.WTERMSIG(target.task.reap()) == signal.SIGKILL
            assert process.wait(DEADLINE) == 1
        assert "a pager has died" in log(images)


@pytest.mark.parametrize("heard", range(4))
def test_a_daemon_that_ends_before_the_restore(heard: int, place: Path) -> None:
    """Whatever it has heard of: without it the pages would be zeros, so there is no process."""
    images = place / "images"
    with Target(RANDOM, place / "target") as target:
        dump(target, images)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(images / SOCKET))
            listener.listen()
            words = ["restore", "-D", str(images), "--lazy-pages", "-d"]
            restore = subprocess.Popen(
                [*Ckpt.command, *words], cwd=REPO, stderr=subprocess.PIPE, text=True
            )
            with listener.accept()[0] as connection:
                for length, flags in ((4, 0), (1, 0), (4, socket.MSG_PEEK))[:heard]:
                    assert len(connection.recv(length, socket.MSG_WAITALL | flags)) == length
            _, said = restore.communicate(timeout=DEADLINE)
        assert restore.returncode == 1
        assert "the lazy-pages daemon has ended" in said
        assert not psutil.pid_exists(target.pid)


def test_a_restore_that_fails(place: Path) -> None:
    images, script = place / "images", place / "script"
    script.write_text('#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != post-restore ]\n')
    script.chmod(0o755)
    with Target(RANDOM, place / "target") as target:
        dump(target, images)
        with daemon(Ckpt(), images) as process:
            words = ["restore", "-D", str(images), "--lazy-pages", "-d"]
            words += ["--action-script", str(script)]
            done = subprocess.run([*Ckpt.command, *words], cwd=REPO, check=False)
            assert done.returncode == 1
            assert process.wait(DEADLINE) == 1
        assert "the restore has ended before all was there" in log(images)
    wait_until(lambda: not pagers(), "end of the pagers")


def test_pages_that_cannot_be_read(place: Path) -> None:
    images = place / "images"
    with Target(program("lazy-hurt", "until-it-hurts", source="lazy"), place / "target") as target:
        dump(target, images)
        with daemon(Ckpt(), images) as process:
            prefetch_what_is_small(images, target.pid)
            Ckpt().restore(target, images, "--lazy-pages")
            (pages,) = images.glob("pages-*.img")
            os.truncate(pages, pages.stat().st_size // 4)
            target.judge("the restored copy", images)
            assert process.wait(DEADLINE) == 6
        assert int((target.directory / "hurt").read_text()) > 0
