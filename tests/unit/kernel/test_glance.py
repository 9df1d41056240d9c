# SPDX-License-Identifier: Apache-2.0
"""A glance sees calls and files at one moment, by us or aside; two are compared part by part."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt.kernel.arch import NR
from ckpt.kernel.glance import NOTHING, Glance


@pytest.fixture(params=[False, True], ids=["by us", "aside"])
def glance(request: pytest.FixtureRequest) -> Iterator[Glance]:
    with Glance(aside=request.param) as one:
        yield one


def test_what_was_begun_is_seen(glance: Glance, tmp_path: Path) -> None:
    """Each time anew; a look in between is one of its own."""
    path = tmp_path / "file"
    path.write_text("one")
    glance.add(str(path))
    for text in ("two", "longer than that", ""):
        path.write_text(text)
        glance.begin()
        assert glance.seen().find(str(path)) == text.encode()
    path.write_text("three")
    assert glance.look().find(str(path)) == b"three"
    glance.begin()
    glance.begin()
    assert glance.seen().find(str(path)) == b"three"


def test_what_is_needed_first_is_seen_like_the_rest(glance: Glance, tmp_path: Path) -> None:
    """Also where it does not fit, and where another look comes before the rest is asked for."""
    first, other = tmp_path / "first", tmp_path / "other"
    first.write_text("one")
    other.write_text("two")
    glance.add(str(other))
    before = glance.mark()
    glance.link("/proc/self/exe")
    part = glance.since(before)
    glance.add(str(first), first=True)
    glance.add(str(first))
    ahead = glance.look()
    for text in ("three", "f" * (100 << 10), "four"):
        first.write_text(text)
        glance.begin()
        seen = glance.seen()
        assert seen.find(str(first)) == text.encode()
        if text == "four":
            assert glance.look().find(str(other)) == b"two"
        assert seen.find(str(other)) == b"two"
        assert seen.find(str(first)) == text.encode()
        assert seen.same_answers(ahead, part)
        assert seen.answers(part)[0] == ahead.answers(part)[0]
        assert seen.same_file(ahead, str(other))
        assert not seen.same_file(ahead, str(first))


def test_what_was_seen_first_stays(glance: Glance, tmp_path: Path) -> None:
    """Where there is no room for the rest, that is looked at later, and nothing else."""
    first, other = tmp_path / "first", tmp_path / "other"
    first.write_text("one")
    other.write_bytes(b"x" * (100 << 10))
    glance.add(str(first), first=True)
    glance.add(str(other))
    glance.begin()
    seen = glance.seen()
    first.write_text("three")
    assert seen.find(str(first)) == b"one"
    assert seen.find(str(other)) == b"x" * (100 << 10)
    assert seen.find(str(first)) == b"one"


def test_a_link_that_comes_later(glance: Glance, tmp_path: Path) -> None:
    """One that was not there when it was added is no less a difference."""
    begin = glance.mark()
    glance.link(str(tmp_path / "link"))
    part = glance.since(begin)
    before = glance.look()
    assert glance.look().same_answers(before, part)
    (tmp_path / "link").symlink_to("/")
    assert not glance.look().same_answers(before, part)


def test_more_than_there_is_room_for(glance: Glance, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (300 << 10))
    glance.add(str(path))
    glance.begin()
    assert len(glance.seen().find(str(path)) or b"") == 300 << 10


def test_a_file_that_is_not_there(glance: Glance, tmp_path: Path) -> None:
    glance.add(str(tmp_path / "none"))
    assert glance.look().find(str(tmp_path / "none")) is None
    assert glance.look().read(os.getpid(), "comm")


def test_parts(glance: Glance, tmp_path: Path) -> None:
    """What differs in one does not in another; what came later makes no difference."""
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_text(file.name)
    parts = []
    for file in files:
        begin = glance.mark()
        glance.add(str(file))
        (tmp_path / f"to {file.name}").symlink_to("/usr")
        glance.link(str(tmp_path / f"to {file.name}"))
        parts.append(glance.since(begin))
    before = glance.look()
    files[1].write_text("x")
    (tmp_path / "to b").unlink()
    (tmp_path / "to c").unlink()
    (tmp_path / "to c").symlink_to("/")
    glance.add("/proc/self/stat")
    after = glance.look()
    assert [after.differing(before, part) for part in parts] == [[], [str(files[1])], []]
    assert [after.same_answers(before, part) for part in parts] == [True, False, False]
    assert not after.differing(before, NOTHING) and after.same_answers(before, NOTHING)
    assert not after.same_file(before, str(files[1]))
    results, answers = after.answers(parts[0])
    assert results == [0, len("/usr")]
    assert answers.startswith(b"%s/to a\0" % os.fsencode(tmp_path))
    assert answers.rstrip(b"\0").endswith(b"/usr")


def test_calls(glance: Glance) -> None:
    """Their results, and what they wrote; the room is as new each time."""
    reader, writer = os.pipe()
    os.write(writer, b"abcdef")
    begin = glance.mark()
    glance.call(NR.read, reader, glance.out(8), 3)
    part = glance.since(begin)
    assert [glance.look().answers(part) for _ in range(2)] == [
        ([3], b"abc\0\0\0\0\0"),
        ([3], b"def\0\0\0\0\0"),
    ]
    os.close(reader)
    assert glance.look().answers(part) == ([-9], bytes(8))
    os.close(writer)
