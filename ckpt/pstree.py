# SPDX-License-Identifier: Apache-2.0
"""The process tree of an image as plain data, and the steps that make one like it.

A process has its session from the one that forks it, and can only leave it by leading a new one. So
who forks whom, and when, is a plan: a parent that leads a session first forks the children that are
still in its old one; where a session's leader has ended, a stand-in leads it until all are in it;
a child whose session began with a sibling is forked by that sibling, for their parent
(CLONE_PARENT); and one whose session began further below comes to its parent as an orphan, as it
once did. Who shares its memory with its parent is forked by that, as all are; with a sibling alone,
by that sibling. Nothing here knows how any of it is done.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from enum import Enum, auto
from typing import NamedTuple

from ckpt.errors import ImageError, Unsupported

PIDS = range(1, 1 << 22)
_MOST_TASKS, _DEEPEST = 1 << 16, 300


class State(Enum):
    """What becomes of a task: it runs, it has ended and is to be waited for, it goes unseen."""

    ALIVE = auto()
    DEAD = auto()
    STAND_IN = auto()


class Item:
    """A process. ppid is 0 for the root; threads are tids, the first one's included.

    memory says which it has: those of the same number share it, but for 0. makes are those whom it
    forks: its children, and siblings that have its memory, but not those that have a sibling's.
    """

    __slots__ = ("children", "makes", "memory", "pgid", "pid", "ppid", "sid", "state", "threads")

    def __init__(
        self,
        pid: int,
        ppid: int,
        pgid: int,
        sid: int,
        threads: tuple[int, ...] = (),
        state: State = State.ALIVE,
        memory: int = 0,
    ) -> None:
        self.pid, self.ppid, self.pgid, self.sid = pid, ppid, pgid, sid
        self.threads, self.state, self.memory = threads or (pid,), state, memory
        self.children: list[Item] = []
        self.makes: list[Item] = []

    @property
    def leads_session(self) -> bool:
        """Say whether it has called setsid(2)."""
        return self.sid == self.pid


class Do(Enum):
    """What a step does: `by` is the pid that forks, or the group that is joined.

    ORPHAN is a fork by a child of `by`, which ends.
    """

    FORK = auto()
    ORPHAN = auto()
    SETSID = auto()
    SETPGID = auto()
    END = auto()


class Step(NamedTuple):
    """One step of making a tree."""

    do: Do
    item: Item
    by: int = 0


def tree(items: Iterable[Item]) -> list[Item]:
    """Return the items with their children, the root first and parents before children.

    Raises ImageError unless they are one tree, of pids and tids that can be and that are unique.
    """
    by_pid: dict[int, Item] = {}
    seen: set[int] = set()
    for item in items:
        if len(by_pid) == _MOST_TASKS:
            raise ImageError(f"pstree.img: more than {_MOST_TASKS} processes")
        _check(item, seen)
        by_pid[item.pid] = item
    roots = [item for item in by_pid.values() if not item.ppid]
    if len(roots) != 1:
        raise ImageError(f"pstree.img: {len(roots)} roots among {len(by_pid)} processes")
    for item in by_pid.values():
        if item.ppid:
            _parent(item, by_pid).children.append(item)
    found = list(_walk(roots[0], lambda item: item.children))
    if len(found) != len(by_pid):
        raise ImageError("pstree.img: processes that are not the root's descendants")
    for item in found:
        _share_out(item)
    return found


def _share_out(parent: Item) -> None:
    """Say who makes the children: the parent, but for those that have a sibling's memory."""
    together: dict[int, list[Item]] = {}
    for child in parent.children:
        if child.memory not in (0, parent.memory):
            together.setdefault(child.memory, []).append(child)
    elsewhere: set[int] = set()
    for members in together.values():
        # Who leads a session of others is there before them.
        maker = max(members, key=lambda one: sum(one.pid == other.sid for other in members))
        maker.makes += [one for one in members if one is not maker]
        elsewhere.update(one.pid for one in members if one is not maker)
    parent.makes += [child for child in parent.children if child.pid not in elsewhere]


