# SPDX-License-Identifier: Apache-2.0
import ctypes
import fcntl
import os
import socket
import stat

import pytest

from ckpt.errors import ImageError, Unsupported
from ckpt.files.kind import INSIDE
from ckpt.files.opened import kind_of
from ckpt.files.regfile import RegFile, open_entry, save_path
from ckpt.files.sockopts import family
from ckpt.image import pb


@pytest.fixture
def here(tmp_path):
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def opened(round_trip):
    return lambda path, flags=os.O_RDONLY: round_trip.keep(os.open(path, flags, 0o640))


def finish(round_trip):
    round_trip.make.close(ok=True)


def options(round_trip, **changes):
    round_trip.out.options = round_trip.out.options.replace(**changes)


@pytest.mark.parametrize(
    "flags",
    [
        os.O_RDONLY,
        os.O_RDWR | os.O_SYNC,
        os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK,
        os.O_RDONLY | os.O_NOATIME,
        os.O_PATH,
        os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    ],
)
def test_a_file_with_its_flags(round_trip, here, opened, flags):
    path = here / "plain"
    path.write_bytes(b"x" * 5000)
    fd = opened(path, flags)
    copy = round_trip.trip(RegFile, fd)
    assert fcntl.fcntl(copy, fcntl.F_GETFL) == fcntl.fcntl(fd, fcntl.F_GETFL)
    assert os.path.sameopenfile(fd, copy)


def test_direct_io(round_trip, here, opened):
    path = here / "plain"
    path.write_bytes(b"x" * 5000)
    try:
        fd = opened(path, os.O_DIRECT)
    except OSError:
        pytest.skip("no O_DIRECT on this file system")
    copy = round_trip.trip(RegFile, fd)
    assert fcntl.fcntl(copy, fcntl.F_GETFL) & os.O_DIRECT


def test_the_position(round_trip, here, opened):
    (here / "plain").write_bytes(b"x" * 5000)
    fd = opened(here / "plain")
    os.lseek(fd, 6000, os.SEEK_SET)
    copy = round_trip.trip(RegFile, fd)
    assert os.lseek(copy, 0, os.SEEK_CUR) == os.lseek(fd, 0, os.SEEK_CUR) == 6000


@pytest.mark.parametrize("name", ["caf\u00e9", "\udcff\udcfe", "line\nbreak"])
def test_any_name(round_trip, here, opened, name):
    (here / name).write_bytes(b"x" * 5000)
    fd = opened(here / name)
    assert os.path.sameopenfile(fd, round_trip.trip(RegFile, fd))


@pytest.mark.parametrize(
    "path", ["/", "/tmp", "/dev/null", "/dev/zero", "/proc/self/status", "/sys/kernel", "/proc/1"]
)
def test_other_things_with_a_path(round_trip, opened, path):
    fd = opened(path)
    copy = round_trip.trip(RegFile, fd)
    assert os.path.sameopenfile(fd, copy)
    assert os.readlink(f"/proc/self/fd/{copy}") == os.readlink(f"/proc/self/fd/{fd}")


def test_an_open_symlink(round_trip, here, opened):
    (here / "link").symlink_to("nowhere")
    copy = round_trip.trip(RegFile, opened(here / "link", os.O_PATH | os.O_NOFOLLOW))
    assert os.readlink("", dir_fd=copy) == "nowhere"


def test_what_criu_writes(round_trip, here, opened):
    path = here / "plain"
    path.write_bytes(b"x" * 5000)
    entry = round_trip.message(round_trip.dump(RegFile, opened(path, os.O_RDWR)))
    assert (entry.flags, entry.pos, entry.size) == (0o100002, 0, 5000)
    assert entry.mode == path.stat().st_mode
    assert not entry.HasField("mnt_id")
    log = round_trip.message(round_trip.dump(RegFile, opened(path, os.O_WRONLY | os.O_APPEND)))
    assert not log.HasField("size")
    null = round_trip.message(round_trip.dump(RegFile, opened("/dev/null")))
    assert not null.HasField("size")


