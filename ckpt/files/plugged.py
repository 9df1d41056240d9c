# SPDX-License-Identifier: Apache-2.0
"""Kinds of open files that plugins bring: CRIU's `ext_file_entry`, and an image file of their own.

Real CRIU has plugins of its own for such entries, and says so where it has none that knows one.
"""

import os
from typing import Any, ClassVar

from ckpt.errors import ImageError
from ckpt.files.kind import Dump, FileKind, OpenFile, Restore
from ckpt.image import pb


class PluggedKind(FileKind):
    """One kind of open file of a plugin; it need not know of messages, only of bytes.

    name is what the image knows it by, for ever: the content of a file is in ext-NAME-ID.img.
    largest is how many bytes that may have.
    """

    type = pb.FD_EXT
    field = "ext"
    name: ClassVar[str]
    largest: ClassVar[int] = 1 << 20

    @classmethod
    def save(cls, file: OpenFile, out: Dump) -> bytes:
        """Return all that it takes to make the file again; the target is frozen."""
        raise NotImplementedError

    @classmethod
    def make(cls, content: bytes, flags: int, make: Restore) -> int:
        """Make the file of what `save` has returned, which anybody may have changed since.

        flags are those of open(2). Returns a descriptor; raises ImageError for nonsense.
        """
        raise NotImplementedError

    @classmethod
    def dump(cls, file: OpenFile, out: Dump) -> Any:
        """Have the content written when the target may run again."""
        content = cls.save(file, out)

        def write() -> None:
            fd = out.image.open_ext(cls.name, file.id, write=True)
            with os.fdopen(fd, "wb") as opened:
                opened.write(content)

        out.later(write)
        return pb.ext_file_entry(**file.common(), plugin=cls.name)

    @classmethod
    def create(cls, entry: Any, make: Restore) -> int:
        """Read the content, as much as there may be."""
        with os.fdopen(make.image.open_ext(cls.name, entry.id), "rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            if size > cls.largest:
                raise ImageError(f"ext-{cls.name}-{entry.id}.img: {size} bytes are too many")
            return cls.make(opened.read(size), entry.flags, make)
