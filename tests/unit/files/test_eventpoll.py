# SPDX-License-Identifier: Apache-2.0
import fcntl
import os
import select
import signal

import pytest

from ckpt.errors import KernelError, Unsupported
from ckpt.files.eventpoll import EventPoll
from ckpt.files.kind import Placed
from ckpt.kernel.fdinfo import fdinfo
from ckpt.kernel.ffi import ffi, syscall
from ckpt.kernel.remote import BatchFull

ARMED = select.EPOLLERR | select.EPOLLHUP


class Memory:
    def __init__(self, content):
        self.keeper = ffi.new("char[]", content)
        self.address = int(ffi.cast("uintptr_t", self.keeper))


class Result:
    def __init__(self, ret):
        self.ret = ret


class Batch:
    """A batch whose calls are made in this process, at once."""

    def __init__(self, most=1000):
        self.left, self.memory = most, []

    def fits(self, calls, size=0):
        return self.left >= calls

    def data(self, content):
        self.memory.append(Memory(content))
        return self.memory[-1]

    def room(self, size):
        return self.data(bytes(size))

    def call(self, nr, *args, must=False):
        values = [getattr(arg, "address", getattr(arg, "ret", arg)) for arg in args]
        self.left -= 1
        result = Result(syscall(nr, *values))
        if must and result.ret < 0:
            raise KernelError(-result.ret, nr.name)
        return result


@pytest.fixture
def pipe(round_trip):
    def make():
        ends = os.pipe2(os.O_NONBLOCK)
        return [round_trip.keep(fd) for fd in ends]

    return make


@pytest.fixture
def epoll():
    with select.epoll() as made:
        yield made


def refill(round_trip, epoll, file_id=None, most=1000):
    """Restore a set with the very files still in place; returns its descriptor."""
    file_id = file_id or round_trip.dump(EventPoll, epoll.fileno())
    fd = round_trip.create(file_id)
    while True:
        try:
            message = round_trip.message(file_id)
            EventPoll.connect(message, Placed(fd, file_id), round_trip.make, Batch(most))
            return fd
        except BatchFull:
            continue


def members(fd):
    """All that a member is, without the order, which depends on addresses."""
    return sorted(fdinfo("self", fd).epoll, key=repr)


@pytest.mark.parametrize("most", [1000, 9])
def test_members_with_events_and_data(round_trip, pipe, epoll, most):
    reader, writer = pipe()
    epoll.register(reader, select.EPOLLIN | select.EPOLLET)
    epoll.register(writer, select.EPOLLOUT | select.EPOLLONESHOT)
    with select.epoll() as outer:
        outer.register(epoll.fileno(), select.EPOLLIN)
        outer.register(reader, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        copy = refill(round_trip, outer, most=most)
        assert members(copy) == members(outer.fileno())
    assert members(refill(round_trip, epoll, most=most)) == members(epoll.fileno())


def test_what_criu_writes(round_trip, pipe, epoll):
    reader, _ = pipe()
    epoll.register(reader, select.EPOLLIN)
    (entry,) = round_trip.message(round_trip.dump(EventPoll, epoll.fileno())).tfd
    assert (entry.tfd, entry.events) == (reader, select.EPOLLIN | ARMED)
    assert entry.data & 0xFFFFFFFF == reader  # Python leaves the upper half as it finds it
    assert entry.inode == os.fstat(reader).st_ino
    assert not entry.HasField("added_as")


def test_a_member_that_reported_its_one_shot_stays_quiet(round_trip, pipe, epoll):
    reader, writer = pipe()
    epoll.register(reader, select.EPOLLIN | select.EPOLLONESHOT)
    os.dup2(reader, writer)  # the writer is gone: a hang-up
    assert epoll.poll(0)
    copy = refill(round_trip, epoll)
    with select.epoll.fromfd(os.dup(copy)) as again:
        assert members(copy) == members(epoll.fileno())
        assert again.poll(0) == []
        again.modify(reader, select.EPOLLIN)
        assert again.poll(0) == [(reader, select.EPOLLHUP)]


def test_a_number_that_is_closed_now(round_trip, pipe, epoll):
    reader, _ = pipe()
    other = os.dup(reader)
    epoll.register(other, select.EPOLLIN)
    os.close(other)
    copy = refill(round_trip, epoll)
    assert members(copy) == members(epoll.fileno())
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(other)


def test_a_number_that_is_another_files_now(round_trip, pipe, epoll):
    reader, _ = pipe()
    other = round_trip.keep(os.dup(reader))
    epoll.register(other, select.EPOLLIN)
    os.dup2(os.open("/dev/null", os.O_RDONLY), other, inheritable=False)
    copy = refill(round_trip, epoll)
    assert members(copy) == members(epoll.fileno())
    assert os.readlink(f"/proc/self/fd/{other}") == "/dev/null"
    assert fcntl.fcntl(other, fcntl.F_GETFD) == fcntl.FD_CLOEXEC


def test_a_number_that_is_the_sets_own_now(round_trip, pipe, epoll):
    reader, _ = pipe()
    other = round_trip.keep(os.dup(reader))
    epoll.register(other, select.EPOLLIN)
    file_id = round_trip.dump(EventPoll, epoll.fileno())
    message = round_trip.message(file_id)
    message.tfd[0].tfd, message.tfd[0].added_as = reader, other
    os.dup2(round_trip.create(file_id), other)
    EventPoll.connect(message, Placed(other, file_id), round_trip.make, Batch())
    assert members(other) == members(epoll.fileno())


def test_one_number_and_several_files(round_trip, pipe, epoll):
    (first, _), (second, _) = pipe(), pipe()
    number = round_trip.keep(os.dup(first))
    epoll.register(number, select.EPOLLIN)
    os.dup2(second, number)
    epoll.register(number, select.EPOLLIN)
    entry = round_trip.message(round_trip.dump(EventPoll, epoll.fileno()))
    assert {member.tfd for member in entry.tfd} == {first, number}
    assert members(refill(round_trip, epoll)) == members(epoll.fileno())


def test_a_file_that_only_another_process_has_is_refused(round_trip, pipe, epoll):
    reader, writer = os.pipe()
    epoll.register(reader, select.EPOLLIN)
    pid = os.fork()
    if not pid:
        signal.pause()
    os.close(reader)
    try:
        with pytest.raises(Unsupported, match=f"watches what was fd {reader}") as caught:
            EventPoll.check(round_trip.open_file(epoll.fileno()), round_trip.out.options)
        assert "EPOLL_CTL_DEL" in caught.value.hint
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(writer)


def test_a_second_task_leaves_the_set_alone(round_trip, pipe, epoll):
    reader, _ = pipe()
    epoll.register(reader, select.EPOLLIN)
    file_id = round_trip.dump(EventPoll, epoll.fileno())
    copy = refill(round_trip, epoll, file_id)
    batch = Batch()
    message = round_trip.message(file_id)
    EventPoll.connect(message, Placed(copy, file_id), round_trip.make, batch)
    assert batch.left == 1000
