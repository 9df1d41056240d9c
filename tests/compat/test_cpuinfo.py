# SPDX-License-Identifier: Apache-2.0
"""cpuinfo.img is real criu's, byte for byte, and both say the same of one that was changed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt import cpuinfo
from ckpt.errors import CkptError, ImageError
from ckpt.image import pb
from ckpt.image.directory import ImageDir
from tests.peers import peer

Change = Callable[[pb.cpuinfo_x86_entry], None]
SSE3, AVX2, ACPI = (4, 1), (9, 1 << 5), (0, 1 << 22)


def says(place: Path) -> bool:
    """Does real criu agree to a restore here?"""
    if os.geteuid():
        pytest.skip("real criu needs root")
    words = [peer("criu"), "cpuinfo", "check", "-D", str(place)]
    return subprocess.run(words, capture_output=True, timeout=60, check=False).returncode == 0


def changed(place: Path, change: Change) -> Path:
    with ImageDir.beside(place) as image:
        entry = cpuinfo._entry()
        change(entry)
        image.write("cpuinfo", pb.cpuinfo_entry(x86_entry=[entry]))
    return place


def bit(word: int, mask: int, on: bool) -> Change:
    def change(entry: pb.cpuinfo_x86_entry) -> None:
        entry.capability[word] = entry.capability[word] | mask if on else 0

    return change


def put(name: str, value: int) -> Change:
    return lambda entry: setattr(entry, name, value)


def test_as_real_criu_writes_it(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("real criu needs root")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    subprocess.run([peer("criu"), "cpuinfo", "dump", "-D", theirs], check=True, timeout=60)
    for _ in range(2):  # it may be written anew
        cpuinfo.dump(str(ours))
    assert (ours / "cpuinfo.img").read_bytes() == (theirs / "cpuinfo.img").read_bytes()
    cpuinfo.check(str(theirs))
    assert says(ours)


def test_crit_reads_it(tmp_path: Path) -> None:
    cpuinfo.dump(str(tmp_path))
    words = [peer("crit"), "show", str(tmp_path / "cpuinfo.img")]
    shown = json.loads(subprocess.run(words, capture_output=True, check=True, timeout=60).stdout)
    assert len(shown["entries"][0]["x86_entry"][0]["capability"]) == len(cpuinfo.INSTRUCTIONS)


@pytest.mark.parametrize(
    "change",
    [
        put("model", 99),
        put("cpu_family", 9),
        put("stepping", 9),
        put("vendor_id", 2),
        bit(*SSE3, on=False),
        bit(*AVX2, on=False),
        bit(*ACPI, on=True),
    ],
)
def test_makes_no_difference(change: Change, tmp_path: Path) -> None:
    place = changed(tmp_path, change)
    cpuinfo.check(str(place))
    assert says(place)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (bit(1, 1 << 31 | 1 << 30, on=True), "0xc0000000 of word 1"),  # 3DNow!: no CPU has it now
        (bit(6, 1 << 16, on=True), "0x10000 of word 6"),  # FMA4: the same
        (put("xfeatures_mask", 1 << 40), "XSAVE features 0x10000000000"),
        (put("xsave_size", 1 << 20), "xsave_size"),
        (put("xsave_size_max", 1 << 20), "xsave_size_max"),
    ],
)
def test_refused(change: Change, message: str, tmp_path: Path) -> None:
    place = changed(tmp_path, change)
    with pytest.raises(CkptError, match=message):
        cpuinfo.check(str(place))
    assert not says(place)


@pytest.mark.parametrize(
    "change", [put("capability_ver", 3), lambda entry: entry.capability.pop()], ids=["3", "18"]
)
def test_unknown(change: Change, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="unknown version"):
        cpuinfo.check(str(changed(tmp_path, change)))
    with ImageDir.beside(tmp_path) as image:
        image.write("cpuinfo", pb.cpuinfo_entry())
    with pytest.raises(ImageError, match="0 x86 CPUs"):
        cpuinfo.check(str(tmp_path))


def test_command(tmp_path: Path) -> None:
    def run(*words: str) -> int:
        argv = [sys.executable, "-m", "ckpt", "cpuinfo", *words, "-D", str(tmp_path)]
        return subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode

    assert run("check") == ImageError.exit_code
    assert run("dump") == 0
    assert run("check") == 0
    assert run("dumb") == 2
    ImageDir.create(tmp_path).close()  # it is not in the way of an image
