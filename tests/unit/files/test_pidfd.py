# SPDX-License-Identifier: Apache-2.0
import fcntl
import os
import select

import pytest

from ckpt.errors import ImageError, Unsupported
from ckpt.files.kind import INSIDE
from ckpt.files.pidfd import PidFd
from ckpt.image import pb


@pytest.fixture
def child():
    """Pids of new children, which end with the test or before it."""
    pids = []

    def fork() -> int:
        pid = os.fork()
        if not pid:
            select.select([], [], [])
        pids.append(pid)
        return pid

    yield fork
    for pid in pids:
        end(pid)


def end(pid):
    try:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def readable(fd):
    return bool(select.select([fd], [], [], 0)[0])


def test_one_that_has_ended_is_told_from_another(round_trip, child):
    one, two = child(), child()
    fds = [round_trip.keep(os.pidfd_open(pid, os.O_NONBLOCK)) for pid in (one, one, two)]
    end(one)
    end(two)
    ids = [round_trip.dump(PidFd, fd) for fd in fds]
    assert [round_trip.message(id).nspid for id in ids] == [-1, -1, -1]
    copies = [round_trip.create(id) for id in ids]
    assert all(map(readable, copies))
    assert all(fcntl.fcntl(copy, fcntl.F_GETFL) & os.O_NONBLOCK for copy in copies)
    old, new = ([os.fstat(fd).st_ino for fd in some] for some in (fds, copies))
    assert [new[0] == ino for ino in new] == [old[0] == ino for ino in old]


def test_one_s_own_is_left_to_the_task(round_trip):
    file_id = round_trip.dump(PidFd, round_trip.keep(os.pidfd_open(os.getpid())))
    assert round_trip.message(file_id).nspid == os.getpid()
    assert PidFd.create(round_trip.message(file_id), round_trip.make) == INSIDE


def test_the_image_must_have_the_process(round_trip):
    file_id = round_trip.dump(PidFd, round_trip.keep(os.pidfd_open(os.getpid())))
    round_trip.image.write("pstree", pb.pstree_entry(pid=7, ppid=0, pgid=7, sid=7, threads=[7]))
    with pytest.raises(ImageError, match="not in the image"):
        PidFd.open_inside(round_trip.message(file_id), round_trip.make, None)


def test_a_process_outside_is_refused(round_trip):
    with pytest.raises(Unsupported, match="outside"):
        round_trip.dump(PidFd, round_trip.keep(os.pidfd_open(os.getppid())))


def test_what_is_left_over_is_closed(round_trip, child):
    pid = child()
    fds = [round_trip.keep(os.pidfd_open(pid)) for _ in range(3)]
    end(pid)
    ids = [round_trip.dump(PidFd, fd) for fd in fds]
    before = len(os.listdir("/proc/self/fd"))
    round_trip.create(ids[0])
    round_trip.make.close(ok=False)
    assert len(os.listdir("/proc/self/fd")) == before + 1
