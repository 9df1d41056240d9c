# SPDX-License-Identifier: Apache-2.0
"""Records of seccomp filters: each once, in CRIU's order, and no image makes us loop or overrun."""

import pytest

from ckpt.errors import ImageError, Unsupported
from ckpt.image import pb
from ckpt.kernel.seccomp import ALLOW, AS_STRICT, USER_NOTIF, Filter
from ckpt.task import seccomp
from ckpt.task.seccomp import Filters, Wanted

TSYNC = 1
OLDER, NEWER = (Filter(bytes(7) + bytes([n]) + bytes(8)) for n in (1, 2))


def cores(*tids: int) -> dict[int, pb.core_entry]:
    return {tid: pb.core_entry(thread_core=pb.thread_core_entry()) for tid in tids}


def dumped(*processes: dict[int, tuple[Filter, ...]]) -> tuple[pb.seccomp_entry, list]:
    filters, found = Filters(), []
    for chains in processes:
        records = cores(*chains)
        filters.dump(next(iter(chains)), chains, records)
        found.append(records)
    return filters.entry, found


PROCESSES = (
    {1: (OLDER, NEWER), 2: (OLDER, NEWER)},
    {3: (OLDER,), 4: (), 5: (OLDER, NEWER), 6: AS_STRICT},
    {7: (), 8: (NEWER,)},
    {9: ()},
)


def test_what_is_dumped_is_wanted_again() -> None:
    entry, found = dumped(*PROCESSES)
    for chains, records in zip(PROCESSES, found, strict=True):
        wanted = seccomp.wanted(next(iter(chains)), records, entry)
        for tid, chain in chains.items():
            saved = [entry.seccomp_filters[number].filter for number in wanted[tid].filters]
            assert saved == ([] if chain is AS_STRICT else [one.program for one in chain])
            assert wanted[tid].strict == (chain is AS_STRICT)
    assert not any(seccomp.wanted(9, found[3], entry).values())


def test_what_many_have_is_there_once() -> None:
    one = dumped(*PROCESSES)[0]
    assert dumped(*PROCESSES, *PROCESSES)[0] == one
    assert len(one.seccomp_filters) == 5  # two that threads share, and three that they do not


def test_the_first_thread_speaks_for_all_that_share() -> None:
    entry, (shared, *_) = dumped(PROCESSES[0])
    assert shared[1].thread_core.seccomp_mode == pb.SECCOMP_FILTER
    assert not shared[2].thread_core.HasField("seccomp_mode")
    assert all(one.flags & TSYNC for one in entry.seccomp_filters)


def test_what_all_have_in_common() -> None:
    def common(*chains: list[int]) -> list[int]:
        return seccomp.in_common({tid: Wanted(one) for tid, one in enumerate(chains)})

    assert common([1, 2], [1, 3]) == [1]
    assert common([1, 2], [1, 2]) == [1, 2]
    assert common([1, 2], []) == common([1], [2]) == []


def named(number: int) -> dict[int, pb.core_entry]:
    records = cores(1)
    records[1].thread_core.seccomp_mode = pb.SECCOMP_FILTER
    records[1].thread_core.seccomp_filter = number
    return records


@pytest.mark.parametrize("prev", [0, 1, 7])
def test_filters_that_lead_nowhere(prev: int) -> None:
    filters = [
        pb.seccomp_filter(filter=OLDER.program, prev=prev),
        pb.seccomp_filter(filter=NEWER.program, prev=0),
    ]
    with pytest.raises(ImageError, match="no filter"):
        seccomp.wanted(1, named(0), pb.seccomp_entry(seccomp_filters=filters))
    with pytest.raises(ImageError, match="no filter 2"):
        seccomp.wanted(1, named(2), pb.seccomp_entry(seccomp_filters=filters))


@pytest.mark.parametrize("size", [0, 7, 8 * 4097])
def test_programs_of_no_size(size: int) -> None:
    filters = [pb.seccomp_filter(filter=bytes(size))]
    with pytest.raises(ImageError, match=f"{size} bytes"):
        seccomp.check(pb.seccomp_entry(seccomp_filters=filters))


def test_a_filter_that_asks_others() -> None:
    for action, raises in ((ALLOW, False), (USER_NOTIF, True)):
        program = b"\x06\0\0\0" + action.to_bytes(4, "little")
        entry = pb.seccomp_entry(seccomp_filters=[pb.seccomp_filter(filter=program)])
        if not raises:
            seccomp.check(entry)
            continue
        with pytest.raises(Unsupported):
            seccomp.check(entry)
