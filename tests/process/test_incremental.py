# SPDX-License-Identifier: Apache-2.0
"""Chains of dumps: what has not changed is left to the image before, and comes back from there."""

import os
import shutil
from pathlib import Path

import psutil
import pytest
from programs import PROGRAMS, TREES, Program
from target import Ckpt, Criu, Target, Tool, pagers, wait_until
from test_tree import gone

from ckpt.image import pb
from ckpt.image.directory import ImageDir
from ckpt.image.pages import PageReader

pytestmark = pytest.mark.process
NAMES = ("anon_private", "anon_shared", "memfd_map", "sysv_shm", "tls_threads", "file_private")
CHOSEN = [program for program in PROGRAMS if program.name in NAMES]


def size(images: Path) -> int:
    return sum(file.stat().st_size for file in images.glob("pages-*.img"))


def stats(images: Path) -> pb.dump_stats_entry:
    with ImageDir.open(images) as image:
        entry: pb.dump_stats_entry = image.read("stats-dump").dump
    return entry


def content(images: Path) -> dict[int, bytes]:
    """All pages of the process by address, whichever image has them."""
    (pagemap,) = images.glob("pagemap-[0-9]*.img")
    number = int(pagemap.stem.partition("-")[2])
    with ImageDir.open(images) as image, PageReader(image, "pagemap", number) as reader:
        return {
            run.vaddr + at: os.pread(run.fd, 4096, run.offset + at)
            for run in reader
            for at in range(0, run.nr_pages * 4096, 4096)
        }


def chain(target: Target, place: Path, engine: str, more: tuple[str, ...] = ()) -> list[Path]:
    """Three dumps, each on top of the one before; the last ends the target."""
    images = [place / name for name in ("first", "second", "third")]
    tool = Ckpt()
    tool.dump(target, images[0], "-R", "--engine", engine)
    tool.dump(target, images[1], "-R", "--engine", engine, "--prev-images-dir", "../first")
    tool.dump(target, images[2], "--prev-images-dir", "../second", *more)
    return images


@pytest.mark.parametrize("way", ["ckpt", "lazy", "criu"])
@pytest.mark.parametrize("program", CHOSEN, ids=lambda program: program.name)
def test_comes_back(program: Program, way: str, place: Path) -> None:
    restorer: type[Tool] = Criu if way == "criu" else Ckpt
    with Target(program, place / "target") as target:
        first, *others = chain(target, place, "stop")
        for images in others:
            assert size(images) < size(first) // 2
        restorer().restore(target, others[-1], *(["--lazy-pages"] if way == "lazy" else []))
        target.judge("the restored copy", others[-1])
    wait_until(lambda: not pagers(), "end of the pager")


@pytest.mark.parametrize("engine", ["stop", "live", "fork"])
def test_nothing_is_lost(engine: str, place: Path) -> None:
    """An image and its parents have what a whole dump of the same moment has."""
    program = next(program for program in PROGRAMS if program.name == "anon_private")
    with Target(program, place / "target") as target:
        tool = Ckpt()
        tool.dump(target, place / "first", "-R")
        tool.dump(
            target, place / "chain", "-R", "--engine", engine, "--prev-images-dir", "../first"
        )
        tool.dump(target, place / "whole", "-R", "--engine", engine)
        chained, whole = content(place / "chain"), content(place / "whole")
        assert chained.keys() == whole.keys()
        different = [page for page in whole if chained[page] != whole[page]]
        assert len(different) < 16, "its stack, and little else"
        target.judge("the target itself, running on", place / "chain")


@pytest.mark.parametrize("engine", ["stop", "live", "fork"])
def test_figures(engine: str, place: Path) -> None:
    program = next(program for program in PROGRAMS if program.name == "anon_shared")
    with Target(program, place / "target") as target:
        for images in chain(target, place, engine):
            entry = stats(images)
            assert (entry.pages_written + entry.shpages_written) * 4096 == size(images)
            skipped = entry.pages_skipped_parent + entry.shpages_skipped_parent
            assert (skipped > 0) == (images.name != "first")


