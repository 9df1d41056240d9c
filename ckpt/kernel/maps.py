# SPDX-License-Identifier: Apache-2.0
"""The mappings of a process: /proc/PID/maps and /proc/PID/smaps (proc_pid_maps(5), _smaps(5)).

`maps` only lists. `smaps` walks the page tables, so it costs time by the gigabyte and holds the
target's mmap lock meanwhile: look ahead with it, and compare `maps` once the target is stopped.
Neither is one moment's view of a process that runs.
"""

import os
import re
from dataclasses import dataclass
from itertools import product

from ckpt.kernel import procfs
from ckpt.kernel.procfs import Pid


@dataclass(frozen=True, slots=True)
class MapsEntry:
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


@dataclass(frozen=True, slots=True)
class SmapsEntry(MapsEntry):
    """One mapping with what is in it, in bytes.

    `vm_flags` are the two-letter codes of proc_pid_smaps(5) ("gd" grows down, "io", "dd", "uw"
    userfaultfd write-protect, ...). `protection_key` is 0 where the processor has none.
    """

    kernel_page_size: int
    rss: int
    anonymous: int
    swap: int
    thp_eligible: bool
    protection_key: int
    vm_flags: frozenset[str]


_HEAD = rb"([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-][ps]) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *"
_ENTRY = re.compile(rb"^" + _HEAD + rb"([^\n]*)$", re.MULTILINE)
# What lies between the fields asked for differs from kernel to kernel; the fields' order does not.
_FULL_ENTRY = re.compile(
    rb"^" + _HEAD + rb"([^\n]*)\n"
    rb".*?^KernelPageSize: +(\d+) kB\n"
    rb".*?^Rss: +(\d+) kB\n"
    rb".*?^Anonymous: +(\d+) kB\n"
    rb".*?^Swap: +(\d+) kB\n"
    rb".*?(?:^THPeligible: +(\d+)\n)?(?:^ProtectionKey: +(\d+)\n)?^VmFlags: ([^\n]*)\n",
    re.MULTILINE | re.DOTALL,
)
_Head = tuple[int, int, int, bool, int, int, int, int, str]

# Every permission word there is, as (prot, shared).
_PERMS = {
    bytes((r, w, x, s)): ((r == 114) + 2 * (w == 119) + 4 * (x == 120), s == 115)
    for r, w, x, s in product(b"r-", b"w-", b"x-", b"ps")
}


def maps(pid: Pid) -> list[MapsEntry]:
    """The mappings of a process, by rising address; none if it is a kernel thread."""
    return parse_maps(procfs.read(pid, "maps"))


def parse_maps(text: bytes) -> list[MapsEntry]:
    """Parse /proc/PID/maps."""
    return [MapsEntry(*_head(found)) for found in _ENTRY.findall(text)]


def smaps(pid: Pid) -> list[SmapsEntry]:
    """The mappings of a process with their contents and flags, by rising address."""
    return parse_smaps(procfs.read(pid, "smaps"))


def parse_smaps(text: bytes) -> list[SmapsEntry]:
    """Parse /proc/PID/smaps."""
    flags: dict[bytes, frozenset[str]] = {}  # a process has few different sets
    entries = []
    for *head, page, rss, anonymous, swap, thp, key, codes in _FULL_ENTRY.findall(text):
        if codes not in flags:
            flags[codes] = frozenset(codes.decode().split())
        kilobytes = (int(page) << 10, int(rss) << 10, int(anonymous) << 10, int(swap) << 10)
        entries.append(
            SmapsEntry(*_head(head), *kilobytes, thp == b"1", int(key or b"0"), flags[codes])
        )
    return entries


def _head(fields: "tuple[bytes, ...] | list[bytes]") -> _Head:
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