# --- a file that is not as it was


def test_a_changed_size_is_refused(round_trip, here, opened):
    (here / "plain").write_bytes(b"x" * 5000)
    file_id = round_trip.dump(RegFile, opened(here / "plain"))
    (here / "plain").write_bytes(b"x" * 5001)
    with pytest.raises(ImageError, match=r"plain: expected 5000 bytes, found 5001"):
        round_trip.create(file_id)


def test_a_log_may_have_grown(round_trip, here, opened):
    file_id = round_trip.dump(RegFile, opened(here / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT))
    (here / "log").write_bytes(b"later")
    round_trip.create(file_id)


def test_another_type_is_refused(round_trip, here, opened):
    (here / "plain").write_bytes(b"")
    file_id = round_trip.dump(RegFile, opened(here / "plain"))
    (here / "plain").unlink()
    (here / "plain").symlink_to("/etc/passwd")
    with pytest.raises(ImageError, match="expected a regular file, found a symbolic link"):
        round_trip.create(file_id)


def test_a_missing_file_is_refused(round_trip, here, opened):
    (here / "plain").write_bytes(b"")
    file_id = round_trip.dump(RegFile, opened(here / "plain"))
    (here / "plain").unlink()
    with pytest.raises(ImageError, match="expected a regular file, found no such file"):
        round_trip.create(file_id)


def test_a_path_does_not_lead_out_of_the_root(round_trip, here, opened):
    (here / "plain").write_bytes(b"")
    file_id = round_trip.dump(RegFile, opened(here / "plain"))
    (here / "root").mkdir()
    round_trip.make.root = str(here / "root")
    round_trip.message(file_id).name = "/../plain"
    with pytest.raises(ImageError, match="found no such file"):
        round_trip.create(file_id)


def test_a_file_at_its_path_that_is_another_is_refused(round_trip, here, opened):
    (here / "plain").write_bytes(b"")
    file = round_trip.open_file(opened(here / "plain"))
    (here / "other").write_bytes(b"")
    (here / "other").replace(here / "plain")
    with pytest.raises(Unsupported, match="another file"):
        RegFile.check(file, round_trip.out.options)


def test_a_renamed_file_is_where_it_is_now(round_trip, here, opened):
    (here / "plain").write_bytes(b"")
    fd = opened(here / "plain")
    (here / "plain").rename(here / "new")
    assert round_trip.message(round_trip.dump(RegFile, fd)).name == str(here / "new")


# --- deleted files


def deleted(opened, path, content=b""):
    fd = opened(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, content)
    path.unlink()
    return fd


def test_a_deleted_file_comes_with_its_content(round_trip, here, opened):
    fd = deleted(opened, here / "ghost", b"ghost content")
    copy = round_trip.trip(RegFile, fd)
    finish(round_trip)
    assert os.pread(copy, 100, 0) == b"ghost content"
    assert os.lseek(copy, 0, os.SEEK_CUR) == os.lseek(fd, 0, os.SEEK_CUR) == 13
    assert os.readlink(f"/proc/self/fd/{copy}") == f"{here}/ghost (deleted)"
    old, new = os.fstat(fd), os.fstat(copy)
    assert (new.st_mode, new.st_uid, new.st_nlink) == (old.st_mode, old.st_uid, 0)
    assert new.st_mtime_ns // 1000 == old.st_mtime_ns // 1000
    assert not list(here.iterdir())


def test_two_openers_share_a_ghost(round_trip, here, opened):
    fd = opened(here / "ghost", os.O_RDWR | os.O_CREAT)
    twin = opened(here / "ghost")
    (here / "ghost").unlink()
    ids = [round_trip.dump(RegFile, fd), round_trip.dump(RegFile, twin)]
    ids.append(save_path(fd, os.readlink(f"/proc/self/fd/{fd}"), round_trip.out))
    first, second = (round_trip.create(file_id) for file_id in ids[:2])
    mapped = open_entry(round_trip.entries[ids[2]].reg, round_trip.make, os.O_RDWR)
    round_trip.keep(mapped)
    os.write(first, b"seen by all")
    assert os.pread(second, 100, 0) == os.pread(mapped, 100, 0) == b"seen by all"


