# SPDX-License-Identifier: Apache-2.0
"""Lazy restores: memory used in every way while it still comes, and pagers that are killed.

A program is told to go on before it is restored: so it uses its memory the moment it runs. The
eager restore of the same image is the oracle.
"""

import ast
import contextlib
import json
import os
import random
import select
import shutil
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import psutil
import pytest
from programs import Program, program
from target import Ckpt, Criu, Target, wait_until

from ckpt.image.directory import ImageDir
from ckpt.image.hot import BLOCK, write_hot

pytestmark = pytest.mark.process

WAYS = (
    *("sequential", "random", "writes", "into-buffers", "out-of-buffers", "direct-io", "forks"),
    *("many-forks", "moves-in-child", "threads", "mremaps", "moves-and-stays", "unmaps"),
    *("maps-over", "discards", "frees", "protects", "break", "locks", "advises", "from-outside"),
    *("stack", "execs", "leaves"),
)
OTHER_WAYS = (
    *(("shared", way) for way in ("sequential", "random", "between-processes", "children-alone")),
    *(("shared", way) for way in ("twin", "maps-again", "moves", "removes", "discards")),
    *(("shared", way) for way in ("removes-and-discards", "out-of-buffers")),
    *(("memfd", way) for way in ("random", "removes", "children-alone")),
    ("transparent", "stays-huge"),
)
TRIES = 10
MOST_KILLS = 30  # each costs time, on a machine that has none to spare
PAGE = 4096
SIZE = 64 << 20


def way(name: str) -> Program:
    return program(f"lazy-{name}", name, source="lazy")


def other_way(kind: str, name: str) -> Program:
    huge = SIZE >> 21 if kind == "huge" else 0
    return program(f"lazy-{kind}-{name}", kind, name, source="lazy_shared", huge_pages=huge)


@contextlib.contextmanager
def dumped(used: Program, place: Path) -> Iterator[Target]:
    """The program, dumped, and told to go on as soon as it is restored."""
    with Target(used, place / "target") as target:
        Ckpt().dump(target, place / "images")
        (target.directory / "go").touch()
        yield target


def restore(target: Target, images: Path, *options: str) -> None:
    Ckpt().restore(target, images, "--lazy-pages", *options)


def pagers() -> list[psutil.Process]:
    """Our own pagers: the holder, which comes to us when ckpt has ended, then its worker."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process().children(recursive=True)
        return [child for child in children if _is_pager(child)]
    return pagers()


def _is_pager(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.name().startswith("lazy-") and process.status() != psutil.STATUS_ZOMBIE
    return False


def all_in(images: Path, pid: int) -> dict:
    """Wait until the pager has left; returns its figures."""
    wait_until(lambda: not pagers(), "end of the pager")
    return json.loads((images / f"lazy-{pid}.json").read_text())


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
@pytest.mark.parametrize("name", WAYS)
def test_use(name: str, lazy: bool, place: Path) -> None:
    images = place / "images"
    with dumped(way(name), place) as target:
        Ckpt().restore(target, images, *(["--lazy-pages"] if lazy else []))
        target.judge("the restored copy", images)
        if lazy:
            figures = all_in(images, target.pid)
            assert figures["pages"]["lost"] == 0
            assert figures["faults"] > 0


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
@pytest.mark.parametrize(("kind", "name"), OTHER_WAYS)
def test_use_of_other_memory(kind: str, name: str, lazy: bool, place: Path) -> None:
    images = place / "images"
    with dumped(other_way(kind, name), place) as target:
        Ckpt().restore(target, images, *(["--lazy-pages"] if lazy else []))
        target.judge("the restored copy", images)
        if lazy:
            figures = all_in(images, target.pid)
            assert figures["pages"]["lost"] == 0
            assert figures["late_pages"] * PAGE >= SIZE


@pytest.mark.parametrize("used", [way("random"), other_way("shared", "removes")])
def test_an_image_of_criu(used: Program, place: Path) -> None:
    images = place / "images"
    with Target(used, place / "target") as target:
        Criu().dump(target, images)
        (target.directory / "go").touch()
        restore(target, images)
        target.judge("the restored copy", images)
        figures = all_in(images, target.pid)
        assert figures["late_pages"] * PAGE >= SIZE


@pytest.mark.parametrize("kind", ["open", "huge"])
def test_what_cannot_be_late_is_there(kind: str, place: Path) -> None:
    """A memfd that is open could be read elsewhere than by mappings; huge pages are few."""
    images = place / "images"
    with dumped(other_way(kind, "by-descriptor" if kind == "open" else "random"), place) as target:
        restore(target, images)
        target.judge("the restored copy", images)
        all_in(images, target.pid)
        told = (images / "restore.ckpt.log").read_text().split("restore finished: ")[1]
        figures = ast.literal_eval(told.splitlines()[0])
        assert figures["pages"] * PAGE >= SIZE
        assert figures["late_pages"] * PAGE < SIZE


def test_nothing_stays(place: Path) -> None:
    """When all is in, no mapping is registered, none is split, and no descriptor is ours."""
    images = place / "images"
    with Target(way("sequential"), place / "target") as target:
        before = _maps(target.pid)
        Ckpt().dump(target, images)
        restore(target, images)
        figures = all_in(images, target.pid)
        assert figures["pages"]["drain"] * PAGE > SIZE // 2
        smaps = Path(f"/proc/{target.pid}/smaps").read_text()
        assert " um" not in smaps
        assert _maps(target.pid) == before
        assert sorted(os.listdir(f"/proc/{target.pid}/fd")) == ["0", "1", "2"]
        target.judge("the restored copy", images)


def _maps(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [line.split()[0] for line in lines if "[v" not in line]


# --- pagers that die


@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
@pytest.mark.parametrize("seed", range(3))
def test_pager_killed(seed: int, shared: bool, place: Path) -> None:
    """Kill the worker again and again, now and then the holder: the restore completes."""
    images, dice = place / "images", random.Random(seed)
    kills = 0
    with dumped(other_way("shared", "slowly") if shared else way("slowly"), place) as target:
        for _ in range(20):  # they may be quicker than we are
            _make_cold(images)
            restore(target, images)
            kills += _kill_again_and_again(target, dice)
            target.judge("the restored copy", images)
            wait_until(lambda: not pagers(), "end of the pager")
            if kills:
                break
    assert kills > 0


def _make_cold(images: Path) -> None:
    """Have the pages read from the disk: then it takes a while until all are in."""
    for path in images.glob("pages-*.img"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _kill_again_and_again(target: Target, dice: random.Random) -> int:
    """Kill one of two pagers as long as there are two; returns how often."""
    kills = 0
    while kills < MOST_KILLS and not target.task.ended() and (alive := pagers()):
        if len(alive) == 2:  # else the other one has not come yet
            if kills:
                _pause(dice.random() * 0.005)
            _kill(dice.choice(alive).pid)
            kills += 1
        _reap_all_but(target.pid)
    return kills


def _kill(pid: int) -> None:
    """Kill it and see it dead: so that there never are two of them dying."""
    with contextlib.suppress(ProcessLookupError), open(os.pidfd_open(pid), "rb") as pidfd:
        signal.pidfd_send_signal(pidfd.fileno(), signal.SIGKILL)
        select.select([pidfd], [], [])


def _pause(seconds: float) -> None:
    """Let a random moment pass."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        os.sched_yield()