def strangers(memories: dict[int, int], parents: dict[int, int]) -> tuple[int, int] | None:
    """Return two processes with one memory of which neither can be made by who has it; or None.

    memories and parents are by pid. Who has it can make its children, and its siblings.
    """
    first: dict[int, int] = {}
    for pid, memory in memories.items():
        parent = parents.get(pid, 0)
        if memories.get(parent) == memory:
            continue
        other = first.setdefault(memory, pid)
        if parents.get(other, 0) != parent:
            return pid, other
    return None


def _check(item: Item, seen: set[int]) -> None:
    if item.pid not in item.threads or not all(tid in PIDS for tid in item.threads):
        raise ImageError(f"pstree.img: pid {item.pid} with threads {list(item.threads[:8])}")
    if not (0 <= item.pgid < PIDS.stop and 0 <= item.sid < PIDS.stop):
        raise ImageError(f"pstree.img: pid {item.pid} in session {item.sid}, group {item.pgid}")
    if len(set(item.threads)) != len(item.threads) or not seen.isdisjoint(item.threads):
        raise ImageError(f"pstree.img: a tid of pid {item.pid} is there twice")
    seen.update(item.threads)


def _parent(item: Item, by_pid: dict[int, Item]) -> Item:
    parent = by_pid.get(item.ppid)
    if parent is None or parent.state is State.DEAD:
        raise ImageError(f"pstree.img: pid {item.pid} is a child of pid {item.ppid}, not there")
    return parent