def test_without_its_parent_it_is_refused(place: Path) -> None:
    with Target(CHOSEN[0], place / "target") as target:
        first, _, third = chain(target, place, "stop")
        shutil.move(first, place / "elsewhere")
        with pytest.raises(pytest.fail.Exception, match="parent"):
            Ckpt().restore(target, third)
        shutil.move(place / "elsewhere", first)
        Ckpt().restore(target, third)
        target.judge("the restored copy", third)


@pytest.mark.parametrize("auto", [False, True], ids=["after", "auto"])
@pytest.mark.parametrize("restorer", [Ckpt, Criu], ids=["ckpt", "criu"])
def test_dedup(auto: bool, restorer: type[Tool], place: Path) -> None:
    # Its threads compute: no two dumps are alike.
    program = Program("unharmed", "unharmed")
    with Target(program, place / "target") as target:
        images = chain(target, place, "stop", ("--auto-dedup",) if auto else ())
        before = size(images[0]) // 512
        for one in () if auto else images[1:]:
            Ckpt()._run(target, "dedup", one)
        after = sum(file.stat().st_blocks for file in images[0].glob("pages-*.img"))
        assert after < before
        with pytest.raises(pytest.fail.Exception, match="has freed pages"):
            Ckpt().restore(target, images[0])
        restorer().restore(target, images[-1])
        target.judge("the restored copy", images[-1])


def test_pre_dumps(place: Path) -> None:
    """As who calls criu does it; no script is told of a pre-dump, by neither."""
    script = place / "script"
    script.write_text(f"#!/bin/sh\necho $CRTOOLS_SCRIPT_ACTION >> {place}/told\n")
    script.chmod(0o755)
    program = next(program for program in PROGRAMS if program.name == "anon_private")
    with Target(program, place / "target") as target:
        tool, words = Ckpt(), ["-t", str(target.pid), "--track-mem", "--action-script", str(script)]
        for name in "123":
            (place / name).mkdir()
        tool._run(target, "pre-dump", place / "1", *words)
        tool._run(target, "pre-dump", place / "2", *words, "--prev-images-dir", "../1")
        assert not (place / "told").exists()
        tool._run(target, "dump", place / "3", *words, "--prev-images-dir", "../2")
        target.ended()
        assert (place / "told").read_text().split() == ["pre-dump", "post-dump"]
        assert size(place / "3") < size(place / "1") // 2
        for images in ("3", "1"):
            tool.restore(target, place / images)
            target.judge(f"the copy of {images}", place / images)


@pytest.mark.parametrize("restorer", [Ckpt, Criu], ids=["ckpt", "criu"])
@pytest.mark.parametrize("name", ["tree", "tree_cow"])
def test_trees(name: str, restorer: type[Tool], place: Path) -> None:
    program = next(program for program in TREES if program.name == name)
    with Target(program, place / "target") as target:
        below = [child.pid for child in psutil.Process(target.pid).children(recursive=True)]
        first, _, third = chain(target, place, "live")
        gone(below)
        assert size(third) < size(first) // 2
        restorer().restore(target, third)
        target.judge("the restored copy", third)


@pytest.mark.parametrize("restorer", [Ckpt, Criu], ids=["ckpt", "criu"])
def test_on_top_of_criu(restorer: type[Tool], place: Path) -> None:
    program = next(program for program in PROGRAMS if program.name == "anon_private")
    with Target(program, place / "target") as target:
        Criu().dump(target, place / "first", "-R")
        Ckpt().dump(target, place / "second", "--prev-images-dir", "../first")
        assert size(place / "second") < size(place / "first") // 2
        restorer().restore(target, place / "second")
        target.judge("the restored copy", place / "second")
