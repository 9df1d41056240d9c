# SPDX-License-Identifier: Apache-2.0
"""CPUs that have nothing to do stay awake: to wake one up may take longer than what it is to do.

A request for latencies of 0 us, as of Documentation/power/pm_qos_interface.rst. It holds as long
as the device is open, so it is gone with us. Seen in a virtual machine: what a stop of a thread on
another CPU takes, there and back, goes from 80 us to 4.
"""

import os
from typing import Self

_DEVICE = "/dev/cpu_dma_latency"
_NONE = bytes(4)


class Awake:
    """A request; a context manager. Where the kernel does not take it, nothing is lost but time."""

    def __init__(self) -> None:
        self._fd = -1
        try:
            self._fd = os.open(_DEVICE, os.O_WRONLY | os.O_CLOEXEC)
            os.write(self._fd, _NONE)
        except OSError:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let them sleep again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
