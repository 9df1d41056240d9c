# SPDX-License-Identifier: Apache-2.0
"""The parsers of mappings and mounts: given texts, and this very process."""

import mmap
import os

import pytest

from ckpt.errors import KernelError
from ckpt.kernel.maps import MapsEntry, maps, parse_maps, parse_smaps, smaps
from ckpt.kernel.mountinfo import mountinfo, parse_mountinfo

MAPS = rb"""55800000-55801000 r-xp 00002000 fe:10 260386         /usr/bin/a b\012\c (deleted)
7f0000000000-7f0000002000 rw-s 00000000 00:01 9
7f0000003000-7f0000004000 ---p 00000000 00:00 0                          [anon:x y]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""

BODY = b"""Size:                  8 kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
Rss:                   8 kB
Pss:                   8 kB
Pss_Dirty:             0 kB
Anonymous:            12 kB
AnonHugePages:         0 kB
Swap:                 16 kB
SwapPss:               0 kB
THPeligible:           1
ProtectionKey:         3
VmFlags: rd wr mr gd
"""


def test_maps() -> None:
    entries = parse_maps(MAPS)
    path = "/usr/bin/a b\n\\c (deleted)"
    assert entries[0] == MapsEntry(
        0x55800000, 0x55801000, 5, False, 0x2000, 0xFE, 0x10, 260386, path
    )
    assert entries[0].dev == os.makedev(0xFE, 0x10)
    assert (entries[1].prot, entries[1].shared, entries[1].path) == (3, True, "")
    assert (entries[2].prot, entries[2].path) == (0, "[anon:x y]")
    assert entries[3].end == 0xFFFFFFFFFF601000
    assert parse_maps(b"") == []


def test_smaps() -> None:
    lines = MAPS.splitlines(keepends=True)
    entries = parse_smaps(b"".join(line + BODY for line in lines))
    assert [(entry.start, entry.path) for entry in entries] == [
        (entry.start, entry.path) for entry in parse_maps(MAPS)
    ]
    first = entries[0]
    assert (first.kernel_page_size, first.rss, first.anonymous, first.swap) == (
        4096,
        8192,
        12288,
        16384,
    )
    assert (first.thp_eligible, first.protection_key) == (True, 3)
    assert first.vm_flags == {"rd", "wr", "mr", "gd"}
    assert parse_smaps(b"") == []


def test_smaps_of_a_processor_without_protection_keys() -> None:
    body = b"".join(line for line in BODY.splitlines(True) if b"Key" not in line)
    assert parse_smaps(MAPS.splitlines(True)[0] + body)[0].protection_key == 0


def test_a_mapping_that_is_not_understood_is_an_error() -> None:
    with pytest.raises(KernelError, match="1 of 2"):
        parse_maps(b"55800000-55801000 r-xp 00002000 fe:10 1 /a\nwhat\n")
    lines = MAPS.splitlines(True)
    with pytest.raises(KernelError, match="1 of 2"):
        parse_smaps(lines[0] + BODY + lines[1] + BODY.replace(b"Pss_Dirty", b"Other"))


def test_own_mappings() -> None:
    memory = mmap.mmap(-1, 5 * mmap.PAGESIZE, flags=mmap.MAP_SHARED)
    memory[0] = 1
    mine = [entry for entry in smaps("self") if entry.shared and entry.rss and "zero" in entry.path]
    assert any(entry.end - entry.start >= len(memory) for entry in mine)
    assert {"[stack]", "[vdso]"} <= {entry.path for entry in maps(os.getpid())}


def test_mountinfo() -> None:
    text = (
        rb"36 35 98:0 /mnt1 /a\040b\134\012 rw,noatime shared:7 master:1 propagate_from:3"
        b" unbindable - fuse.x /dev/c\\043 rw,errors=continue\n"
        b"37 36 0:21 / /proc rw - proc  rw\n"
    )
    first, second = parse_mountinfo(text)
    assert (first.mnt_id, first.parent, first.dev) == (36, 35, os.makedev(98, 0))
    assert (first.root, first.mountpoint, first.options) == ("/mnt1", "/a b\\\n", "rw,noatime")
    assert (first.shared, first.master, first.propagate_from, first.unbindable) == (7, 1, 3, True)
    assert (first.fstype, first.source) == ("fuse.x", "/dev/c#")
    assert (first.super_options, second.super_options) == ("rw,errors=continue", "rw")
    assert (second.shared, second.unbindable, second.source) == (0, False, "")


def test_own_mounts() -> None:
    assert any(mount.fstype == "proc" for mount in mountinfo("self"))
