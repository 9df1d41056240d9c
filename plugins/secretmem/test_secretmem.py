# SPDX-License-Identifier: Apache-2.0
"""The plugin, installed as a user would: a program that keeps a secret has it after a restore."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROGRAM = """
import ctypes, mmap, os, sys
fd = ctypes.CDLL(None, use_errno=True).syscall(447, 0)
if fd < 0:
    sys.exit(77)
twin = os.dup(fd)
os.ftruncate(fd, 8192)
secret = os.urandom(8192)
with mmap.mmap(fd, 8192) as memory:
    memory[:] = secret
os.open("ready", os.O_CREAT)
while not os.path.exists("go"):
    os.sched_yield()
with mmap.mmap(fd, 8192) as memory, mmap.mmap(twin, 8192) as same:
    good = memory[:] == secret
    memory[5] ^= 1
    good &= same[5] == memory[5]
print("good" if good else "bad", os.readlink(f"/proc/self/fd/{fd}"), file=open("verdict", "w"))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that the plugin is installed in."""
    place = tmp_path_factory.mktemp("plugin")
    shutil.copytree(HERE, place / "source", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-build-isolation", "--no-deps"]
    subprocess.run([*pip, "--target", place / "site", place / "source"], check=True)
    return place / "site"


@pytest.fixture
def target(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with a secret, which waits for the file `go`."""
    null = subprocess.DEVNULL
    task = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        stdin=null,
        stdout=null,
        stderr=null,
        start_new_session=True,
    )
    while task.poll() is None and not (tmp_path / "ready").exists():
        os.sched_yield()
    if task.returncode == 77:
        pytest.skip("no memfd_secret on this kernel")
    yield task
    task.kill()
    task.wait()


def ckpt(*words: object, site: Path | str = "") -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "ckpt", *map(str, words)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{site}"},
        cwd=ROOT,
        text=True,
        stderr=subprocess.PIPE,
        check=False,
    )
    return done.returncode, done.stderr


def test_refused_without_it(target: subprocess.Popen[bytes], tmp_path: Path, site: Path) -> None:
    words = ("dump", "-t", target.pid, "-D", tmp_path / "images", "-R")
    assert ckpt(*words)[0] == 3
    assert ckpt(*words, "--no-plugins", site=site)[0] == 3


def test_goes_on_with_its_secret(
    target: subprocess.Popen[bytes], tmp_path: Path, site: Path
) -> None:
    images = tmp_path / "images"
    assert ckpt("dump", "-t", target.pid, "-D", images, site=site) == (0, "")
    target.wait()
    (content,) = images.glob("ext-secretmem-*.img")
    assert content.stat().st_size == 8192
    assert content.stat().st_mode & 0o777 == 0o600
    code, said = ckpt("restore", "-d", "-D", images)
    assert (code, "for a plugin ('secretmem') that is not here" in said) == (6, True)
    (tmp_path / "go").touch()
    assert ckpt("restore", "-D", images, site=site) == (0, "")
    assert (tmp_path / "verdict").read_text() == "good /secretmem (deleted)\n"


@pytest.mark.parametrize("size", [100, 65 << 20])
def test_a_damaged_image(
    size: int, target: subprocess.Popen[bytes], tmp_path: Path, site: Path
) -> None:
    images = tmp_path / "images"
    assert ckpt("dump", "-t", target.pid, "-D", images, site=site) == (0, "")
    target.wait()
    (content,) = images.glob("ext-secretmem-*.img")
    os.truncate(content, size)
    assert ckpt("restore", "-d", "-D", images, site=site)[0] == 6
    assert not os.path.exists(f"/proc/{target.pid}")
