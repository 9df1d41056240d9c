# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from ckpt.errors import ImageError
from ckpt.files.eventfd import EventFd


@pytest.mark.parametrize("count", [0, 7, 2**32, 2**64 - 2])
def test_the_count_is_kept_and_not_consumed(round_trip, count):
    fd = round_trip.keep(os.eventfd(0, os.EFD_NONBLOCK))
    if count:
        os.eventfd_write(fd, count)
    copy = round_trip.trip(EventFd, fd)
    for one in (fd, copy):
        if count:
            assert os.eventfd_read(one) == count
        with pytest.raises(BlockingIOError):
            os.eventfd_read(one)


def test_a_semaphore_counts_down(round_trip):
    fd = round_trip.keep(os.eventfd(2, os.EFD_SEMAPHORE | os.EFD_NONBLOCK))
    copy = round_trip.trip(EventFd, fd)
    assert [os.eventfd_read(copy) for _ in range(2)] == [1, 1]


def test_criu_reads_flags_that_fcntl_takes(round_trip):
    fd = round_trip.keep(os.eventfd(2, os.EFD_SEMAPHORE))
    assert round_trip.message(round_trip.dump(EventFd, fd)).flags == os.O_RDWR


def test_an_impossible_count_is_refused(round_trip):
    file_id = round_trip.dump(EventFd, round_trip.keep(os.eventfd(0)))
    round_trip.message(file_id).counter = 2**64 - 1
    with pytest.raises(ImageError, match="counter"):
        round_trip.create(file_id)
