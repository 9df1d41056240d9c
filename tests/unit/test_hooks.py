# SPDX-License-Identifier: Apache-2.0
"""In which order plugins are called, and what one that fails does to the others."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from ckpt.errors import CkptError
from ckpt.hooks import Hooks
from ckpt.image.directory import ImageDir
from ckpt.options import DumpOptions
from ckpt.plugin import Plugin


class Witness(Plugin):
    """Takes note of what it is called for, and fails when told to."""

    def __init__(self, name: str, calls: list[str], fails: str = "") -> None:
        self.name, self.calls, self.fails = name, calls, fails

    def _called(self, method: str) -> None:
        self.calls.append(f"{self.name}.{method}")
        if method == self.fails:
            raise CkptError(f"{self.name} cannot {method}")

    def pause(self, pids: Sequence[int]) -> None:
        assert pids == [7]
        self._called("pause")

    def dump(self, pids: Sequence[int], image: ImageDir) -> None:
        self._called("dump")

    def restore(self, pids: Sequence[int], image: ImageDir) -> None:
        self._called("restore")

    def resume(self, pids: Sequence[int]) -> None:
        assert pids == [7]
        self._called("resume")


@pytest.fixture
def image(tmp_path: Path) -> ImageDir:
    return ImageDir.create(tmp_path / "image")


def run(image: ImageDir, *fails: str, killed: bool = False) -> list[str]:
    """A dump with two plugins, the n-th failing as told; returns the calls."""
    calls: list[str] = []
    plugins = tuple(Witness(name, calls, fail) for name, fail in zip("ab", fails, strict=True))
    hooks = Hooks(DumpOptions(pid=7, plugins=plugins))
    try:
        with hooks.paused([7]):
            hooks.dump([7], image)
            if killed:
                hooks.killed()
    except CkptError as error:
        calls.append(str(error))
    return calls


def test_order(image: ImageDir) -> None:
    assert run(image, "", "") == ["a.pause", "b.pause", "a.dump", "b.dump", "b.resume", "a.resume"]


def test_a_killed_process_is_not_resumed(image: ImageDir) -> None:
    assert run(image, "", "", killed=True) == ["a.pause", "b.pause", "a.dump", "b.dump"]


def test_who_was_paused_is_resumed(image: ImageDir) -> None:
    assert run(image, "pause", "") == ["a.pause", "a.resume", "a cannot pause"]
    failed = run(image, "", "dump")
    assert failed[-3:] == ["b.resume", "a.resume", "b cannot dump"]


def test_all_are_resumed_though_one_fails(image: ImageDir) -> None:
    assert run(image, "", "resume")[-2:] == ["b.resume", "a.resume"]


def test_everybody_is_told_and_the_first_objection_counts() -> None:
    told: list[tuple[str, int]] = []

    def notify(point: str, pid: int) -> None:
        told.append((point, pid))
        raise CkptError(f"objection {len(told)}")

    hooks = Hooks(DumpOptions(pid=7, notify=(notify, notify)))
    with pytest.raises(CkptError, match="objection 1"):
        hooks.pre_dump(7)
    assert told == [("pre-dump", 7)] * 2
    hooks.pre_dump(7)  # of another attempt
    assert len(told) == 2
    hooks.post_resume([7])  # too late to object


def test_an_image_that_is_objected_to_is_none(tmp_path: Path) -> None:
    def notify(point: str, pid: int) -> None:
        raise CkptError("no")

    from ckpt.image import pb

    hooks = Hooks(DumpOptions(pid=7, notify=(notify,)))
    with pytest.raises(CkptError, match="no"), ImageDir.create(tmp_path / "image") as image:
        image.seal(pb.inventory_entry(img_version=2))
        hooks.post_dump(7, image)
    assert not (tmp_path / "image").exists()
