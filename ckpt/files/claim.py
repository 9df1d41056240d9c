# SPDX-License-Identifier: Apache-2.0
"""Which kind an open file is of: the first that claims it; and how that writes it down."""

from collections.abc import Callable, Iterable
from typing import Any

from ckpt.errors import Unsupported
from ckpt.files import KINDS
from ckpt.files.kind import Dump, FileKind, OpenFile
from ckpt.image import pb


def kind_of(file: OpenFile, kinds: Iterable[type[FileKind]] = KINDS) -> type[FileKind]:
    """Return the first kind that claims a file; raises Unsupported if none does."""
    for kind in kinds:
        if kind.claims(file):
            return kind
    raise Unsupported(f"{file.name}: not supported", hint=_hint(file.link))


def _hint(link: str) -> str:
    known = {
        "anon_inode:[io_uring]": "an io_uring cannot be dumped: have the program use epoll",
        "anon_inode:[perf_event]": "stop the profiler first",
        "anon_inode:[userfaultfd]": "the target handles its own page faults; nobody can dump that",
    }
    if link.startswith("anon_inode:bpf"):
        return "BPF objects belong to the whole machine and are not dumped"
    return known.get(link, "have the target close it before the dump")


def dump_file(
    kind: type[FileKind], file: OpenFile, out: Dump, update: Callable[[Any], None] | None = None
) -> None:
    """Have a kind dump a file, and add it to files.img; update brings its message up to date."""
    entry = kind.dump(file, out)

    def add() -> None:
        message = entry() if callable(entry) else entry
        if update:
            update(message)
        out.add_entry(pb.file_entry(type=kind.type, id=file.id, **{kind.field: message}))

    if update or callable(entry):
        out.later(add)
    else:
        add()
