# SPDX-License-Identifier: Apache-2.0
import contextlib
import os
import signal
import struct

import pytest

from ckpt.errors import ImageError, Unsupported
from ckpt.files.inotify import Inotify
from ckpt.files.kind import Placed
from ckpt.kernel import inotify
from ckpt.kernel.fdinfo import fdinfo
from ckpt.log import Log
from ckpt.options import DumpOptions

IN_ATTRIB, IN_CREATE = 4, 0x100
NO_BATCH = None  # connect() adds no calls


@pytest.fixture
def watch(round_trip, tmp_path):
    """An instance that watches a directory, and the directory."""
    directory = tmp_path / "watched"
    directory.mkdir()
    fd = round_trip.keep(inotify.init(os.O_NONBLOCK | os.O_CLOEXEC))
    handle = os.open(directory, os.O_PATH)
    inotify.add_watch(fd, handle, IN_CREATE)
    os.close(handle)
    return fd, directory


def restored(round_trip, file_id):
    copy = round_trip.create(file_id)
    Inotify.connect(round_trip.message(file_id), Placed(copy, file_id), round_trip.make, NO_BATCH)
    return copy


def open_files():
    for one in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            yield int(one), os.readlink(f"/proc/self/fd/{one}")


def events(fd):
    wd, mask, _, size = struct.unpack_from("<iIII", data := os.read(fd, 4096))
    return wd, mask, data[16 : 16 + size].rstrip(b"\0")


def test_watches_keep_their_numbers(round_trip, watch):
    fd, directory = watch
    root = os.open("/", os.O_PATH)
    inotify.set_next(fd, 77)
    assert inotify.add_watch(fd, root, IN_ATTRIB) == 77
    os.close(root)
    copy = restored(round_trip, round_trip.dump(Inotify, fd))
    assert fdinfo("self", copy).inotify == fdinfo("self", fd).inotify
    (directory / "new").touch()
    assert events(copy) == events(fd) == (1, IN_CREATE, b"new")


def test_nothing_of_ours_is_left_open(round_trip, watch):
    fd, directory = watch
    copy = restored(round_trip, round_trip.dump(Inotify, fd))
    links = dict(open_files())
    assert str(directory) not in links.values()
    assert {number for number in links if links[number] == links[fd]} == {fd, copy}


def test_events_that_wait_stay_with_the_target_and_the_log_says_so(round_trip, watch, monkeypatch):
    said = []
    monkeypatch.setattr(Log, "warning", lambda self, where, text: said.append(text))
    fd, directory = watch
    (directory / "new").touch()
    copy = restored(round_trip, round_trip.dump(Inotify, fd))
    assert events(fd)[2] == b"new"
    with pytest.raises(BlockingIOError):
        os.read(copy, 4096)
    assert len(said) == 1 and "32 bytes of events" in said[0]


def test_what_was_renamed_is_found_by_its_handle(round_trip, watch):
    fd, directory = watch
    file_id = round_trip.dump(Inotify, fd)
    moved = directory.rename(directory.with_name("moved"))
    directory.mkdir()
    copy = restored(round_trip, file_id)
    (moved / "new").touch()
    assert events(copy)[2] == b"new"


def test_on_another_machine_the_path_leads_to_it(round_trip, watch):
    fd, directory = watch
    file_id = round_trip.dump(Inotify, fd)
    message = round_trip.message(file_id).wd[0]
    assert message.f_handle.path == str(directory)
    message.i_ino += 1
    copy = restored(round_trip, file_id)
    (directory / "new").touch()
    assert events(copy)[2] == b"new"


def test_what_is_gone_is_not_restored(round_trip, watch):
    fd, directory = watch
    file_id = round_trip.dump(Inotify, fd)
    directory.rmdir()
    with pytest.raises(ImageError, match="expected a file to watch, found none"):
        round_trip.create(file_id)


@pytest.mark.parametrize("option", ["force", "no handle"])
def test_a_path_is_searched_for(round_trip, watch, option, monkeypatch):
    fd, directory = watch
    monkeypatch.setattr("ckpt.files.fhandle._find", lambda *_: "" if option == "force" else None)
    monkeypatch.setattr("ckpt.files.fhandle._LIKELY", ())
    scan = {"irmap_scan_path": (str(directory.parent),)}
    round_trip.out.options = DumpOptions(pid=0, force_irmap=option == "force", **scan)
    message = round_trip.message(round_trip.dump(Inotify, fd))
    assert message.wd[0].f_handle.path == str(directory)
    round_trip.out.options = DumpOptions(pid=0, force_irmap=option == "force")
    with pytest.raises(Unsupported, match="path is not to be found"):
        round_trip.dump(Inotify, fd)


def test_a_file_that_only_others_have_open_is_refused(round_trip, watch, tmp_path):
    fd, _ = watch
    handle = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    inotify.add_watch(fd, handle, IN_ATTRIB)
    os.unlink(tmp_path / "file")
    round_trip.dump(Inotify, fd)  # we have it open
    holder = os.fork()
    if not holder:
        signal.pause()
    os.close(handle)
    try:
        with pytest.raises(Unsupported, match="only others have open"):
            round_trip.dump(Inotify, fd)
    finally:
        os.kill(holder, 9)
        os.waitpid(holder, 0)


def test_damaged_records(round_trip, watch):
    file_id = round_trip.dump(Inotify, watch[0])
    message = round_trip.message(file_id)
    message.wd[0].wd = 0
    with pytest.raises(ImageError, match="cannot be number 0"):
        round_trip.create(file_id)
    message.wd[0].wd = 1
    message.wd[0].f_handle.bytes = 2**32 - 1
    with pytest.raises(ImageError, match="a handle of 4294967295 bytes"):
        round_trip.create(file_id)
