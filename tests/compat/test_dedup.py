# SPDX-License-Identifier: Apache-2.0
"""`ckpt dedup` frees what real `criu dedup` frees, and real criu restores what ours has freed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers import peer
from tests.unit.image.test_dedup import HERE, THERE, holes, image


@pytest.mark.skipif(os.geteuid() != 0, reason="real criu needs root")
def test_as_real_criu(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    image(ours / "a", b"a", [(0, 4, HERE), (6, 4, HERE)])
    image(ours / "b", b"b", [(0, 1, THERE), (1, 2, HERE), (3, 1, THERE), (6, 4, THERE)], "../a")
    image(ours / "c", b"c", [(0, 2, THERE), (2, 1, HERE), (6, 1, HERE), (7, 3, THERE)], "../b")
    shutil.copytree(ours, theirs, symlinks=True)
    criu = [peer("criu"), "dedup", "-D", str(theirs / "c"), "-o", "dedup.log", "-v4"]
    subprocess.run(criu, check=True, timeout=60)
    ckpt = [sys.executable, "-m", "ckpt", "dedup", "-D", str(ours / "c"), "-o", "dedup.log"]
    subprocess.run(ckpt, check=True, timeout=60)
    for name in "abc":
        for pages_id in (1, 2):
            assert holes(ours / name, pages_id) == holes(theirs / name, pages_id), name
    assert (ours / "c" / "dedup.log").exists()
