# SPDX-License-Identifier: Apache-2.0
"""An image as readable text, or as objects that JSON can hold, much as `crit show` has it.

One object per file: `{"file": name, "magic": kind, "entries": [...]}`, or `{"file": name, "raw":
bytes}` for a file without records. An entry has the message's fields by name; a raw tail is in
`extra` (base64) as long as it is small, and its length in `extra_bytes`.
"""

import os
import re
import stat
from base64 import b64encode
from collections.abc import Iterator, MutableSequence
from pathlib import Path
from typing import Any

from ckpt.errors import ImageError
from ckpt.image.kinds import KINDS, Kind
from ckpt.image.records import Source

_SMALL = 64 * 1024
"""Longest raw tail that is shown, in bytes."""

_OPEN_FLAGS = {
    name: getattr(os, name)
    for name in (
        *("O_WRONLY", "O_RDWR", "O_CREAT", "O_EXCL", "O_APPEND", "O_NONBLOCK"),
        *("O_DIRECT", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_PATH"),
    )
}

_VMA_STATUS = (
    *("REGULAR", "STACK", "VSYSCALL", "VDSO", "", "HEAP", "FILE_PRIVATE", "FILE_SHARED"),
    *("ANON_SHARED", "ANON_PRIVATE", "SYSVIPC", "SOCKET", "VVAR", "AIORING", "MEMFD"),
    *("SHSTK", "GUARD", "UPROBES"),
)

_FLAGS = {
    "pagemap_entry.flags": {"PE_PARENT": 1, "PE_LAZY": 2, "PE_PRESENT": 4},
    "vma_entry.prot": {"PROT_READ": 1, "PROT_WRITE": 2, "PROT_EXEC": 4},
    "vma_entry.flags": {
        "MAP_SHARED": 1,
        "MAP_PRIVATE": 2,
        "MAP_ANON": 0x20,
        "MAP_GROWSDOWN": 0x100,
        "MAP_NORESERVE": 0x4000,
        "MAP_HUGETLB": 0x40000,
    },
    "vma_entry.status": {name: 1 << bit for bit, name in enumerate(_VMA_STATUS) if name},
    "fdinfo_entry.flags": {"FD_CLOEXEC": 1},
    "reg_file_entry.flags": _OPEN_FLAGS,
    "pipe_entry.flags": _OPEN_FLAGS,
    "tty_file_entry.flags": _OPEN_FLAGS,
}
"""Fields that are sets of bits."""

_HEX = re.compile(
    r"(vma_entry\.(start|end)|mm_entry\.mm_(?!saved)|pagemap_entry\.vaddr|sa_entry\."
    r"|thread_core_entry\.futex_rla$|user_x86_regs_entry\.|rseq_entry\.rseq_abi_pointer"
    r"|\w+\.(clear_tid_addr|blk_sigset|sigmask|mask|rdev|s_dev|dev)$)"
)
"""Fields that are addresses, registers or masks."""


def show(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yield an object per file, of one image file or of a directory of them.

    Raises ImageError for a file that is damaged or of no known kind. In a directory, files that
    do not have the name of an image file are passed over.
    """
    path = Path(path)
    if not path.is_dir():
        yield _show_file(path, os.O_CLOEXEC)
        return
    for name in sorted(path.iterdir()):
        if _kind_of_name(name.name) is not None:
            yield _show_file(name, os.O_NOFOLLOW)


def render_text(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield the lines of the same as indented text, without newlines at their ends."""
    for file in show(path):
        if "raw" in file:
            yield f"{file['file']}: {file['raw']} raw bytes"
            continue
        yield f"{file['file']}: {file['magic']}"
        for entry in file["entries"]:
            yield "  -"
            yield from _lines(entry, "    ")


def _lines(value: dict[str, Any], indent: str) -> Iterator[str]:
    for name, item in value.items():
        if isinstance(item, dict):
            yield f"{indent}{name}:"
            yield from _lines(item, indent + "  ")
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            for part in item:
                yield f"{indent}{name}:"
                yield from _lines(part, indent + "  ")
        elif isinstance(item, list):
            yield f"{indent}{name}: {' '.join(map(str, item))}"
        else:
            yield f"{indent}{name}: {item}"


def _kind_of_name(name: str) -> Kind | None:
    stem = re.sub(r"-[0-9a-f]+(\.img|\.tar\.gz)$", r"\1", name)
    stem = stem.removesuffix(".img").removesuffix(".tar.gz")
    return KINDS.get(stem)


def _show_file(path: Path, flags: int) -> dict[str, Any]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise ImageError(f"{path}: not a regular file")
    with Source(fd, str(path)) as source:
        kind = _kind_of_name(path.name)
        if kind is not None and not kind.magic:
            return {"file": path.name, "raw": status.st_size}
        kind = source.identify()
        entries = list(_entries(source, kind))
        return {"file": path.name, "magic": kind.name, "entries": entries}


def _entries(source: Source, kind: Kind) -> Iterator[dict[str, Any]]:
    for record in source.records(kind):
        entry = _message(record.message)
        if record.tail_length:
            entry["extra_bytes"] = record.tail_length
            if record.tail_length <= _SMALL:
                entry["extra"] = b64encode(source.tail(record)).decode()
        yield entry


def _message(message: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for field, value in message.ListFields():
        if isinstance(value, MutableSequence):
            fields[field.name] = [_value(field, item) for item in value]
        else:
            fields[field.name] = _value(field, value)
    return fields


def _value(field: Any, value: Any) -> Any:
    """Return a value that JSON can hold and that people can read."""
    if field.message_type is not None:
        return _message(value)
    if isinstance(value, bytes):
        text = field.type == field.TYPE_STRING  # a string that is not UTF-8: a file name, say
        return value.decode(errors="backslashreplace") if text else b64encode(value).decode()
    if field.enum_type is not None:
        return _enum_name(field.enum_type, value)
    name = f"{field.containing_type.name}.{field.name}"
    if name in _FLAGS:
        return _bits(_FLAGS[name], value)
    return f"{value:#x}" if isinstance(value, int) and _HEX.match(name) else value


def _enum_name(enum: Any, number: int) -> str | int:
    """Return the name of a value without the prefix that all values of the enum share."""
    if number not in enum.values_by_number:
        return number
    first, *others = (value.name for value in enum.values)
    prefix = first[: first.find("_") + 1]
    shared = all(other.startswith(prefix) for other in others)
    name: str = enum.values_by_number[number].name
    return name.removeprefix(prefix) if shared else name


def _bits(names: dict[str, int], value: int) -> str:
    known = [name for name, bit in names.items() if value & bit]
    rest = value & ~sum(names.values())
    return " | ".join(known + ([f"{rest:#x}"] if rest else [])) or "0"