def test_a_ghost_with_holes(round_trip, here, opened):
    fd = deleted(opened, here / "sparse", b"a" * 10)
    os.pwrite(fd, b"b" * 10, 500_000)
    os.ftruncate(fd, 700_000)
    copy = round_trip.trip(RegFile, fd)
    assert os.pread(copy, 1 << 20, 0) == os.pread(fd, 1 << 20, 0)
    assert os.fstat(copy).st_blocks == os.fstat(fd).st_blocks
    (first, _), *chunks = round_trip.image.records("ghost-file", 1)
    assert first.chunks
    assert first.size == 700_000
    assert sum(chunk.len for chunk, _ in chunks) < 20_000


@pytest.mark.parametrize("content", [b"", b"just made"])
def test_a_file_that_never_had_a_name(round_trip, here, opened, content):
    fd = opened(here, os.O_TMPFILE | os.O_RDWR)
    os.write(fd, content)
    copy = round_trip.trip(RegFile, fd)
    finish(round_trip)
    assert os.pread(copy, 100, 0) == content
    assert not list(here.iterdir())


def test_a_deleted_directory(round_trip, here, opened):
    (here / "dir").mkdir()
    fd = opened(here / "dir")
    (here / "dir").rmdir()
    copy = round_trip.trip(RegFile, fd)
    finish(round_trip)
    assert stat.S_ISDIR(os.fstat(copy).st_mode)
    assert not list(here.iterdir())


def test_a_ghost_in_a_directory_that_is_gone(round_trip, here, opened):
    (here / "dir").mkdir()
    fd = deleted(opened, here / "dir" / "ghost", b"content")
    (here / "dir").rmdir()
    copy = round_trip.trip(RegFile, fd)
    finish(round_trip)
    assert os.pread(copy, 100, 0) == b"content"


def test_a_ghost_leaves_alone_who_has_its_name_now(round_trip, here, opened):
    fd = deleted(opened, here / "ghost", b"old")
    (here / "ghost").write_bytes(b"new")
    copy = round_trip.trip(RegFile, fd)
    finish(round_trip)
    assert os.pread(copy, 100, 0) == b"old"
    assert [path.name for path in here.iterdir()] == ["ghost"]
    assert (here / "ghost").read_bytes() == b"new"


def test_a_failed_restore_leaves_no_ghost(round_trip, here, opened):
    round_trip.trip(RegFile, deleted(opened, here / "ghost", b"x"))
    round_trip.make.close(ok=False)
    assert not list(here.iterdir())


def test_a_large_ghost_is_refused(round_trip, here, opened):
    fd = deleted(opened, here / "ghost", b"x" * 8192)
    os.fsync(fd)
    options(round_trip, ghost_limit=8191)
    with pytest.raises(Unsupported, match="8192 bytes") as caught:
        round_trip.dump(RegFile, fd)
    assert "--ghost-limit 8192" in caught.value.hint


# --- deleted, but with another name


@pytest.fixture
def half_deleted(here, opened):
    (here / "plain").write_bytes(b"content")
    fd = opened(here / "plain")
    (here / "elsewhere").hardlink_to(here / "plain")
    (here / "plain").unlink()
    return fd


def test_another_name_has_to_be_allowed(round_trip, half_deleted):
    with pytest.raises(Unsupported, match="other names") as caught:
        round_trip.dump(RegFile, half_deleted)
    assert "--link-remap" in caught.value.hint


def test_a_new_name_beside_the_old(round_trip, here, half_deleted):
    options(round_trip, link_remap=True)
    file_id = round_trip.dump(RegFile, half_deleted)
    assert {path.name for path in here.iterdir()} == {"elsewhere", f"link_remap.{file_id + 1}"}
    copy = round_trip.create(file_id)
    finish(round_trip)
    assert os.path.sameopenfile(copy, half_deleted)
    assert os.readlink(f"/proc/self/fd/{copy}") == f"{here}/plain (deleted)"
    assert [path.name for path in here.iterdir()] == ["elsewhere"]


