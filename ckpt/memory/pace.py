# SPDX-License-Identifier: Apache-2.0
"""So many bytes a second and no more: what a copy leaves of the disk to those who need it."""

import time


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
