# SPDX-License-Identifier: Apache-2.0
import errno
import os

import pytest

from ckpt.errors import ImageError, KernelError, NotPermitted, Unsupported
from ckpt.files.fanotify import Fanotify
from ckpt.files.kind import Placed
from ckpt.image import pb
from ckpt.kernel import fanotify
from ckpt.kernel.fanotify import Mark
from ckpt.kernel.fdinfo import fdinfo

CREATE, OPEN, OPEN_PERM, ONDIR = 0x100, 0x20, 0x10000, 0x40000000
NO_BATCH = None  # connect() adds no calls


@pytest.fixture
def group(round_trip):
    def make(flags=2, event_flags=0):
        try:
            return round_trip.keep(fanotify.init(flags, event_flags))
        except (NotPermitted, KernelError) as error:
            assert error.errno in (errno.EPERM, errno.ENOSYS), error
            pytest.skip(f"no fanotify: {error}")

    return make


def mark(fd, path, mask, flags=0):
    file = os.open(path, os.O_PATH)
    fanotify.mark(fd, Mark.ADD | flags, mask, file)
    os.close(file)


def restored(round_trip, file_id):
    copy = round_trip.create(file_id)
    Fanotify.connect(round_trip.message(file_id), Placed(copy, file_id), round_trip.make, NO_BATCH)
    return copy


def test_marks_of_every_kind(round_trip, group, tmp_path):
    (tmp_path / "file").touch()
    fd = group(event_flags=os.O_RDWR | os.O_CLOEXEC)
    mark(fd, tmp_path, OPEN)
    mark(fd, tmp_path, OPEN, Mark.IGNORED_MASK | Mark.IGNORED_SURV_MODIFY)
    mark(fd, tmp_path / "file", OPEN, Mark.IGNORE | Mark.IGNORED_SURV_MODIFY)
    mark(fd, "/proc", OPEN, Mark.MOUNT)
    mark(fd, "/proc", OPEN, Mark.FILESYSTEM)
    copy = restored(round_trip, round_trip.dump(Fanotify, fd))
    assert fdinfo("self", copy).fanotify == fdinfo("self", fd).fanotify
    assert len(fdinfo("self", copy).fanotify.marks) == 4


def test_whom_others_wait_for_is_refused(round_trip, group, tmp_path):
    fd = group(flags=2 | 4)
    mark(fd, tmp_path, OPEN_PERM)
    with pytest.raises(Unsupported, match="it gives permissions"):
        round_trip.dump(Fanotify, fd)


def test_a_mount_that_is_gone(round_trip, group):
    fd = group()
    mark(fd, "/proc", OPEN, Mark.MOUNT)
    file_id = round_trip.dump(Fanotify, fd)
    (one,) = round_trip.message(file_id).mark
    assert (one.type, one.me.path) == (pb.MARK_MOUNT, "/proc")
    one.me.path = "/nowhere"
    with pytest.raises(ImageError, match="/nowhere: expected a mount, found none"):
        round_trip.create(file_id)
