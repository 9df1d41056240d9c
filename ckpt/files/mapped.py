# SPDX-License-Identifier: Apache-2.0
"""Files that a mapping, exe, cwd or root refers to: no descriptor, so only which file it is."""

import os

from ckpt.errors import ImageError
from ckpt.files.kind import Dump, Restore
from ckpt.files.memfd import is_memfd, open_memfd
from ckpt.files.memfd import save_mapped as save_memfd
from ckpt.files.regfile import open_entry, save_path
from ckpt.files.sockopts import doing
from ckpt.image import pb


def save_mapped(fd: int, link: str, out: Dump) -> int:
    """Dump what a local descriptor (O_PATH will do) is open on; returns its id in files.img.

    link is what /proc says: a map_files link, exe, cwd or root. One file has one id.
    Raises Unsupported if a restore could not find it again.
    """
    return save_memfd(fd, link, out) if is_memfd(fd, link) else save_path(fd, link, out)


def open_mapped(file_id: int, flags: int, make: Restore) -> int:
    """Open it with these flags (O_RDWR for a shared, writable mapping); the caller closes it.

    To be done before make.close(), which unlinks ghosts and seals. Raises ImageError if the file
    is not as it was.
    """
    record = make.entry(file_id)
    with doing(f"open file {file_id} of the image"):
        if record.type == pb.FD_MEMFD:
            return open_memfd(record.memfd, make, flags)
        if record.type == pb.FD_REG:
            return open_entry(record.reg, make, flags | os.O_CLOEXEC)
    name = pb.fd_types.Name(record.type)
    raise ImageError(f"files.img: file {file_id} is of a kind ({name}) that cannot be mapped")
