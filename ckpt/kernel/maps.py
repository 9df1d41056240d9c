# SPDX-License-Identifier: Apache-2.0
"""The mappings of a process: /proc/PID/maps and /proc/PID/smaps (proc_pid_maps(5), _smaps(5)).

`maps` only lists. `smaps` walks the page tables, so it costs time by the gigabyte and holds the
target's mmap lock meanwhile: look ahead with it, and compare `maps` once the target is stopped.
Neither is one moment's view of a process that runs, and a process without memory, such as a zombie
or kernel thread, has no mappings.
"""

import errno
import os
import re
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from ckpt.errors import KernelError
from ckpt.kernel import procfs
from ckpt.kernel.procfs import Pid


class MapsEntry(NamedTuple):
    """One mapping, [start, end).

    `prot` is made of PROT_READ 1, PROT_WRITE 2 and PROT_EXEC 4; `pgoff` is in bytes; the device
    and inode are 0 for anonymous memory. `path` is as shown: a file, " (deleted)" at its end
    when it has no name any more, "[heap]", "[anon:name]", ... or "".
    """

    start: int
    end: int
    prot: int
    shared: bool
    pgoff: int
    major: int
    minor: int
    inode: int
    path: str

    @property
    def dev(self) -> int:
        """The device as `os.stat` numbers it."""
        return os.makedev(self.major, self.minor)


class SmapsEntry(NamedTuple):
    """One mapping, as in MapsEntry, with what is in it, in bytes; hugetlb pages are not counted.

    `vm_flags` are the two-letter codes of proc_pid_smaps(5) ("gd" grows down, "io", "dd", "uw"
    userfaultfd write-protect, ...). `protection_key` is 0 where the processor has none.
    """

    start: int
    end: int
    prot: int
    shared: bool
    pgoff: int
    major: int
    minor: int
    inode: int
    path: str
    kernel_page_size: int
    rss: int
    anonymous: int
    swap: int
    thp_eligible: bool
    protection_key: int
    vm_flags: frozenset[str]

    @property
    def dev(self) -> int:
        """The device as `os.stat` numbers it."""
        return os.makedev(self.major, self.minor)


_HEAD = rb"([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-][ps]) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *"
_ENTRY = re.compile(rb"^" + _HEAD + rb"([^\n]*)$", re.MULTILINE)
# What smaps tells below a mapping's first line, where a processor or kernel has it.
_WANTED = (
    b"KernelPageSize",
    b"Rss",
    b"Anonymous",
    b"Swap",
    b"THPeligible",
    b"ProtectionKey",
    b"VmFlags",
)
_LABEL = re.compile(rb"^(\w+):", re.MULTILINE)
_Head = tuple[int, int, int, bool, int, int, int, int, str]

# Every permission word there is, as (prot, shared).
_PERMS = {
    bytes((r, w, x, s)): ((r == 114) + 2 * (w == 119) + 4 * (x == 120), s == 115)
    for r, w, x, s in product(b"r-", b"w-", b"x-", b"ps")
}


def maps(pid: Pid) -> list[MapsEntry]:
    """The mappings of a process, by rising address."""
    return parse_maps(procfs.read(pid, "maps"))


def parse_maps(text: bytes) -> list[MapsEntry]:
    """Parse /proc/PID/maps."""
    found = _ENTRY.findall(text)
    _complete(len(found), text.count(b"\n"))
    return [MapsEntry(*_head(entry)) for entry in found]


def smaps(pid: Pid) -> list[SmapsEntry]:
    """The mappings of a process with their contents and flags, by rising address."""
    return parse_smaps(procfs.read(pid, "smaps"))


def parse_smaps(text: bytes) -> list[SmapsEntry]:
    """Parse /proc/PID/smaps."""
    labels = _labels(text)
    wanted = [label for label in labels if label in _WANTED]
    found = _layout(labels).findall(text)
    _complete(len(found), text.count(b"\nVmFlags:"))
    flags: dict[bytes, frozenset[str]] = {}  # a process has few different sets
    return [_full(entry[:8], dict(zip(wanted, entry[8:], strict=True)), flags) for entry in found]


def _labels(text: bytes) -> list[bytes]:
    """The names of the lines under the first mapping, up to and with VmFlags, always the last."""
    head_end, flags = text.find(b"\n") + 1, text.find(b"\nVmFlags:")
    return _LABEL.findall(text, head_end, flags + len(b"\nVmFlags:"))


def _layout(labels: Sequence[bytes]) -> re.Pattern[bytes]:
    """A pattern for one mapping of this kernel.

    Which lines there are depends on kernel and processor, but all mappings have the same
    (show_smap in fs/proc/task_mmu.c); naming each is five times faster than skipping lazily.
    """
    lines = (label + (rb": *([^\n]*)\n" if label in _WANTED else rb":[^\n]*\n") for label in labels)
    return re.compile(rb"^" + _HEAD + rb"([^\n]*)\n" + b"".join(lines), re.MULTILINE)


def _full(
    head: Sequence[bytes], body: dict[bytes, bytes], flags: dict[bytes, frozenset[str]]
) -> SmapsEntry:
    codes = body[b"VmFlags"]
    if codes not in flags:
        flags[codes] = frozenset(codes.decode().split())
    return SmapsEntry(
        *_head(head),
        _kb(body[b"KernelPageSize"]),
        _kb(body[b"Rss"]),
        _kb(body[b"Anonymous"]),
        _kb(body[b"Swap"]),
        body.get(b"THPeligible") == b"1",
        int(body.get(b"ProtectionKey", b"0")),
        flags[codes],
    )


def _kb(value: bytes) -> int:
    return int(value[:-3]) << 10  # always "N kB"


def _complete(found: int, there: int) -> None:
    """A mapping that we cannot read must not be passed over in silence."""
    if found != there:
        raise KernelError(errno.EPROTO, f"parse mappings ({found} of {there} understood)")


def _head(fields: Sequence[bytes]) -> _Head:
    start, end, perms, pgoff, major, minor, inode, path = fields
    return (
        int(start, 16),
        int(end, 16),
        *_PERMS[perms],
        int(pgoff, 16),
        int(major, 16),
        int(minor, 16),
        int(inode),
        _path(path) if path else "",
    )


def _path(shown: bytes) -> str:
    # Only a newline is escaped (show_map_vma in fs/proc/task_mmu.c), not the backslash: no other
    # backslash may be taken for an escape.
    return os.fsdecode(shown.replace(rb"\012", b"\n"))
