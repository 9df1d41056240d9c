# SPDX-License-Identifier: Apache-2.0
"""Shared memory objects (memfd, shared anonymous, SysV): their content, saved once for all users.

Read through a descriptor of the object, not through a mapping: so pages that nobody has touched
since they were swapped out, or that only another process maps, are there as well.
"""

import errno
import mmap
import os
from collections.abc import Iterator
from typing import NamedTuple

from ckpt.errors import ImageError
from ckpt.image.directory import ImageDir
from ckpt.image.pages import PAGE, PE_PRESENT, PageReader, PageWriter
from ckpt.kernel.inotify import Watch
from ckpt.memory.pages import Counts

_CHUNK = 1 << 20
_WINDOW = 32 << 20


class SharedObject(NamedTuple):
    """An object that is to be filled late: a descriptor of it, and its pages in the image.

    number is 1 for the first such object of a restore, and so on. watch sees what else changes it.
    """

    number: int
    fd: int
    reader: PageReader
    watch: Watch

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)
        self.reader.close()
        self.watch.close()


def save(image: ImageDir, shmid: int, pages_id: int, fd: int, size: int) -> Counts:
    """Write pagemap-shmem-SHMID.img and its pages from the object at fd; returns the pages."""
    counts = Counts(scanned=-(-size // PAGE))
    with PageWriter(image, "pagemap-shmem", shmid, pages_id) as writer:
        for start, end in _extents(fd, size):
            writer.add(start, (end - start) // PAGE, PE_PRESENT)
            _copy(fd, start, end, writer)
            counts.written += (end - start) // PAGE
    return counts


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the page-aligned parts of a file that are not holes."""
    # A position belongs to the open file, which the target shares: ours is another.
    own = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    at = 0
    try:
        while at < size:
            try:
                at = os.lseek(own, at, os.SEEK_DATA) & -PAGE
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
            end = -(-min(os.lseek(own, at, os.SEEK_HOLE), size) // PAGE) * PAGE
            yield at, end
            at = end
    finally:
        os.close(own)


def _copy(fd: int, start: int, end: int, writer: PageWriter) -> None:
    while start < end:
        data = os.pread(fd, min(end - start, _CHUNK), start)
        length = -(-len(data) // PAGE) * PAGE
        writer.write(data)
        if not data:  # cut short behind our back
            length = min(end - start, _CHUNK)
        if length > len(data):
            writer.write(bytes(length - len(data)))
        start += length


def load(image: ImageDir, shmid: int, fd: int) -> int:
    """Fill the object at fd from pagemap-shmem-SHMID.img; returns the pages.

    By way of a mapping: hugetlb objects cannot be written to. Raises ImageError for pages beyond
    the object's size.
    """
    if not image.exists("pagemap-shmem", shmid):
        return 0
    with open_pages(image, shmid, fd) as reader:
        for run in reader:
            for start in range(run.vaddr, run.end, _WINDOW):
                part = run.part(start, min(start + _WINDOW, run.end))
                _fill(fd, start, part.fd, part.offset, part.nr_pages * PAGE)
        return sum(run.nr_pages for run in reader)


def open_pages(image: ImageDir, shmid: int, fd: int) -> PageReader:
    """Return the saved pages of the object at fd; the caller closes them.

    Raises ImageError for pages beyond the object's size.
    """
    size = -(-os.fstat(fd).st_size // PAGE) * PAGE
    reader = PageReader(image, "pagemap-shmem", shmid)
    if any(run.end > size for run in reader):
        reader.close()
        raise ImageError(f"pagemap-shmem-{shmid}: pages behind the object's {size} bytes")
    return reader


def _fill(fd: int, start: int, source: int, offset: int, length: int) -> None:
    skip = start % os.fstatvfs(fd).f_bsize  # a hugetlb object is mapped in its own pages
    length = min(length, os.fstat(fd).st_size - start)  # which need not be whole pages
    with mmap.mmap(fd, skip + length, offset=start - skip) as area, memoryview(area) as view:
        done = 0
        while done < length:
            got = os.preadv(source, [view[skip + done : skip + length]], offset + done)
            if not got:
                raise ImageError(f"pages: the file ends at {offset + done}")
            done += got