def _walk(root: Item, below: Callable[[Item], list[Item]]) -> Iterator[Item]:
    """Yield an item and all below it, those above first."""
    waiting = [(root, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > _DEEPEST:
            raise ImageError(f"pstree.img: more than {_DEEPEST} generations")
        yield item
        waiting += [(child, depth + 1) for child in reversed(below(item))]


def plan(items: list[Item]) -> list[Step]:
    """Return the steps that make a tree, the root's own fork being the first.

    Raises Unsupported where a process is in the session of one that is not its ancestor, nor its
    sibling, and ImageError where one cannot be in its session.
    """
    return _Plan(items).steps


class _Plan:
    """A plan in the making: it goes through the tree as the forks will."""

    def __init__(self, items: list[Item]) -> None:
        self.steps: list[Step] = []
        self._known = {item.pid: item for item in items}
        root = items[0]
        self._births = _births([*_walk(root, lambda item: item.makes)])
        # What the root has from us stands for what it had from outside.
        self._groups = {0: root.pgid if root.pgid != root.pid else 0}
        self._fork(root, 0, root.sid if not root.leads_session else 0)
        for item in items * 2:  # who leads a group for others is in his own only then
            self._join_group(item)
        if lost := [one for one in items if one.pgid not in (0, self._groups[one.pid])]:
            raise Unsupported(f"pid {lost[0].pid} is in group {lost[0].pgid}: not restored yet")
        # Stand-ins first: who waits for one may be about to end himself.
        forked = [step.item for step in self.steps if step.do in (Do.FORK, Do.ORPHAN)]
        for state in (State.STAND_IN, State.DEAD):
            self.steps += [Step(Do.END, item) for item in forked if item.state is state]

    def _fork(self, item: Item, by: int, session: int, do: Do = Do.FORK) -> None:
        """Fork it into a session, and after it all its descendants."""
        self.steps.append(Step(do, item, by))
        self._groups[item.pid] = self._groups[by]
        if item.leads_session:
            for child in item.makes:
                if session and self._births[child.pid] == session:
                    self._fork(child, item.pid, session)
            self.steps.append(Step(Do.SETSID, item))
            self._groups[item.pid] = session = item.pid
        self._fork_others(item, session)

    def _fork_others(self, parent: Item, session: int) -> None:
        """Fork the children that are not there yet; those first whose session others need."""
        children = [child for child in parent.makes if child.pid not in self._groups]
        waiting = [*self._stand_ins(parent, children, session), *children]
        there = {0, session}
        while waiting:
            child = next((one for one in waiting if self._births[one.pid] in there), None)
            do = Do.FORK
            if child is None:
                child, do = self._orphan(parent, waiting), Do.ORPHAN
            waiting.remove(child)
            birth = self._births[child.pid]
            by = parent.pid if birth in (0, session) else birth
            if by != parent.pid and do is Do.FORK and self._known[by].ppid != child.ppid:
                raise Unsupported(
                    f"pid {child.pid} has the memory of pid {parent.pid}, and the session of pid "
                    f"{by}: not restored yet"
                )
            self._fork(child, by, birth or session, do)
            if child.leads_session:
                there.add(child.pid)

    def _orphan(self, parent: Item, waiting: list[Item]) -> Item:
        """Return one whose session began below its parent, further down than a child."""
        for one in waiting:
            leader = self._known.get(self._births[one.pid])
            while leader and leader.pid in self._groups and leader is not parent:
                leader = self._known.get(leader.ppid)
            if leader is parent:
                return one
        raise Unsupported(
            f"pid {waiting[0].pid} is in session {self._births[waiting[0].pid]}, which neither "
            "an ancestor of it nor a descendant of its parent leads: not restored yet"
        )

    def _stand_ins(self, parent: Item, children: list[Item], session: int) -> list[Item]:
        """Return stand-ins for the leaders of sessions that are nowhere in the tree."""
        found = []
        for birth in {self._births[child.pid]: None for child in children}:
            if birth not in (0, session) and birth not in self._known:
                one = Item(birth, parent.pid, birth, birth, state=State.STAND_IN)
                self._known[birth] = one
                self._births[birth] = 0
                found.append(one)
        return found

    def _join_group(self, item: Item) -> None:
        """Have it in its group; the group's leader first."""
        if item.pgid in (0, self._groups[item.pid]):
            return
        if item.pgid != item.pid:
            self._lead_group(item)
        self.steps.append(Step(Do.SETPGID, item, item.pgid))
        self._groups[item.pid] = item.pgid

    def _lead_group(self, member: Item) -> None:
        leader = self._known.get(member.pgid)
        if leader is None:
            pgid = member.pgid
            leader = Item(pgid, member.pid, pgid, member.sid, state=State.STAND_IN)
            self._known[pgid] = leader
            self.steps.append(Step(Do.FORK, leader, member.pid))
            self._groups[pgid] = self._groups[member.pid]
        if leader.sid != member.sid:
            raise ImageError(
                f"pstree.img: pid {leader.pid} does not lead the group of {member.pid}"
            )
        if leader.pgid == leader.pid:
            self._join_group(leader)
        elif leader.pid not in self._groups.values():  # it has left the group that it began
            self.steps.append(Step(Do.SETPGID, leader, leader.pid))
            self._groups[leader.pid] = leader.pid


def _births(items: list[Item]) -> dict[int, int]:
    """Return the session that each has to be born in; 0 where any will do.

    A leader was born in an older one that a child of its is still in: one that has not begun
    below it, and has others elsewhere.
    """
    by_pid = {item.pid: item for item in items}
    members = Counter(item.sid for item in items)
    found: dict[int, int] = {}
    below: dict[int, Counter[int]] = {}
    for item in reversed(items):
        here = below[item.pid] = Counter({item.sid: 1})
        for child in item.makes:
            here.update(below.pop(child.pid))
        found[item.pid] = item.sid
        if item.leads_session:
            sessions = {found[child.pid] for child in item.makes} - {0}
            older = [
                one
                for one in sessions
                if here[one] < members[one] and not _is_below(one, item, by_pid)
            ]
            found[item.pid] = _older(item, older)
    return found


def _is_below(pid: int, item: Item, by_pid: dict[int, Item]) -> bool:
    """Say whether it is the pid of a descendant."""
    one = by_pid.get(pid)
    while one and one is not item:
        one = by_pid.get(one.ppid)
    return one is item


def _older(item: Item, sessions: list[int]) -> int:
    if len(sessions) > 1:
        raise Unsupported(
            f"children of pid {item.pid} are in sessions {sorted(sessions)}, which began "
            "before its own: not restored yet"
        )
    return sessions[0] if sessions else 0
