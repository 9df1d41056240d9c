# SPDX-License-Identifier: Apache-2.0
"""Transparent huge pages of memory that came late: it came in small pages, which are put together.

A userfaultfd is answered with small pages only, and as long as a mapping is registered the kernel
leaves it as it is. So this is done at the end, for what would have been in huge pages.
"""

from collections.abc import Iterable

from ckpt.image import pb
from ckpt.image.pages import PageRun
from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import ffi, syscall
from ckpt.memory.layout import Range

HUGE = 2 << 20
_MADV_HUGEPAGE, _MADV_NOHUGEPAGE, _MADV_COLLAPSE = 14, 15, 25
_MODE = "/sys/kernel/mm/transparent_hugepage/enabled"


def huge_ranges(late: Iterable[tuple[pb.vma_entry, list[PageRun]]]) -> list[Range]:
    """Return what the image has all of, in whole huge pages, where these are wanted."""
    try:
        with open(_MODE) as file:
            mode = file.read()
    except OSError:
        return []
    found = []
    for entry, runs in late:
        if "[always]" in mode and not entry.madv >> _MADV_NOHUGEPAGE & 1:
            wanted = True
        else:
            wanted = "[never]" not in mode and bool(entry.madv >> _MADV_HUGEPAGE & 1)
        if wanted:
            found += [(-(-run.vaddr // HUGE) * HUGE, run.end // HUGE * HUGE) for run in runs]
    return [(start, end) for start, end in found if start < end]


def collapse(pidfd: int, ranges: Iterable[Range]) -> None:
    """Put small pages together (MADV_COLLAPSE, Linux 6.1); what cannot be stays as it is."""
    for start, end in ranges:
        iov = ffi.new("uint64_t[2]", [start, end - start])
        at = int(ffi.cast("uintptr_t", iov))
        syscall(NR.process_madvise, pidfd, at, 1, _MADV_COLLAPSE, 0)
