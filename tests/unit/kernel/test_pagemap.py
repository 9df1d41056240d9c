# SPDX-License-Identifier: Apache-2.0
"""PAGEMAP_SCAN, of ourselves."""

import ctypes
import mmap
import os

import pytest

from ckpt.kernel import features
from ckpt.kernel.pagemap import Page, scan

PAGE = 4096


@pytest.mark.skipif(not features.pagemap_scan(), reason="no PAGEMAP_SCAN")
@pytest.mark.parametrize("runs", [511, 512, 513, 1024, 1025, 3000])
def test_every_run_once(runs):
    """Also where there are more than the kernel, or a call of ours, takes down at a time."""
    with mmap.mmap(-1, 2 * runs * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        area.madvise(mmap.MADV_NOHUGEPAGE)
        for page in range(0, 2 * runs, 2):
            area[page * PAGE] = 1
        anchor = ctypes.c_char.from_buffer(area)
        start = ctypes.addressof(anchor)
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
        found = list(scan(pagemap, [(start, start + len(area))], any_of=Page.PRESENT))
        os.close(pagemap)
        del anchor
    expected = [(start + page * PAGE, start + (page + 1) * PAGE) for page in range(0, 2 * runs, 2)]
    assert [(run.start, run.end) for run in found] == expected
