# SPDX-License-Identifier: Apache-2.0
"""The descriptors of a process: which there are, and which of them share an open file."""

import errno
import os
from collections.abc import Iterable
from functools import cmp_to_key
from itertools import pairwise
from typing import NamedTuple

from ckpt.errors import KernelError
from ckpt.kernel import procfs
from ckpt.kernel.fdinfo import FdInfo, parse_fdinfo
from ckpt.kernel.kcmp import Kcmp, is_open, kcmp


class Descriptor(NamedTuple):
    """A number of a process's table, with what fdinfo says of its file."""

    number: int
    link: str
    info: FdInfo

    @property
    def key(self) -> tuple[str, int, int]:
        """Equal for descriptors that share an open file, and for few others."""
        return self.link, self.info.flags & ~os.O_CLOEXEC, self.info.pos


def look(pid: int, numbers: Iterable[int]) -> list[Descriptor]:
    """Return the target's descriptors of these numbers; those that are closed are left out."""
    found = []
    for number in numbers:
        try:
            info = parse_fdinfo(procfs.read(pid, f"fdinfo/{number}"))
            found.append(Descriptor(number, procfs.fd_link(pid, number), info))
        except KernelError as error:
            if error.errno != errno.ENOENT:  # any other would lose an open file
                raise
    return found


def groups(pid: int, descriptors: Iterable[Descriptor]) -> list[list[Descriptor]]:
    """Return the descriptors put together by open file, each group by rising number."""
    alike: dict[tuple[str, int, int], list[Descriptor]] = {}
    for descriptor in descriptors:
        alike.setdefault(descriptor.key, []).append(descriptor)
    found = [group for some in alike.values() for group in _split(pid, some)]
    return sorted(found, key=lambda group: group[0].number)


def _split(pid: int, alike: list[Descriptor]) -> list[list[Descriptor]]:
    """Put them together by open file; if one is closed meanwhile, begin again without it."""
    while len(alike) > 1:
        try:
            return _ordered(pid, alike)
        except KernelError as error:
            if error.errno != errno.EBADF:
                raise
            alike = [one for one in alike if is_open(pid, one.number)]
    return [alike] if alike else []


def _ordered(pid: int, alike: list[Descriptor]) -> list[list[Descriptor]]:
    def order(a: Descriptor, b: Descriptor) -> int:
        return kcmp(Kcmp.FILE, pid, pid, a.number, b.number)

    ordered = sorted(alike, key=cmp_to_key(order))
    split = [[ordered[0]]]
    for before, one in pairwise(ordered):
        if kcmp(Kcmp.FILE, pid, pid, before.number, one.number):
            split.append([])
        split[-1].append(one)
    return split
