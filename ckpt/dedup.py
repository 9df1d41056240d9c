# SPDX-License-Identifier: Apache-2.0
"""`dedup`: free the pages of older images that a newer one has anew.

A page that an image has itself is never looked for in its parents, so their copy of it can go: its
place in pages-N.img becomes a hole (fallocate(2)). From then on such a parent is no image by
itself any more, as holes read as zeros: before the first page goes its inventory says so, and a
restore of it is refused. As a parent it is as good as before.
"""

import os
from collections.abc import Iterable, Iterator

from ckpt.errors import ImageError
from ckpt.image.directory import ImageDir
from ckpt.image.pages import PAGE, Layer, PageRun, read_pagemap
from ckpt.kernel.files import punch_hole
from ckpt.log import INFO, Log

_KINDS = ("pagemap", "pagemap-shmem")
Range = tuple[int, int]


class DedupReport:
    """Pages that are in a newer image, too, and the bytes of disk that it freed."""

    def __init__(self) -> None:
        self.pages = self.freed = 0


def dedup(images_dir: str, log: Log) -> DedupReport:
    """Free the pages of all parents of an image that it has itself. Raises ImageError."""
    report = DedupReport()
    with ImageDir.open(images_dir, alone=False) as image:
        for parent in _parents(image):
            pagemaps = [
                (kind, id_)
                for kind in _KINDS
                for id_ in image.ids(kind)
                if parent.exists(kind, id_)
            ]
            for kind, id_ in pagemaps:
                _free(read_pagemap(image, kind, id_), read_pagemap(parent, kind, id_), report)
            log.line(INFO, f"{parent.path}: {len(pagemaps)} pagemaps looked through")
    return report


def _parents(image: ImageDir) -> Iterator[ImageDir]:
    """Yield the parent, its parent and so on; raise ImageError where they go in a circle."""
    seen = [os.fstat(image.fd)]
    while parent := image.parent:
        seen.append(os.fstat(parent.fd))
        if any(os.path.samestat(seen[-1], one) for one in seen[:-1]):
            raise ImageError(f"{parent.path}: is its own parent")
        yield parent
        image = parent


def _free(newer: Layer, older: Layer, report: DedupReport) -> None:
    """Make holes of what both have in their pages files."""
    holes = list(_common([(run.vaddr, run.end) for run in newer.here()], older.here()))
    if not holes:
        return
    fd = older.open_pages(write=True)
    try:
        older.image.needs_others()
        before = os.fstat(fd).st_blocks
        for offset, length in holes:
            punch_hole(fd, offset, length)
            report.pages += length // PAGE
        report.freed += (before - os.fstat(fd).st_blocks) * 512
    finally:
        os.close(fd)


def _common(newer: list[Range], older: Iterable[PageRun]) -> Iterator[Range]:
    """Yield offset and length, in the older's file, of what is in both; both are in order."""
    at = 0
    for run in older:
        while at < len(newer) and newer[at][1] <= run.vaddr:
            at += 1
        each = at
        while each < len(newer) and newer[each][0] < run.end:
            part = run.part(*newer[each])
            yield part.offset, part.nr_pages * PAGE
            each += 1
