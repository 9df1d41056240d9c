# SPDX-License-Identifier: Apache-2.0
"""A small but complete image, with one file of every kind that has messages."""

from pathlib import Path
from typing import Any

from ckpt.image import pb
from ckpt.image.directory import ImageDir
from ckpt.image.kinds import KINDS, Kind
from ckpt.image.pages import PAGE, PE_LAZY, PE_PARENT, PE_PRESENT, PageWriter

TAILS: dict[str, dict[str, int]] = {
    "pipes-data": {"bytes": 5},
    "fifo-data": {"bytes": 5},
    "sk-queues": {"length": 5},
    "tcp-stream": {"inq_len": 2, "outq_len": 3},
    "bpfmap-data": {"keys_bytes": 4, "values_bytes": 1},
    "ipcns-shm": {"size": 5},
    "ipcns-sem": {"nsems": 3},
    "ipcns-msg": {"qnum": 1},
    "ghost-file": {},
}
"""Fields to set so that a tail follows."""


def fill(message: Any, depth: int = 0) -> Any:
    """Set every field to something; recursion stops soon."""
    for field in message.DESCRIPTOR.fields:
        many = hasattr(getattr(message, field.name), "extend")
        if field.message_type is None:
            value = scalar(field)
            if many:
                getattr(message, field.name).extend(
                    [value] * 4
                )  # as many as crit wants for an IPv6 address
            else:
                setattr(message, field.name, value)
        elif depth < 6:
            target = getattr(message, field.name)
            fill(target.add() if many else target, depth + 1)
    return message


def scalar(field: Any) -> Any:
    """Return a value for a field."""
    if field.enum_type is not None:
        return field.enum_type.values[0].number
    values = {field.TYPE_BOOL: True, field.TYPE_STRING: "text", field.TYPE_BYTES: b"\x00\xff"}
    return values.get(field.type, field.number)


def sample(kind: Kind) -> tuple[Any, bytes]:
    """Return a message of the kind, and a raw tail that goes with it."""
    message = fill(kind.message_types()[0]())
    for name, value in TAILS.get(kind.name, {}).items():
        setattr(message, name, value)
    if kind.name == "ghost-file":
        message.chunks = False
        return message, b"ghost"
    if kind.name == "ipcns-shm":
        message.in_pagemaps = False
    if kind.name == "ipcns-msg":
        inner = pb.ipc_msg(mtype=1, msize=5).SerializeToString()
        return message, len(inner).to_bytes(4, "little") + inner + b"hello\0\0\0"
    size = kind.tail(message, None) if kind.tail else 0  # type: ignore[arg-type]
    return message, b"hello\0\0\0"[:size].ljust(size, b"\0")


def write_pages(image: ImageDir, pages_id: int, *runs: tuple[int, int, int]) -> None:
    """Write pagemap-1; every page is filled with its own number modulo 251, plus pages_id."""
    with PageWriter(image, "pagemap", 1, pages_id) as writer:
        for vaddr, nr_pages, flags in runs:
            writer.add(vaddr, nr_pages, flags)
            if flags & PE_PRESENT:
                for page in range(vaddr // PAGE, vaddr // PAGE + nr_pages):
                    writer.write(bytes([(page + pages_id) % 251]) * PAGE)


def complete_image(path: Path, *, parent: str | None = None) -> Path:
    """Write an image with a file of every kind."""
    with ImageDir.create(path, parent) as image:
        for kind in KINDS.values():
            if kind.magic and kind.name not in ("inventory", "pagemap", "pagemap-shmem"):
                message, tail = sample(kind)
                with image.writer(kind.name, 7 if "%" in kind.pattern else None) as writer:
                    writer.append(message, tail)
        left = PE_PARENT if parent else PE_PRESENT
        write_pages(image, 1, (PAGE, 2, left), (4 * PAGE, 1, PE_PRESENT | PE_LAZY))
        image.seal(pb.inventory_entry(img_version=2))
    return path
