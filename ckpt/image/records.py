# SPDX-License-Identifier: Apache-2.0
"""The framing of an image file: magic words, then records.

A record is a u32 size, a protobuf message of that size, and for some kinds a raw tail whose length
follows from the message. All integers are little-endian. A file is untrusted: every length is
checked against the size of the file before anything is read or allocated.
"""

import os
import struct
from collections.abc import Iterator
from io import BufferedReader, BufferedWriter, FileIO
from typing import Any, NamedTuple, Self

from google.protobuf.message import DecodeError, Message

from ckpt.errors import ImageError
from ckpt.image.kinds import BY_MAGIC, COMMON_MAGIC, SERVICE_MAGIC, Kind

_U32 = struct.Struct("<I")
_BUFFER = 256 * 1024


class Record(NamedTuple):
    """A message, and where in the file its raw tail is; offset and length are in bytes."""

    message: Any
    tail_offset: int
    tail_length: int


class Source:
    """An image file, read from front to back. Owns its descriptor."""

    def __init__(self, fd: int, name: str) -> None:
        self.name = name
        self.size = os.fstat(fd).st_size
        self.offset = 0
        self._file = BufferedReader(FileIO(fd, "rb"), _BUFFER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def fileno(self) -> int:
        """Return the descriptor, to copy a tail from with pread or sendfile."""
        return self._file.fileno()

    def error(self, problem: str) -> ImageError:
        """Return (not raise) an error that names the file and the current offset."""
        return ImageError(f"{self.name}: offset {self.offset}: {problem}")

    def take(self, length: int, expected: str) -> bytes:
        """Read exactly `length` bytes; raise ImageError if the file ends before."""
        left = self.size - self.offset
        if length > left:
            raise self.error(f"expected {expected} ({length} bytes), but only {left} bytes follow")
        try:
            data = self._file.read(length)
        except OSError as error:
            raise self.error(str(error.strerror)) from error
        if len(data) != length:
            raise self.error(f"expected {expected}, but the file became shorter while it was read")
        self.offset += length
        return data

    def u32(self, expected: str) -> int:
        """Read one u32."""
        value: int = _U32.unpack(self.take(4, expected))[0]
        return value

    def message(self, type_: type[Any]) -> Any:
        """Read a u32 size and a message of it; raise ImageError if it is damaged."""
        name = type_.__name__
        length = self.u32(f"the size of a {name}")
        start = self.offset
        message = type_()
        try:
            message.ParseFromString(self.take(length, name))
            complete = message.IsInitialized()
        except DecodeError:
            complete = False
        if not complete:
            self.offset = start
            raise self.error(f"expected a {name}, found {length} bytes that are none")
        return message

    def seek(self, offset: int) -> None:
        """Go to an offset; lengths must have been checked."""
        self._file.seek(offset)
        self.offset = offset

    def tail(self, record: Record) -> bytes:
        """Read the raw tail of a record; it goes into memory as a whole."""
        if not record.tail_length:
            return b""
        self.seek(record.tail_offset)
        return self.take(record.tail_length, "raw data")

    def identify(self) -> Kind:
        """Read the magic words and return the kind they stand for, which may have siblings."""
        word = self.u32("a magic word")
        if word in (COMMON_MAGIC, SERVICE_MAGIC):
            word = self.u32("the magic word of a kind")
        kind = BY_MAGIC.get(word)
        if kind is None:
            raise self.error(f"{word:#010x} is the magic of no known image file")
        return kind

    def expect(self, kind: Kind) -> None:
        """Read the magic words and raise ImageError if they are not those of `kind`."""
        for word in kind.magics:
            found = self.u32("a magic word")
            if found != word:
                raise self.error(f"expected the magic {word:#010x} of {kind}, found {found:#010x}")

    def records(self, kind: Kind) -> Iterator[Record]:
        """Yield the records from here on; tails are checked but not read."""
        types = kind.message_types()
        type_ = types[0]
        while self.offset < self.size:
            message = self.message(type_)
            start = self.offset
            length = kind.tail(message, self) if kind.tail else 0
            if length > self.size - start:
                raise self.error(
                    f"expected {length} bytes of raw data, but only {self.size - start} follow"
                )
            yield Record(message, start, length)
            if kind.tail:
                self.seek(start + length)
            type_ = types[-1]


class RecordWriter:
    """An image file being written. Owns its descriptor; leaving the block closes it.

    Methods raise ImageError where the kernel refuses: a full disk, say.
    """

    def __init__(self, fd: int, name: str, kind: Kind) -> None:
        self.name = name
        self._file = BufferedWriter(FileIO(fd, "wb"), _BUFFER)
        self._file.write(b"".join(map(_U32.pack, kind.magics)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, message: Message, extra: bytes | memoryview = b"") -> None:
        """Write a record, with its raw tail."""
        data = message.SerializeToString()
        try:
            self._file.write(_U32.pack(len(data)))
            self._file.write(data)
            self._file.write(extra)
        except OSError as error:
            raise self._error(error) from error

    def tail_fd(self) -> int:
        """Return the descriptor, placed where the tail of the last record begins."""
        try:
            self._file.flush()
        except OSError as error:
            raise self._error(error) from error
        return self._file.fileno()

    def close(self) -> None:
        """Flush and close; once is enough."""
        try:
            self._file.close()
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> ImageError:
        return ImageError(f"{self.name}: {error.strerror}")
