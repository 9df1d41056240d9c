# SPDX-License-Identifier: Apache-2.0
"""What is known ahead of the freeze of a table of descriptors, of a process that goes on."""

import os
from pathlib import Path

import pytest

from ckpt.files.kind import Dump
from ckpt.files.opened import OpenFiles
from ckpt.image.directory import ImageDir
from ckpt.kernel.glance import Glance
from ckpt.kernel.way import Way
from ckpt.options import DumpOptions


@pytest.mark.parametrize("closed", [False, True])
def test_a_descriptor_closed_before_the_glance(
    closed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The freeze sees it closed just as the glance ahead did, but it was known as open."""
    reader, writer = os.pipe()
    pid, ids = os.fork(), iter(range(1, 1000))
    if not pid:
        while os.read(reader, 1) == b"c":
            os.close(writer)
        os._exit(0)
    options = DumpOptions(pid=pid, images_dir=tmp_path / "images")
    image = ImageDir.create(tmp_path / "images")
    out = Dump(image, options, lambda *_: None, lambda: next(ids), lambda _: None)
    look, pidfd = Glance.look, os.pidfd_open(pid)

    def after_it_was_closed(self):
        if closed and os.path.exists(f"/proc/{pid}/fd/{writer}"):
            os.write(writer, b"c")
            while os.path.exists(f"/proc/{pid}/fd/{writer}"):
                pass
        return look(self)

    monkeypatch.setattr(Glance, "look", after_it_was_closed)
    with image, OpenFiles() as opened, Glance() as glance:
        opened.add(Way(pid, pid), pidfd)
        opened.look()
        opened.look_ahead(out, glance)
        assert opened._agrees is not closed
        opened.take(out, glance.look())
        found = [entry.fd for entry in opened.entries(pid)]
        out.abandon()
    assert (writer in found) is not closed
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    for fd in (reader, writer, pidfd):
        os.close(fd)
