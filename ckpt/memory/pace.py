# SPDX-License-Identifier: Apache-2.0
"""What a copy leaves to those who need it: of the disk so much, of the CPUs what is due to them."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_NICER = 10  # where CPUs are short, we get a tenth of what others do


@contextmanager
def yielding() -> Iterator[None]:
    """Have others come first where CPUs are short: who is dumped works while we copy."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, min(before + _NICER, 19))
    try:
        yield
    finally:
        with suppress(PermissionError):  # it takes CAP_SYS_NICE to come back
            os.setpriority(os.PRIO_PROCESS, 0, before)


class Pace:
    """Holds up who copies faster than rate bytes a second; 0 is as fast as it goes."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._due = 0.0

    def copied(self, size: int) -> None:
        """Take note of size bytes, and wait until they may have been copied.

        Time that was left unused before is not made up for.
        """
        if not self._rate:
            return
        now = time.monotonic()
        self._due = max(self._due, now) + size / self._rate
        time.sleep(self._due - now)