def test_a_target_that_runs_on_sees_no_new_name(round_trip, here, half_deleted):
    options(round_trip, link_remap=True, leave_running=True)
    file_id = round_trip.dump(RegFile, half_deleted)
    assert [path.name for path in here.iterdir()] == ["elsewhere"]
    copy = round_trip.create(file_id)
    finish(round_trip)
    assert os.path.sameopenfile(copy, half_deleted)
    assert [path.name for path in here.iterdir()] == ["elsewhere"]


def test_a_file_that_has_lost_all_names_since_is_refused(round_trip, here, half_deleted):
    options(round_trip, link_remap=True, leave_running=True)
    file_id = round_trip.dump(RegFile, half_deleted)
    (here / "elsewhere").unlink()
    os.dup2(os.open("/dev/null", os.O_RDONLY), half_deleted)
    with pytest.raises(ImageError, match="other names"):
        round_trip.create(file_id)


def test_a_failed_dump_takes_the_new_name_back(round_trip, here, half_deleted):
    options(round_trip, link_remap=True)
    round_trip.dump(RegFile, half_deleted)
    round_trip.out.abandon()
    assert [path.name for path in here.iterdir()] == ["elsewhere"]


def test_a_failed_restore_leaves_the_new_name(round_trip, here, half_deleted):
    options(round_trip, link_remap=True)
    round_trip.trip(RegFile, half_deleted)
    round_trip.make.close(ok=False)
    assert len(list(here.iterdir())) == 2


def test_one_path_has_one_id(round_trip, here, opened):
    fd = opened("/usr", os.O_PATH)
    ids = {save_path(fd, "/usr", round_trip.out) for _ in range(2)}
    assert len(ids) == 1
    entry = round_trip.entries[ids.pop()].reg
    assert (entry.name, entry.flags, entry.pos) == ("/usr", 0, 0)


def test_a_socket_that_is_a_mere_path(round_trip, here, opened):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(here / "socket"))
        fd = opened(here / "socket", os.O_PATH)
        assert family(round_trip.open_file(fd)) == -1
        assert kind_of(round_trip.open_file(fd)) is RegFile
        assert stat.S_ISSOCK(os.fstat(round_trip.trip(RegFile, fd)).st_mode)
    os.unlink(here / "socket")
    with pytest.raises(Unsupported, match="a deleted socket"):
        round_trip.dump(RegFile, fd)


def test_a_socket_of_a_family_without_names(round_trip):
    try:
        xdp = socket.socket(44, socket.SOCK_RAW)
    except OSError as error:
        pytest.skip(f"no AF_XDP: {error}")
    with xdp, pytest.raises(Unsupported, match="not supported"):
        kind_of(round_trip.open_file(xdp.fileno()))


def test_secret_memory_is_refused(round_trip):
    fd = ctypes.CDLL(None).syscall(447, 0)
    if fd < 0:
        pytest.skip("no memfd_secret")
    round_trip.keep(fd)
    with pytest.raises(Unsupported, match="secret memory"):
        round_trip.dump(RegFile, fd)


def test_files_below_proc_net_are_shown_as_deleted(round_trip, opened):
    fd = opened(f"/proc/{os.getpid()}/net/unix")
    assert round_trip.message(round_trip.dump(RegFile, fd)).name == f"/proc/{os.getpid()}/net/unix"


def test_a_file_of_the_task_itself_is_opened_inside(round_trip, opened):
    file_id = round_trip.dump(RegFile, opened("/proc/self/status"))
    round_trip.image.write("pstree", pb.pstree_entry(pid=os.getpid(), ppid=0, pgid=1, sid=1))
    round_trip.out.close()
    assert RegFile.create(round_trip.message(file_id), round_trip.make) == INSIDE
