# SPDX-License-Identifier: Apache-2.0
from contextlib import suppress
from random import Random

import pytest

from ckpt.errors import ImageError, Unsupported
from ckpt.pstree import Do, Item, State, plan, strangers, tree


def item(pid, ppid, pgid=10, sid=10, threads=(), state=State.ALIVE, memory=0):
    return Item(pid, ppid, pgid, sid, threads, state, memory)


def made(*items):
    """What comes of a plan: (parent, group, session) of all that are left; as the kernel has it."""
    found: dict[int, tuple[int, int, int]] = {}
    root = tree(items)[0]
    outside = [0 if of == root.pid else of for of in (root.pgid, root.sid)]
    for step in plan(tree(items_again(items))):
        pid = step.item.pid
        match step.do:
            case Do.FORK | Do.ORPHAN:
                assert pid not in found
                group, session = found[step.by][1:] if step.by else outside
                parent = step.by
                if step.by and step.by != step.item.ppid:
                    parent = found[step.by][0]
                if step.do is Do.ORPHAN:
                    parent = found[step.by][0]
                    while parent != step.item.ppid:
                        parent = found[parent][0]
                found[pid] = parent, group, session
            case Do.SETSID:
                assert found[pid][1] != pid
                found[pid] = found[pid][0], pid, pid
            case Do.SETPGID:
                parent, group, session = found[pid]
                assert session != pid
                members = [one for one in found.values() if one[1] == step.by]
                assert step.by == pid or (members and members[0][2] == session)
                found[pid] = parent, step.by, session
            case Do.END:
                del found[pid]
    return found


def items_again(items):
    return [Item(i.pid, i.ppid, i.pgid, i.sid, i.threads, i.state, i.memory) for i in items]


def wanted(*items):
    alive = [one for one in items if one.state is State.ALIVE]
    return {one.pid: (one.ppid, one.pgid, one.sid) for one in alive}


def check(*items):
    assert made(*items) == wanted(*items)


def test_one():
    check(item(10, 0))
    check(item(10, 0, pgid=10, sid=3))
    check(item(10, 0, pgid=3, sid=3))


def test_children_of_a_leader():
    check(item(10, 0), item(11, 10), item(12, 11), item(13, 10))


def test_an_elder_is_forked_before_setsid():
    items = item(10, 0), item(11, 10, 11, 11), item(12, 11), item(13, 11, 11, 11)
    check(*items)
    steps = [(step.do, step.item.pid) for step in plan(tree(items_again(items)))]
    elder, setsid = steps.index((Do.FORK, 12)), steps.index((Do.SETSID, 11))
    assert elder < setsid < steps.index((Do.FORK, 13))


def test_elders_of_leaders_of_leaders():
    check(
        item(10, 0), item(11, 10, 11, 11), item(12, 11, 12, 12), item(13, 12, 10, 10),
        item(14, 11, 10, 10), item(15, 12, 12, 12),
    )  # fmt: skip


def test_an_orphan_of_a_session_whose_leader_is_gone():
    items = item(10, 0), item(12, 10, 11, 11), item(13, 10, 11, 11), item(14, 12, 11, 11)
    check(*items)
    steps = plan(tree(items_again(items)))
    stand_ins = {step.item.pid for step in steps if step.item.state is State.STAND_IN}
    assert stand_ins == {11}


def test_a_sibling_that_has_ended_leads_the_session():
    dead = item(11, 10, 11, 11, state=State.DEAD)
    items = item(10, 0), item(12, 10, 11, 11), dead
    check(*items)
    assert not [s for s in plan(tree(items_again(items))) if s.item.state is State.STAND_IN]


def test_groups():
    check(item(10, 0), item(11, 10, 11), item(12, 11, 11), item(13, 10, 11), item(14, 10, 14))
    check(item(10, 0), item(12, 10, 13), item(13, 12, 13))


