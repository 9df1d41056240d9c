# SPDX-License-Identifier: Apache-2.0
"""Text in messages that need not be UTF-8: paths, names of sockets, comm.

To Linux a name is bytes; the schemas call it a string, which the protobuf runtime takes to be
UTF-8: it gives other bytes as `bytes` and refuses to set them. Here such a name is a str as the
`os` module has it (surrogateescape), whatever its bytes, and the wire carries the bytes.
"""

import os

from google.protobuf.message import Message

from ckpt.errors import ImageError

_LENGTH_DELIMITED = 2


def get_text(message: Message, field: str) -> str:
    """Return a string field, as `os.fsdecode` would give its bytes."""
    value: str | bytes = getattr(message, field)
    return os.fsdecode(value)


def get_path(message: Message, field: str) -> str:
    """Return a string field that is to be a path, or a part of one. Raises ImageError for a NUL."""
    text = get_text(message, field)
    if "\0" in text:
        raise ImageError(f"{message.DESCRIPTOR.name}.{field}: no path has a NUL: {text!r}")
    return text


def set_text(message: Message, field: str, text: str) -> None:
    """Set a string field to text that may stand for any bytes."""
    try:
        setattr(message, field, text)
    except UnicodeEncodeError:
        data = os.fsencode(text)
        number = message.DESCRIPTOR.fields_by_name[field].number
        tag = _varint(number << 3 | _LENGTH_DELIMITED)
        message.MergeFromString(tag + _varint(len(data)) + data)


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes([value])
    return bytes([value & 0x7F | 0x80]) + _varint(value >> 7)
