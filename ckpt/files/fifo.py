# SPDX-License-Identifier: Apache-2.0
"""A named pipe: its path, an entry of its own as RegFile's, and the content as pipe.py keeps it."""

import os
import stat
from typing import Any

from ckpt.files.kind import Dump, FileKind, OpenFile, Restore
from ckpt.files.pipe import contents, save
from ckpt.files.regfile import RegFile, open_entry, save_opened
from ckpt.image import pb
from ckpt.options import DumpOptions


class Fifo(FileKind):
    """An open named pipe. Flags and owner are in the entry of its path."""

    type = pb.FD_FIFO
    field = "fifo"

    @classmethod
    def claims(cls, file: OpenFile) -> bool:
        """Recognise it by its type and a path; as a mere path (O_PATH) it is RegFile's."""
        is_fifo = stat.S_ISFIFO(file.stat.st_mode) and file.link.startswith("/")
        return is_fifo and not file.flags & os.O_PATH

    @classmethod
    def check(cls, file: OpenFile, options: DumpOptions) -> None:
        """Refuse one that no path leads to."""
        RegFile.check(file, options)

    @classmethod
    def dump(cls, file: OpenFile, out: Dump) -> Any:
        """Dump its path and, by the first end that can be read, its content."""
        pipe_id = _pipe_id(file.stat, out)
        if file.flags & os.O_ACCMODE != os.O_WRONLY and out.first("fifo", pipe_id):
            save(file.fd, pipe_id, out, "fifo-data")
        return pb.fifo_entry(id=file.id, pipe_id=pipe_id, regf_id=save_opened(file, out))

    @classmethod
    def create(cls, entry: Any, make: Restore) -> int:
        """Open it, while we hold both ends: so no open waits or fails for want of the other."""
        path = make.entry(entry.regf_id).reg
        make.once(("fifo", entry.pipe_id), lambda: _hold(entry.pipe_id, path, make))
        return open_entry(path, make, path.flags)


def _pipe_id(st: os.stat_result, out: Dump) -> int:
    """Return the inode number, as CRIU does, or another if its low 32 bits are taken."""
    ids: dict[tuple[int, int], int] = out.memo("fifo ids", dict)
    key = (st.st_dev, st.st_ino)
    if key not in ids:
        ids[key] = st.st_ino & 0xFFFFFFFF
        while list(ids.values()).count(ids[key]) > 1:
            ids[key] = ids[key] + 1 & 0xFFFFFFFF
    return ids[key]


def _hold(pipe_id: int, path: Any, make: Restore) -> None:
    """Open both ends until all is restored, and fill the pipe."""
    fd = open_entry(path, make, os.O_RDWR | os.O_NONBLOCK)
    make.at_end(lambda ok: os.close(fd))
    contents(make, "fifo-data").restore(pipe_id, fd)