def test_a_group_whose_leader_is_gone():
    check(item(10, 0), item(12, 10, 11), item(13, 10, 11))
    check(item(10, 0), item(12, 10, 12, 12), item(13, 12, 11, 12))


def test_one_that_has_ended_in_a_group_whose_leader_is_gone():
    items = item(10, 0), item(12, 10, 11, state=State.DEAD)
    check(*items)
    ends = [step.item.pid for step in plan(tree(items_again(items))) if step.do is Do.END]
    assert ends == [11, 12]  # who waits for the stand-in


def test_a_shell_job():
    check(item(10, 0, 10, 3), item(11, 10, 10, 3), item(12, 10, 12, 3), item(13, 12, 13, 13))
    check(item(10, 0, 3, 3), item(11, 10, 3, 3))


@pytest.mark.parametrize(
    "items",
    [
        [],
        [item(10, 0), item(11, 0)],
        [item(10, 0), item(11, 12), item(12, 11)],
        [item(10, 0), item(11, 9)],
        [item(10, 0), item(10, 10)],
        [item(10, 0, threads=(10, 12)), item(12, 10)],
        [item(10, 0, threads=(10, 10))],
        [item(10, 0, threads=(11,))],
        [item(0, 0)],
        [item(1 << 22, 0)],
        [item(10, 0, sid=1 << 22)],
        [item(10, 0, state=State.DEAD), item(11, 10)],
        [item(10, 0), *(item(pid, pid - 1) for pid in range(11, 400))],
    ],
)
def test_what_no_tree_can_be(items):
    with pytest.raises(ImageError):
        tree(items)


def test_too_many():
    with pytest.raises(ImageError, match="more than"):
        tree(item(pid, pid - 1) for pid in range(1, 1 << 20))


def test_an_orphan_of_a_session_further_below():
    nephew = item(13, 10, 12, 12)
    check(item(10, 0), item(11, 10), item(12, 11, 12, 12), nephew)
    check(item(10, 0), nephew, item(14, 13, 12, 12), item(11, 10), item(12, 11, 12, 12))


def makers(*items):
    return {step.item.pid: step.by for step in plan(tree(items_again(items))) if step.do is Do.FORK}


def test_memory_of_a_parent():
    items = item(10, 0, memory=1), item(11, 10, memory=1), item(12, 11, memory=1)
    check(*items)
    assert makers(*items) == {10: 0, 11: 10, 12: 11}


def test_memory_of_a_sibling():
    items = (
        item(10, 0, memory=1), item(11, 10, memory=2), item(12, 10, memory=1),
        item(13, 10, memory=2), item(14, 13, memory=2), item(15, 10, memory=3),
    )  # fmt: skip
    check(*items)
    assert makers(*items) == {10: 0, 11: 10, 12: 10, 13: 11, 14: 13, 15: 10}


def test_memory_of_a_sibling_that_leads_a_session():
    first = item(11, 10, 11, 11, memory=2)
    items = item(10, 0, memory=1), first, item(12, 10, memory=2), item(13, 10, 11, 11, memory=2)
    check(*items)
    assert makers(*items) == {10: 0, 11: 10, 12: 11, 13: 11}
    items = item(10, 0, memory=1), item(12, 10, 13, 13, memory=2), item(13, 10, 13, 13, memory=2)
    check(*items)
    assert makers(*items) == {10: 0, 12: 13, 13: 10}


def test_memory_of_a_sibling_and_the_session_of_its_child():
    items = item(10, 0, memory=1), item(11, 10, memory=2), item(12, 10, 14, 14, memory=2)
    with pytest.raises(Unsupported, match="pid 12 has the memory of pid 11"):
        plan(tree([*items, item(13, 10), item(14, 11, 14, 14)]))


def test_a_session_that_is_elsewhere():
    cousin = item(14, 13, 12, 12)
    with pytest.raises(Unsupported, match="pid 14 is in session 12"):
        plan(tree([item(10, 0), item(11, 10), item(12, 11, 12, 12), item(13, 10), cousin]))


