# SPDX-License-Identifier: Apache-2.0
import os
import select
import time

import pytest

from ckpt.errors import ImageError
from ckpt.files.timerfd import TimerFd
from ckpt.kernel import files
from ckpt.kernel.fdinfo import fdinfo

SECOND = 10**9
ABSTIME, CANCEL_ON_SET = 1, 2


@pytest.fixture
def timer(round_trip):
    def make(clock, flags, value, interval=0):
        fd = round_trip.keep(files.timerfd_create(clock, os.O_NONBLOCK))
        files.timerfd_settime(fd, flags, value, interval)
        return fd

    return make


def readable(fd):
    return bool(select.select([fd], [], [], 10)[0])


def expirations(fd):
    return int.from_bytes(os.read(fd, 8), "little")


def left(fd):
    seconds, nanoseconds = fdinfo("self", fd).timer.value
    return seconds + nanoseconds / SECOND


@pytest.mark.parametrize("clock", [time.CLOCK_REALTIME, time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME])
def test_the_time_left_goes_on(round_trip, timer, clock):
    fd = timer(clock, 0, 100 * SECOND, 3 * SECOND + 5)
    copy = round_trip.trip(TimerFd, fd)
    assert left(copy) == pytest.approx(left(fd), abs=1)
    assert fdinfo("self", copy).timer.interval == (3, 5)
    assert fdinfo("self", copy).timer.clock == clock


@pytest.mark.parametrize("flags", [ABSTIME, ABSTIME | CANCEL_ON_SET])
def test_an_absolute_time_stays_one(round_trip, timer, flags):
    fd = timer(time.CLOCK_REALTIME, flags, time.time_ns() + 50 * SECOND)
    copy = round_trip.trip(TimerFd, fd)
    assert left(copy) == pytest.approx(left(fd), abs=1)
    assert fdinfo("self", copy).timer.settime_flags == flags


@pytest.mark.parametrize("flags", [0, ABSTIME])
def test_unread_expirations_are_there_again(round_trip, timer, flags):
    fd = timer(time.CLOCK_MONOTONIC, flags, 1)
    assert readable(fd)
    copy = round_trip.trip(TimerFd, fd)
    assert expirations(copy) == expirations(fd) == 1
    assert left(copy) == 0


@pytest.mark.parametrize("flags", [0, ABSTIME])
def test_a_periodic_timer_goes_on_after_it_expired(round_trip, timer, flags):
    now = time.monotonic_ns() if flags else 0
    fd = timer(time.CLOCK_MONOTONIC, flags, now + 1, SECOND // 100)
    assert readable(fd)
    copy = round_trip.trip(TimerFd, fd)
    assert 1 <= expirations(copy) < 1000
    assert readable(copy)


def test_the_periods_before_the_dump_count(round_trip, timer):
    fd = timer(time.CLOCK_MONOTONIC, 0, 1, SECOND // 1000)
    assert readable(timer(time.CLOCK_MONOTONIC, 0, SECOND // 50))
    file_id = round_trip.dump(TimerFd, fd)
    message = round_trip.message(file_id)
    assert message.ticks >= 20
    assert message.vsec + message.vnsec > 0
    assert expirations(fd) >= message.ticks
    assert expirations(round_trip.create(file_id)) >= message.ticks


def test_criu_saves_an_expired_timer_as_if_disarmed(round_trip, timer):
    file_id = round_trip.dump(TimerFd, timer(time.CLOCK_MONOTONIC, 0, SECOND, SECOND // 100))
    message = round_trip.message(file_id)
    message.ticks, message.vsec, message.vnsec = 1, 0, 0
    copy = round_trip.create(file_id)
    assert expirations(copy)
    assert readable(copy)


def test_many_expirations(round_trip, timer):
    file_id = round_trip.dump(TimerFd, timer(time.CLOCK_MONOTONIC, 0, 0))
    round_trip.message(file_id).ticks = 2**40
    assert expirations(round_trip.create(file_id)) == 2**40


def test_no_timer_at_all(round_trip, timer):
    copy = round_trip.trip(TimerFd, timer(time.CLOCK_MONOTONIC, ABSTIME, 0))
    with pytest.raises(BlockingIOError):
        os.read(copy, 8)
    assert left(copy) == 0


def test_an_impossible_time_is_refused(round_trip, timer):
    file_id = round_trip.dump(TimerFd, timer(time.CLOCK_MONOTONIC, 0, SECOND))
    round_trip.message(file_id).vsec = 2**64 - 1
    with pytest.raises(ImageError, match="no time to wait"):
        round_trip.create(file_id)
