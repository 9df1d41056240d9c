# SPDX-License-Identifier: Apache-2.0
import os
from contextlib import suppress

from ckpt.kernel.subreaper import Subreaper


def adopts() -> bool:
    """Whether an orphan comes to us: we have none but that, and it ends."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(writer)
        if not os.fork():
            os.read(reader, 1)
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)
    with suppress(ChildProcessError):
        return os.wait()[0] > 0
    return False


def test_it_is_one_as_long_as_it_is_open():
    pid = os.fork()
    if not pid:
        seen = [adopts()]
        outer, inner = Subreaper(wanted=True), Subreaper(wanted=True)
        seen.append(adopts())
        inner.close()
        seen.append(adopts())
        outer.close()
        seen.append(adopts())
        unwanted = Subreaper(wanted=False)
        seen.append(adopts())
        unwanted.close()
        os._exit(0 if seen == [False, True, True, False, False] else 1)
    assert os.waitpid(pid, 0)[1] == 0
