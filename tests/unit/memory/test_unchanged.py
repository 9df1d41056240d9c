# SPDX-License-Identifier: Apache-2.0
"""Whatever two images have, what is left out of the newer one is found in the older one."""

import os
import random
from pathlib import Path

import pytest

from ckpt.errors import ImageError
from ckpt.image import pb
from ckpt.image.directory import ImageDir
from ckpt.image.pages import PAGE, PE_LAZY, PE_PRESENT, PageReader, PageWriter, read_pagemap
from ckpt.memory import unchanged

Memory = dict[int, tuple[bytes, int]]
"""Of each page by number: what it is filled with, and its flags."""


def some_memory(chance: random.Random, before: Memory) -> Memory:
    """Pages here and there, most of them as before."""
    memory: Memory = {}
    for _ in range(chance.randint(0, 6)):
        start, flags = chance.randrange(600), PE_PRESENT | chance.choice((0, PE_LAZY))
        for page in range(start, start + chance.choice((1, 3, 300))):
            same = page in before and chance.random() < 0.7
            memory[page] = (before[page][0] if same else chance.choice((b"a", b"b", b"c")), flags)
    return memory


def write(image: ImageDir, kind: str, memory: Memory) -> None:
    with PageWriter(image, kind, 7, 1 if kind == "pagemap" else 2) as writer:
        for page, (fill, flags) in sorted(memory.items()):
            writer.add(page * PAGE, 1, flags)
            writer.write(fill * PAGE)


def read(image: ImageDir, kind: str) -> Memory:
    found: Memory = {}
    with PageReader(image, kind, 7) as reader:
        for run in reader:
            for number in range(run.nr_pages):
                data = os.pread(run.fd, PAGE, run.offset + number * PAGE)
                assert data == data[:1] * PAGE
                found[run.vaddr // PAGE + number] = data[:1], run.flags
    return found


@pytest.mark.parametrize("seed", range(40))
def test_a_chain_is_as_good_as_the_whole(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    before: dict[str, Memory] = {"pagemap": {}, "pagemap-shmem": {}}
    for number in range(4):
        name, parent = str(tmp_path / str(number)), f"../{number - 1}" if number else None
        with ImageDir.create(name, parent) as image:
            memory = {kind: some_memory(chance, before[kind]) for kind in before}
            for kind, pages in memory.items():
                write(image, kind, pages)
            skipped = unchanged.leave_out(image)
            image.seal(pb.inventory_entry(img_version=2))
        with ImageDir.open(name) as image:
            for kind, count in zip(memory, skipped, strict=True):
                assert read(image, kind) == memory[kind]
                here = sum(run.nr_pages for run in read_pagemap(image, kind, 7).here())
                assert here == len(memory[kind]) - count
                file = f"{name}/pages-{1 if kind == 'pagemap' else 2}.img"
                assert os.path.getsize(file) == here * PAGE
                old = before[kind]
                same = [
                    page
                    for page, (fill, _) in memory[kind].items()
                    if page in old and old[page][0] == fill
                ]
                assert count in (0, len(same))
        before = memory


def test_little_is_not_worth_it(tmp_path: Path) -> None:
    pages = dict.fromkeys(range(100), (b"a", PE_PRESENT))
    with ImageDir.create(tmp_path / "old") as image:
        write(image, "pagemap", {page: pages[page] for page in range(6)})
        image.seal(pb.inventory_entry(img_version=2))
    with ImageDir.create(tmp_path / "new", "../old") as image:
        write(image, "pagemap", pages)
        assert unchanged.leave_out(image) == (0, 0)
    with ImageDir.create(tmp_path / "other", "../old") as image:
        write(image, "pagemap", {page: pages[page] for page in range(90)})
        assert unchanged.leave_out(image) == (6, 0)


def test_a_parent_that_is_no_image_by_itself(tmp_path: Path) -> None:
    with ImageDir.create(tmp_path / "old") as image:
        image.seal(pb.inventory_entry(img_version=2, deduplicated=True))
    with pytest.raises(ImageError, match="has freed pages"):
        ImageDir.create(tmp_path / "new", "../old")
    assert not (tmp_path / "new").exists()


def test_no_parent(tmp_path: Path) -> None:
    with ImageDir.create(tmp_path / "new") as image:
        write(image, "pagemap", {1: (b"a", PE_PRESENT)})
        assert unchanged.leave_out(image) == (0, 0)
