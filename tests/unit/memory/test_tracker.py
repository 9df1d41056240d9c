# SPDX-License-Identifier: Apache-2.0
"""The log of writes, of memory of our own."""

import subprocess
import sys

_WRITES = """
import mmap, os
from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import check, ffi, syscall
from ckpt.kernel.userfaultfd import TRACKING, UFFDIO_API, Userfaultfd, api_request
from ckpt.memory.tracker import PAGE, Tracker

memory = mmap.mmap(-1, 16 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
start = int(ffi.cast("uintptr_t", ffi.from_buffer(memory)))
fd = check(syscall(NR.userfaultfd, os.O_CLOEXEC | os.O_NONBLOCK), "userfaultfd")
request = ffi.from_buffer(bytearray(api_request(TRACKING)))
check(syscall(NR.ioctl, fd, UFFDIO_API, int(ffi.cast("uintptr_t", request))), "UFFDIO_API")
tracker = Tracker()
tracker.register(Userfaultfd(fd), [(start, start + len(memory))])
tracker.start()
tracker.protect([(start, start + len(memory))])
for page in (3, 1, 3, 2):
    memory[page * PAGE] = 1
log, lost = tracker.take()
memory[1 * PAGE] = 2
tracker.protect([(start, start + 2 * PAGE)])
memory[1 * PAGE] = 3
again, _ = tracker.take()
tracker.close()
print([(page - start) // PAGE for page in log], lost, [(page - start) // PAGE for page in again])
"""


def test_needs_nothing_of_who_faults() -> None:
    """The writer has the interpreter's lock while it waits for the answer to its fault."""
    argv = [sys.executable, "-c", _WRITES]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr) == ("[3, 1, 2] [] [1]\n", "")
