# SPDX-License-Identifier: Apache-2.0
"""redis-server restored lazily: it answers at once, and all its data is there.

CKPT_REDIS_MIB says how large it is to be: a few hundred MiB, or as many thousands for a proof.
"""

import os
import time
from pathlib import Path

import pytest
from target import Ckpt, pagers, wait_until
from test_real import Redis

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]

MIB = int(os.environ.get("CKPT_REDIS_MIB", "200"))
VALUE = 1000


class Big(Redis):
    """A server with so many MiB of strings."""

    def fill(self) -> None:
        """Have it fill itself: all keys differ, and so do their values."""
        self.ask("DEBUG", "POPULATE", str((MIB << 20) // (VALUE + 150)), "key", str(VALUE))


def test_answers_at_once(place: Path) -> None:
    with Big(place) as target:
        before, images = target.digest(), place / "images"
        Ckpt().dump(target, images)
        since = time.monotonic()
        Ckpt().restore(target, images, "--lazy-pages")
        assert target.ask("PING") == b"PONG"
        answered = time.monotonic()
        still_coming = bool(pagers())
        assert target.digest() == before
        digested = time.monotonic()
        wait_until(lambda: not pagers(), "end of the pager")
        assert target.digest() == before
        print(f"{MIB} MiB: first answer {answered - since:.3f} s after the command's start,")
        print(f"digest {digested - since:.3f} s; pages came while it answered: {still_coming}")
