# SPDX-License-Identifier: Apache-2.0
"""A damaged image may be refused or, by luck, read; it may never do anything else."""

import random
import resource
import shutil

import pytest

from ckpt.errors import ImageError
from ckpt.image.directory import ImageDir
from ckpt.image.kinds import KINDS
from ckpt.image.pages import PageReader
from ckpt.image.show import render_text
from tests.unit.image.samples import complete_image

MUTATIONS = 12_000
SEED = 20140515
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)
WORDS = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFF000)


def mutate(data: bytes, random_: random.Random) -> bytes:
    """Change a byte or a word, cut, repeat or insert a piece."""
    at = random_.randrange(len(data) + 1)
    match random_.randrange(5):
        case 0:
            return data[:at] + bytes([random_.choice(INTERESTING)]) + data[at + 1 :]
        case 1:
            return data[:at] + random_.choice(WORDS).to_bytes(4, "little") + data[at + 4 :]
        case 2:
            return data[:at]
        case 3:
            return data[:at] + data[at // 2 :]
        case _:
            return data[:at] + random_.randbytes(random_.randrange(1, 9)) + data[at:]


def read_all(path, kind, id_):
    """What a restore and `ckpt show` would do with the file."""
    with ImageDir.open(path) as image:
        if kind.name in ("pagemap", "pages"):
            with PageReader(image, "pagemap", 1) as reader:
                assert all(run.nr_pages > 0 for run in reader)
                reader.find(0x1000)
        if kind.magic:
            for _ in image.records(kind.name, id_):
                pass
    for _ in render_text(path / kind.file_name(id_)):
        pass


@pytest.fixture
def bounded_memory():
    """A length from a damaged file that is believed becomes a MemoryError."""
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


def test_mutations(tmp_path, bounded_memory):
    random_ = random.Random(SEED)
    complete_image(tmp_path / "parent")
    path = complete_image(tmp_path / "i", parent="../parent")
    files = [
        (kind, id_, path / kind.file_name(id_))
        for kind in KINDS.values()
        for id_ in (None, 1, 7)
        if (id_ is None) == ("%" not in kind.pattern) and (path / kind.file_name(id_)).exists()
    ]
    originals = [file.read_bytes() for _, _, file in files]
    refused = 0
    for number in range(MUTATIONS):
        (kind, id_, file), data = files[number % len(files)], originals[number % len(files)]
        for _ in range(random_.randrange(1, 4)):
            data = mutate(data, random_)
        file.write_bytes(data)
        try:
            read_all(path, kind, id_)
        except ImageError:
            refused += 1
        file.write_bytes(originals[number % len(files)])
    assert MUTATIONS // 4 < refused < MUTATIONS  # it does fuzz, and does not just break everything


def test_a_missing_file_is_an_image_error(tmp_path):
    path = complete_image(tmp_path / "i")
    for kind, id_ in ((KINDS["pagemap"], 1), (KINDS["pages"], 1), (KINDS["inventory"], None)):
        copy = tmp_path / kind.name
        shutil.copytree(path, copy)
        (copy / kind.file_name(id_)).unlink()
        with pytest.raises(ImageError):
            read_all(copy, kind, id_)