def test_a_group_whose_leader_is_in_another():
    check(item(10, 0), item(11, 10, 13), item(12, 10, 11), item(13, 10, 13))
    check(item(10, 0), item(13, 10, 13), item(12, 10, 11), item(11, 10, 13))


def test_a_group_of_another_session():
    with pytest.raises(ImageError, match="pid 11 does not lead"):
        plan(tree([item(10, 0), item(11, 10, 11, 11), item(12, 10, 11)]))


class Past:
    """Processes that have forked, and done whatever else they may, at random."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.last = 10
        self.there = {10: item(10, 0)}

    def step(self) -> None:
        one = self.random.choice([one for one in self.there.values() if one.state is State.ALIVE])
        do = self.random.choice([self.fork, self.fork, self.fork, self.lead, self.join, self.end])
        do(one)

    def fork(self, one: Item) -> None:
        self.last += 1
        self.there[self.last] = item(self.last, one.pid, one.pgid, one.sid)

    def lead(self, one: Item) -> None:
        if not any(other.pgid == one.pid for other in self.there.values()):
            one.pgid = one.sid = one.pid

    def join(self, one: Item) -> None:
        groups = {other.pgid for other in self.there.values() if other.sid == one.sid}
        if one.sid != one.pid:
            one.pgid = self.random.choice(sorted({one.pid, *groups}))

    def end(self, one: Item) -> None:
        if one.pid == 10:
            return
        one.state = State.DEAD
        for other in list(self.there.values()):
            if other.ppid == one.pid:
                other.ppid = 10  # the subreaper, who waits for those that have ended
                if other.state is State.DEAD:
                    del self.there[other.pid]
        if self.random.random() < 0.7:
            del self.there[one.pid]

    def clone(self, one: Item) -> None:
        """Have a child, or a sibling, with the same memory."""
        parent = one.ppid if one.ppid and self.random.random() < 0.5 else one.pid
        self.fork(one)
        one.memory = one.memory or one.pid
        self.there[self.last].ppid, self.there[self.last].memory = parent, one.memory

    def execute(self, one: Item) -> None:
        one.memory = 0


@pytest.mark.parametrize("seed", range(300))
def test_any_past(seed):
    past = Past(seed)
    for _ in range(past.random.randrange(60)):
        past.step()
    check(*past.there.values())


@pytest.mark.parametrize("seed", range(100))
def test_any_past_with_shared_memory(seed):
    """Whatever it is, nobody is made another's child than he was."""
    past = Past(seed)
    for _ in range(past.random.randrange(30)):
        alive = [one for one in past.there.values() if one.state is State.ALIVE]
        do = past.random.choice([past.clone, past.clone, past.execute, lambda _: past.step()])
        do(past.random.choice(alive))
    items = list(past.there.values())
    alive = {one.pid: one for one in items if one.state is State.ALIVE}
    memories = {pid: one.memory or -pid for pid, one in alive.items()}
    with suppress(Unsupported):
        check(*items)
        if not strangers(memories, {pid: one.ppid for pid, one in alive.items()}):
            by = makers(*items)
            kin = {pid for pid in alive if list(memories.values()).count(memories[pid]) > 1}
            alone = [pid for pid in kin if memories.get(by.get(pid)) != memories[pid]]
            assert len(alone) == len({memories[pid] for pid in kin})


def test_strangers():
    parents = {10: 0, 11: 10, 12: 10, 13: 12, 14: 12}
    assert not strangers({10: 1, 11: 2, 12: 2, 13: 2, 14: 3}, parents)
    assert not strangers({10: 1, 11: 2, 12: 3, 13: 4, 14: 4}, parents)
    assert strangers({10: 1, 11: 2, 12: 3, 13: 2, 14: 3}, parents) == (13, 11)
    assert strangers({10: 1, 11: 1, 12: 3, 13: 1, 14: 1}, parents) == (13, 10)
