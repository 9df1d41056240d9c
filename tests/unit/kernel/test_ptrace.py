# SPDX-License-Identifier: Apache-2.0
"""Stops of a traced child."""

import os
import signal

import pytest

from ckpt.kernel.ptrace import EVENT_STOP, Tracee, hear


@pytest.mark.timeout(20)
def test_who_is_stopped_by_a_signal_already_stops_for_us_after_it() -> None:
    child = os.fork()
    if not child:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        while True:
            signal.pause()
    try:
        with Tracee(child) as tracee:
            os.kill(child, signal.SIGURG)
            hear([tracee])
            hear([tracee], interrupt=True)
            stop = tracee.poll()
            assert stop and (stop.signo, stop.event) == (signal.SIGURG, 0)
            tracee.cont(stop.signo)
            assert tracee.wait().event == EVENT_STOP
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
