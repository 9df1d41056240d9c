# SPDX-License-Identifier: Apache-2.0
"""A process comes back into its cgroups, in the way that --manage-cgroups says; real criu's way."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from programs import PROGRAMS, TREES
from target import Ckpt, Criu, Target, Tool
from test_tree import gone

from ckpt.errors import CkptError
from ckpt.image.directory import ImageDir
from ckpt.kernel import procfs
from ckpt.kernel.cgroupfs import mountpoint
from tests.peers import missing

pytestmark = pytest.mark.process
PROGRAM = next(program for program in PROGRAMS if program.name == "tls_threads")
TOOLS = {"ckpt": Ckpt, "criu": Criu}


class Groups:
    """Cgroups of a name that only this test has, in a hierarchy of each version."""

    def __init__(self) -> None:
        self.name = f"ckpt-test-{os.getpid()}"
        self.path = f"/{self.name}/below"
        self.roots = []
        for hierarchy in ("pids", ""):
            with contextlib.suppress(CkptError):
                self.roots.append((hierarchy, Path(mountpoint(hierarchy))))
        if len(self.roots) < 2 or not (self.roots[0][1] / "cgroup.procs").exists():
            missing("no cgroups of pids and of version 2, side by side")

    def make(self, most: str) -> None:
        for _, root in self.roots:
            with contextlib.suppress(PermissionError, OSError):
                (root / self.path[1:]).mkdir(parents=True, exist_ok=True)
        self.limit.write_text(most)

    def remove(self) -> None:
        """Remove them with all that is below, as far as nobody is in it."""
        for _, root in self.roots:
            for directory, _, _ in os.walk(root / self.name, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(directory)

    @property
    def limit(self) -> Path:
        return self.roots[0][1] / self.path[1:] / "pids.max"

    def enter(self, pid: int) -> None:
        for _, root in self.roots:
            (root / self.path[1:] / "cgroup.procs").write_text(str(pid))

    def of(self, pid: int) -> list[str]:
        """Where a process is, in both hierarchies."""
        found = {hierarchy: path for _, hierarchy, path in procfs.cgroup(pid)}
        return [found[hierarchy] for hierarchy, _ in self.roots]


@pytest.fixture
def groups() -> Iterator[Groups]:
    found = Groups()
    found.make("77")
    yield found
    found.remove()


@pytest.fixture
def target(place: Path, groups: Groups) -> Iterator[Target]:
    with Target(PROGRAM, place / "target") as made:
        groups.enter(made.pid)
        yield made


def refused(*words: str) -> str:
    argv = [sys.executable, "-m", "ckpt", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode
    return done.stderr


@pytest.mark.parametrize("way", ["ckpt-ckpt", "ckpt-criu", "criu-ckpt"])
def test_comes_back_into_new_ones(way: str, target: Target, groups: Groups, place: Path) -> None:
    dumper, restorer = (TOOLS[name]() for name in way.split("-"))
    dumper.dump(target, place / "images")
    groups.remove()
    restorer.restore(target, place / "images")
    assert groups.of(target.pid) == [groups.path] * 2
    assert groups.limit.read_text() == "77\n"
    threads = procfs.threads(target.pid)
    assert len(threads) > 1
    assert all(groups.of(tid) == [groups.path] * 2 for tid in threads)
    target.judge("the restored copy", place / "images")


@pytest.mark.parametrize("restorer", [Ckpt, Criu], ids=["ckpt", "criu"])
@pytest.mark.parametrize(
    ("mode", "back", "most"),
    [
        ("soft", True, "55"),
        ("none", True, "55"),
        ("full", True, "77"),
        ("props", True, "77"),
        ("ignore", False, "55"),
    ],
)
def test_modes_where_they_are_there(
    mode: str,
    back: bool,
    most: str,
    restorer: type[Tool],
    target: Target,
    groups: Groups,
    place: Path,
) -> None:
    Ckpt().dump(target, place / "images")
    groups.limit.write_text("55")
    restorer().restore(target, place / "images", f"--manage-cgroups={mode}")
    assert groups.of(target.pid) == ([groups.path] * 2 if back else groups.of(os.getpid()))
    assert groups.limit.read_text() == f"{most}\n"
    target.judge("the restored copy", place / "images")


@pytest.mark.parametrize("mode", ["none", "props"])
def test_modes_that_make_none(mode: str, target: Target, groups: Groups, place: Path) -> None:
    Ckpt().dump(target, place / "images")
    groups.remove()
    said = refused("restore", "-d", "-D", str(place / "images"), f"--manage-cgroups={mode}")
    assert f"{groups.name}: No such file or directory" in said
    assert not os.path.exists(f"/proc/{target.pid}")


def test_strict(target: Target, groups: Groups, place: Path) -> None:
    Ckpt().dump(target, place / "images")
    words = ("restore", "-d", "-D", str(place / "images"), "--manage-cgroups=strict")
    assert "is there already" in refused(*words)
    assert groups.limit.exists(), "it was not ours to remove"
    groups.remove()
    Ckpt().restore(target, place / "images", "--manage-cgroups=strict")
    assert groups.of(target.pid) == [groups.path] * 2
    target.judge("the restored copy", place / "images")


@pytest.mark.parametrize("restorer", [Ckpt, Criu], ids=["ckpt", "criu"])
def test_another_root(restorer: type[Tool], target: Target, groups: Groups, place: Path) -> None:
    Ckpt().dump(target, place / "images")
    root = f"/{groups.name}/other/deep"
    restorer().restore(target, place / "images", "--cgroup-root", f"pids:{root}")
    assert groups.of(target.pid) == [root, groups.path]
    target.judge("the restored copy", place / "images")


def test_what_was_made_goes_with_the_failure(target: Target, groups: Groups, place: Path) -> None:
    images = place / "images"
    Ckpt().dump(target, images)
    groups.remove()
    script = place / "script"
    script.write_text("#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION != post-restore ]\n")
    script.chmod(0o755)
    refused("restore", "-d", "-D", str(images), "--action-script", str(script))
    for _, root in groups.roots:
        assert not (root / groups.name).exists()


@pytest.mark.parametrize("path", ["/../..", "/a/../b", "/" + "x/" * 4000])
def test_nonsense(path: str, target: Target, groups: Groups, place: Path) -> None:
    images = place / "images"
    Ckpt().dump(target, images)
    with ImageDir.open(images) as image:
        entry = image.read("cgroup")
    for member in entry.sets[0].ctls:
        member.path = path
    (images / "cgroup.img").unlink()
    with ImageDir.beside(images) as image:
        image.write("cgroup", entry)
    assert "cgroup.img: a process cannot be in" in refused("restore", "-d", "-D", str(images))
    assert not os.path.exists(f"/proc/{target.pid}")


def test_none_are_saved_where_they_are_ours(place: Path) -> None:
    images = place / "images"
    with Target(PROGRAM, place / "target") as target:
        Ckpt().dump(target, images)
        assert not (images / "cgroup.img").exists()
        Ckpt().restore(target, images)
        target.judge("the restored copy", images)


def test_a_frozen_one_is_refused(target: Target, groups: Groups, place: Path) -> None:
    Ckpt().dump(target, place / "images")
    frozen = groups.roots[1][1] / groups.path[1:] / "cgroup.freeze"
    frozen.write_text("1")
    assert "is frozen (cgroup.freeze)" in refused("restore", "-d", "-D", str(place / "images"))


@pytest.mark.parametrize("restorer", [Ckpt, Criu], ids=["ckpt", "criu"])
def test_children_have_their_own(restorer: type[Tool], groups: Groups, place: Path) -> None:
    """The root is in ours, one child in others, and its sibling where both were born."""
    images = place / "images"
    with Target(TREES[0], place / "target") as target:
        below = [child.pid for child in psutil.Process(target.pid).children(recursive=True)]
        born = groups.of(target.pid)
        first, *others = procfs.children(target.pid)
        groups.enter(first)
        Ckpt().dump(target, images)
        gone(below)
        groups.remove()
        restorer().restore(target, images)
        assert groups.of(first) == [groups.path] * 2
        assert all(groups.of(pid) == born for pid in (target.pid, *others))
        target.judge("the restored copy", images)
