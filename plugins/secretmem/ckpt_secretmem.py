# SPDX-License-Identifier: Apache-2.0
"""memfd_secret(2): memory that the kernel itself has no mapping of, where programs keep keys.

Neither ptrace(2) nor read(2) gets at it, and so no other dump does: only who has the descriptor,
and maps it. With our copy of the descriptor we can. What is saved is the file; a process that has
it mapped at the time of the dump is refused. The image holds the secret in plain: keep it as one.
"""

import errno
import mmap
import os

from ckpt.errors import ImageError, KernelError
from ckpt.kernel.ffi import check, syscall
from ckpt.plugin import Dump, OpenFile, PluggedKind, Plugin, Restore

_MEMFD_SECRET = 447  # of every architecture that has it
_LINK = "/secretmem (deleted)"


class SecretMem(PluggedKind):
    """A file of memory that nobody else can look at; it has a size, and no position."""

    name = "secretmem"
    largest = 64 << 20

    @classmethod
    def claims(cls, file: OpenFile) -> bool:
        """Tell it from a deleted file of that name: it has no position to read at."""
        return file.link == _LINK and _seekless(file.fd)

    @classmethod
    def save(cls, file: OpenFile, out: Dump) -> bytes:
        """Map our copy."""
        if not file.stat.st_size:
            return b""
        with mmap.mmap(file.fd, file.stat.st_size, prot=mmap.PROT_READ) as memory:
            return memory[:]

    @classmethod
    def make(cls, content: bytes, flags: int, make: Restore) -> int:
        """Make a new one; its size can be set once, hence not to zero."""
        if len(content) % mmap.PAGESIZE:
            raise ImageError(f"memfd_secret of {len(content)} bytes: not whole pages")
        fd = check(syscall(_MEMFD_SECRET, os.O_CLOEXEC), "memfd_secret")
        try:
            if content:
                _fill(fd, content)
        except BaseException:
            os.close(fd)
            raise
        return fd


def _seekless(fd: int) -> bool:
    try:
        os.pread(fd, 1, 0)
    except OSError as error:
        return error.errno == errno.ESPIPE
    return False


def _fill(fd: int, content: bytes) -> None:
    try:
        os.ftruncate(fd, len(content))
        with mmap.mmap(fd, len(content)) as memory:
            memory[:] = content
    except OSError as error:  # such memory is locked, and counts (RLIMIT_MEMLOCK)
        raise KernelError(error.errno or 0, "mapping a memfd_secret") from error


class SecretMemPlugin(Plugin):
    """Brings the one kind."""

    kinds = (SecretMem,)


PLUGIN = SecretMemPlugin()
