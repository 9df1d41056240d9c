# SPDX-License-Identifier: Apache-2.0
import os
import signal

from ckpt.files.signalfd import SignalFd
from ckpt.kernel import files
from ckpt.kernel.fdinfo import fdinfo


def test_mask_and_flags_are_kept(round_trip):
    mask = 1 << signal.SIGUSR1 - 1 | 1 << signal.SIGRTMAX - 1
    fd = round_trip.keep(files.signalfd(mask, os.O_NONBLOCK))
    copy = round_trip.trip(SignalFd, fd)
    assert fdinfo("self", copy).sigmask == mask
    assert not os.get_blocking(copy)