def _reap_all_but(pid: int) -> None:
    for child in psutil.Process().children():
        if child.pid != pid and child.status() == psutil.STATUS_ZOMBIE:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child.pid, 0)


@pytest.mark.parametrize("at_once", [True, False], ids=["at-once", "stopped-first"])
def test_both_killed(at_once: bool, place: Path) -> None:
    """With nobody left who could bring the pages, the process is killed, and its children."""
    images = place / "images"
    with dumped(way("slowly"), place) as target:
        restore(target, images)
        alive = pagers()
        for pager in alive if not at_once else ():
            pager.suspend()  # so that neither can do anything about the other's end
        for pager in alive:
            pager.kill()
        assert len(alive) == 2
        assert os.WTERMSIG(target.task.reap()) == signal.SIGKILL
        assert not (target.directory / "verdict").exists()


@pytest.mark.parametrize("seed", range(4))
def test_both_killed_while_the_kernel_copies(seed: int, place: Path) -> None:
    """What write(2) takes of missing pages is never zeros, not even as all pagers die."""
    images, dice = place / "images", random.Random(seed)
    with dumped(way("copies-out"), place) as target:
        restore(target, images)
        alive, out = pagers(), target.directory / "out"
        length = dice.randrange(1, SIZE // 8)
        wait_until(lambda: out.exists() and out.stat().st_size > length, "output")
        for pager in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                pager.kill()
        target.task.reap()
        written = out.read_bytes()
        assert len(written) > length
        assert (target.directory / "expected").read_bytes().startswith(written)


# --- pages that cannot be had


def test_truncated_pages(place: Path) -> None:
    """A pages file that becomes too short: SIGBUS for what is missing, and only for that."""
    images = place / "images"
    with dumped(way("until-it-hurts"), place) as target:
        prefetch_what_is_small(images, target.pid)
        restore(target, images, "-o", "restore.log")
        (pages,) = images.glob("pages-*.img")
        os.truncate(pages, pages.stat().st_size // 4)
        target.judge("the restored copy", images)
        hurt = int((target.directory / "hurt").read_text())
        figures = all_in(images, target.pid)
    log = (images / "restore.log").read_text()
    assert hurt > 0
    assert figures["pages"]["lost"] >= hurt
    assert "cannot be read (the pages file has become too short): SIGBUS" in log


def test_truncated_pages_of_shared_memory(place: Path) -> None:
    """There is no SIGBUS that a child inherits: the process is killed, and the log says why."""
    images = place / "images"
    with dumped(other_way("shared", "slowly"), place) as target:
        pages = max(images.glob("pages-*.img"), key=lambda file: file.stat().st_size)
        shutil.copy(pages, place / "whole")
        for _ in range(TRIES):
            restore(target, images, "-o", "restore.log")
            os.truncate(pages, SIZE // 4)
            status = target.task.reap()
            wait_until(lambda: not pagers(), "end of the pager")
            if os.WIFSIGNALED(status):
                break
            shutil.copy(place / "whole", pages)  # all pages were in before
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert "a page of shared memory cannot be read" in (images / "restore.log").read_text()


def prefetch_what_is_small(images: Path, pid: int) -> None:
    """Have the pager bring first what the program itself cannot live without: its stack, say."""
    with ImageDir.open(images) as image:
        vmas = image.read("mm", pid).vmas
    small = [vma for vma in vmas if vma.end - vma.start < SIZE // 8]
    blocks = [at for vma in small for at in range(vma.start & -BLOCK, vma.end, BLOCK)]
    write_hot(str(images), pid, blocks)


# --- the order


def test_second_restore_misses_less(place: Path) -> None:
    images = place / "images"
    with dumped(way("here-and-there"), place) as target:
        figures = []
        for _ in range(2):
            restore(target, images)
            target.judge("the restored copy", images)
            (target.directory / "go").touch()
            figures.append(all_in(images, target.pid))
        before = (images / f"hot-{target.pid}").read_bytes()
        restore(target, images, "--no-record")
        target.judge("the restored copy", images)
        all_in(images, target.pid)
        assert (images / f"hot-{target.pid}").read_bytes() == before
    first, second = figures
    assert second["known_blocks"] > 20
    assert second["known_missed"] <= second["known_blocks"] * 0.05
    assert second["faults"] < first["faults"] / 2  # the others had been there in time before


def test_a_live_dump_leaves_its_order(place: Path) -> None:
    images = place / "images"
    with Target(program("counter_server", "16"), place / "target") as target:
        Ckpt().dump(target, images, "-R", "--engine=live")
        data = (images / f"hot-{target.pid}").read_bytes()
        magic, addresses = data[:8], struct.unpack(f"<{len(data) // 8 - 1}Q", data[8:])
        assert magic == b"ckpthot1"
        assert len(set(addresses)) == len(addresses)


# --- several at once


def test_several_at_once(place: Path) -> None:
    """Each process has its own pagers; what one waits for keeps no other waiting for ever."""
    names = ("random", "forks", "writes")
    with contextlib.ExitStack() as stack:
        targets = []
        for name in names:
            (place / name).mkdir()
            targets.append(stack.enter_context(dumped(way(name), place / name)))
        for name, target in zip(names, targets, strict=True):
            restore(target, place / name / "images")
        for name, target in zip(names, targets, strict=True):
            target.judge("the restored copy", place / name / "images")
        wait_until(lambda: not pagers(), "end of the pagers")
        for name, target in zip(names, targets, strict=True):
            figures = json.loads((place / name / f"images/lazy-{target.pid}.json").read_text())
            assert figures["pages"]["lost"] == 0


# --- a dump meanwhile


def test_a_dump_waits_until_all_is_in(place: Path) -> None:
    images = place / "images"
    with Target(way("sequential"), place / "target") as target:
        Ckpt().dump(target, images)
        alive = _half_restored(target, images)
        resumed = _resumed_by(alive, place / "again" / "dump.ckpt.log")
        Ckpt().dump(target, place / "again")
        resumed.join()
        log = (place / "again" / "dump.ckpt.log").read_text()
        assert "waiting for its pager" in log
        all_in(images, target.pid)
        Ckpt().restore(target, place / "again")
        target.judge("the copy that was restored twice", place / "again")


def _half_restored(target: Target, images: Path) -> list[psutil.Process]:
    """Restore it, and stop its pagers while there is something left for them to do."""
    for _ in range(20):  # they may be quicker than we are
        _make_cold(images)
        restore(target, images)
        alive = pagers()
        for pager in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                pager.suspend()
        if any("um" in line for line in _flags(target.pid)):
            return alive
        for pager in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                pager.resume()
        target.judge("the restored copy", images)
        wait_until(lambda: not pagers(), "end of the pager")
    pytest.fail("the pagers were quicker each time")


def _resumed_by(stopped: list[psutil.Process], log: Path) -> Thread:
    """Have processes go on when a dump says that it waits, or has ended."""

    def resume() -> None:
        said = ("waiting for its pager", "dump finished")
        wait_until(lambda: log.exists() and any(word in log.read_text() for word in said), "log")
        for process in stopped:
            process.resume()

    thread = Thread(target=resume)
    thread.start()
    return thread


def test_no_dump_while_the_pagers_stand_still(place: Path) -> None:
    images = place / "images"
    with Target(way("sequential"), place / "target") as target:
        Ckpt().dump(target, images)
        alive = _half_restored(target, images)
        with pytest.raises(pytest.fail.Exception, match="still being restored"):
            Ckpt().dump(target, place / "again", "-R")
        for pager in alive:
            pager.resume()
        all_in(images, target.pid)
        target.judge("the restored copy", images)


def _flags(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    return [line for line in lines if line.startswith("VmFlags")]
