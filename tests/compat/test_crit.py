# SPDX-License-Identifier: Apache-2.0
"""Real crit reads what we write, and we read what real criu writes."""

import json
import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ckpt.image import pb
from ckpt.image.directory import ImageDir
from ckpt.image.kinds import KINDS, Kind
from ckpt.image.pages import PageReader
from ckpt.image.show import show
from tests.peers import peer
from tests.unit.image.samples import complete_image

WRITTEN = [kind for kind in KINDS.values() if kind.magic and kind.name != "pagemap-shmem"]
CRIT_HAS_NONE = {"cgroup", "pidns", "pidfd", "binfmt-misc", "signal-s", "signal-p"}
"""Kinds that crit may lack a decoder for; what it says then is that it has no handler."""


def real(name: str) -> str:
    """The path of a real crit or criu, from $CKPT_PEERS or as the other tests find it."""
    place = os.environ.get("CKPT_PEERS")
    return (place and shutil.which(name, path=f"{place}/bin")) or peer(name)


Decoded = dict[str, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return complete_image(tmp_path_factory.mktemp("crit") / "i")


@pytest.fixture(scope="module")
def decoded(image: Path) -> Decoded:
    """What `crit show` says of each file; all at once, as each start of it is half a second."""
    crit = real("crit")

    def crit_show(path: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([crit, "show", path], capture_output=True, text=True, timeout=60)

    files = [file for file in sorted(image.iterdir()) if not file.name.startswith("pages-")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {file.name: run for file, run in zip(files, pool.map(crit_show, files), strict=True)}


@pytest.mark.parametrize("kind", WRITTEN, ids=str)
def test_crit_decodes_what_we_write(kind: Kind, image: Path, decoded: Decoded) -> None:
    name = next(name for id_ in (1, 7) if (name := file_name(kind, id_)) in decoded)
    run = decoded[name]
    if kind.name in CRIT_HAS_NONE and "No handler" in run.stderr:
        return
    assert run.returncode == 0, run.stderr
    entries = json.loads(run.stdout)["entries"]
    assert list(map(fields, entries)) == list(map(fields, next(show(image / name))["entries"]))
    if kind.tail:
        assert entries[0]["extra"]


def file_name(kind: Kind, id_: int) -> str:
    return kind.file_name(id_ if "%" in kind.pattern else None)


def fields(entry: dict[str, object]) -> set[str]:
    return entry.keys() - {"extra", "extra_bytes"} - OURS


# Fields from 1000 on are ours alone: crit passes over them.
OURS = {
    field.name
    for message in pb.FILE.message_types_by_name.values()
    for field in message.fields
    if field.number >= 1000
}


@pytest.fixture
def dumped(tmp_path: Path) -> Path:
    """An image that real criu made of a sleeping process."""
    criu = real("criu")
    if os.geteuid():
        pytest.skip("criu needs root")
    command = ["setsid", "--fork", "sh", "-c", "echo $$; exec sleep 1000 >/dev/null"]
    pid = int(subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout)
    try:
        while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":
            time.sleep(0.01)
        subprocess.run(
            [criu, "dump", "-t", str(pid), "-D", tmp_path, "--leave-running"], check=True
        )
    finally:
        os.kill(pid, 9)
    return tmp_path


def test_we_read_what_criu_writes(dumped: Path) -> None:
    shown = {file["file"]: file for file in show(dumped)}
    unknown = {file.name for file in dumped.glob("*.img")} - shown.keys()
    assert not unknown
    with ImageDir.open(dumped) as image:
        pid = image.read("pstree").pid
        assert image.read("core", pid).tc.comm == "sleep"
        mm = image.read("mm", pid)
        exe = [m for m, _ in image.records("files") if m.id == mm.exe_file_id]
        assert exe[0].reg.name.endswith("sleep")
        with PageReader(image, "pagemap", pid) as reader:
            stack = reader.find(mm.mm_start_stack)
            assert stack is not None
            assert sum(run.nr_pages for run in reader) * 4096 == os.fstat(stack.fd).st_size
    assert shown[f"core-{pid}.img"]["entries"][0]["mtype"] == "X86_64"
