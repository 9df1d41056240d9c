# SPDX-License-Identifier: Apache-2.0
"""seccomp.img and what threads name of it: their filters, or strict mode.

A thread names the filter that is to be installed first, and that its `prev` (CRIU's name) the next
one: so an image has a filter once that is the last, or among the last, of many threads. Where all
threads of a process have the same ones they share them, and the first thread's record does for all,
by the flag that has a filter installed for all threads at once.

Filters are installed while they are suspended, and before capabilities go: what was installed with
CAP_SYS_ADMIN then needs no no_new_privs now.
"""

from collections.abc import Mapping
from itertools import takewhile
from typing import NamedTuple

from ckpt.errors import ImageError, Unsupported
from ckpt.image import pb
from ckpt.kernel.arch import NR
from ckpt.kernel.remote import Batch
from ckpt.kernel.seccomp import AS_STRICT, SIZE, Chain, Filter, asks_others

_PR_SET_SECCOMP, _MODE_STRICT = 22, 1
_SET_MODE_FILTER = 1
_TSYNC, _LOG, _SPEC_ALLOW, _TSYNC_ESRCH = 1, 2, 4, 16
_MOST_INSTRUCTIONS = 4096
_FPROG = 16


class Filters:
    """The filters of all threads of a dump."""

    def __init__(self) -> None:
        self.entry = pb.seccomp_entry()
        self._known: dict[tuple[Filter, int], int] = {}

    def dump(self, pid: int, chains: Mapping[int, Chain], cores: dict[int, pb.core_entry]) -> None:
        """Put the filters of a process's threads into their records."""
        shared = len(set(chains.values())) == 1 and AS_STRICT not in chains.values()
        for tid, chain in chains.items():
            core = cores[tid].thread_core
            if chain == AS_STRICT:
                core.seccomp_mode = pb.SECCOMP_STRICT
            elif chain and (tid == pid or not shared):
                core.seccomp_mode = pb.SECCOMP_FILTER
                core.seccomp_filter = self._add(chain, _TSYNC if shared else 0)

    def _add(self, chain: Chain, flags: int) -> int:
        """Return the number of the first filter of a chain."""
        number = -1
        for one in reversed(chain):
            key = one._replace(flags=one.flags | flags), number
            if key not in self._known:
                self._known[key] = len(self.entry.seccomp_filters)
                self._append(*key)
            number = self._known[key]
        return number

    def _append(self, one: Filter, following: int) -> None:
        entry = self.entry.seccomp_filters.add(filter=one.program, flags=one.flags)
        if following >= 0:
            entry.prev = following


# --- restore


class Wanted(NamedTuple):
    """What a thread is to have: filters, by their numbers, in their order; or strict mode."""

    filters: list[int]
    strict: bool = False

    def __bool__(self) -> bool:
        return self.strict or bool(self.filters)


def wanted(
    pid: int, cores: Mapping[int, pb.core_entry], entry: pb.seccomp_entry
) -> dict[int, Wanted]:
    """Return what each thread of a process is to have."""
    found = {tid: _of_thread(core.thread_core, tid, entry) for tid, core in cores.items()}
    leader, saved = found[pid], entry.seccomp_filters
    if leader.filters and all(saved[number].flags & _TSYNC for number in leader.filters):
        found = {tid: one or leader for tid, one in found.items()}
    return found


def _of_thread(core: pb.thread_core_entry, tid: int, entry: pb.seccomp_entry) -> Wanted:
    if core.seccomp_mode != pb.SECCOMP_FILTER:
        return Wanted([], strict=core.seccomp_mode == pb.SECCOMP_STRICT)
    saved, number = entry.seccomp_filters, core.seccomp_filter
    found: list[int] = []
    while True:
        if number >= len(saved) or number in found:
            raise ImageError(f"seccomp.img: no filter {number}, which thread {tid} needs")
        found.append(number)
        if not saved[number].HasField("prev"):
            return Wanted(found)
        number = saved[number].prev


def check(entry: pb.seccomp_entry) -> None:
    """Raise ImageError, or Unsupported, for filters that cannot be installed."""
    for number, one in enumerate(entry.seccomp_filters):
        count, rest = divmod(len(one.filter), SIZE)
        if rest or not 0 < count <= _MOST_INSTRUCTIONS:
            raise ImageError(f"seccomp.img: filter {number} has {len(one.filter)} bytes")
        if asks_others((Filter(one.filter),)):
            raise Unsupported(f"seccomp.img: filter {number} asks another process: not restored")


def room(entry: pb.seccomp_entry) -> int:
    """Return how many bytes place() takes."""
    return 4096 + sum(len(one.filter) + 2 * 64 + _FPROG for one in entry.seccomp_filters)


def place(entry: pb.seccomp_entry, batch: Batch) -> list[int]:
    """Put all filters where tasks can read them; returns the addresses of their sock_fprogs."""
    found = []
    for one in entry.seccomp_filters:
        count, program = len(one.filter) // SIZE, batch.data(one.filter)
        words = count.to_bytes(8, "little") + program.address.to_bytes(8, "little")
        found.append(batch.data(words).address)
    return found


def in_common(everybody: Mapping[int, Wanted]) -> list[int]:
    """Return the filters that all threads of a process have, from the first on: they share them."""
    steps = zip(*(one.filters for one in everybody.values()), strict=False)
    return [step[0] for step in takewhile(lambda step: len(set(step)) == 1, steps)]


def restore(
    one: Wanted,
    entry: pb.seccomp_entry,
    addresses: list[int],
    batch: Batch,
    *,
    for_all: bool = False,
) -> None:
    """Add the calls that install filters, for all threads of the process or for one."""
    for number in one.filters:
        flags = entry.seccomp_filters[number].flags & (_LOG | _SPEC_ALLOW)
        flags |= _TSYNC | _TSYNC_ESRCH if for_all else 0
        batch.call(NR.seccomp, _SET_MODE_FILTER, flags, addresses[number], must=True)
    if one.strict:
        batch.call(NR.prctl, _PR_SET_SECCOMP, _MODE_STRICT, 0, 0, 0, must=True)
