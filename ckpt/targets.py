# SPDX-License-Identifier: Apache-2.0
"""The processes of a dump: the root, and its descendants as they come and go.

They are taken in while they run. Who has ended by the freeze is left out; who was only born then is
taken in while all stand still, which takes longer; who has ended, but was not waited for, is a
record of its own.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from typing import Self, TypeVar

from ckpt.engine import Elsewhere, Engine, Stop, engine
from ckpt.errors import CkptError, NoSuchTask, TargetDied, Unsupported
from ckpt.files.opened import OpenFiles
from ckpt.freeze import Frozen, FrozenProcess
from ckpt.guard import Guard
from ckpt.infect import Questions
from ckpt.interrupt import uninterrupted
from ckpt.kernel import procfs
from ckpt.kernel.glance import Glance, Seen
from ckpt.kernel.kcmp import Kcmp, kcmp
from ckpt.kernel.pidfd import pidfd_of
from ckpt.kernel.way import Way, is_over, way_to
from ckpt.memory.layout import Range
from ckpt.options import DumpOptions
from ckpt.pstree import strangers
from ckpt.refuse import VFORK_S, await_vfork, check, check_memory
from ckpt.sandbox import Sandbox
from ckpt.snapshot import Again, Snapshot, TaskSnapshot
from ckpt.task.restart import Wait

T = TypeVar("T")

SHARED = (Kcmp.FILES, Kcmp.FS, Kcmp.VM, Kcmp.SIGHAND)
"""What processes may share besides open files and mapped objects (clone(2))."""
_ROUNDS = 4


class Target:
    """A process of the tree. What is begun with it ends with the `with` block of the targets."""

    memory: Engine
    questions: Questions
    snapshot: TaskSnapshot

    def __init__(self, way: Way, parent: "Target | None") -> None:
        self.way = way
        self.pid, self.tid = way
        self.generation: int = parent.generation + 1 if parent else 0
        self.parent = parent.pid if parent else 0
        self.held = ExitStack()
        self.pidfd = pidfd_of(way)
        self.held.callback(os.close, self.pidfd)
        self.owners = dict.fromkeys(SHARED, self.pid)
        """Whose descriptors, memory and so on it has: its own, or those of who shares them."""
        self.reserved: list[Range] = []
        """Where segments of ours are to be in its memory; one list for all who share that."""
        self.sandbox = Sandbox(way)

    @property
    def memory_of(self) -> int:
        """Return whose memory it has: its own pid, or that of who has it saved."""
        return self.owners[Kcmp.VM]

    def begin(self, tree: Snapshot, guard: Guard) -> None:
        """Have it guarded, and take note of what is taken of it."""
        ward = self.held.enter_context(guard.ward(self.pid))
        self.snapshot = TaskSnapshot(self.way, self.pidfd, ward, self.sandbox, tree)
        self.snapshot.memory_of = self.memory_of
        tree.tasks[self.pid] = self.snapshot
        self.held.callback(tree.tasks.pop, self.pid)

    def look_ahead(self, glance: Glance) -> None:
        """Take what will most likely be the same in the freeze, and open what will be read."""
        with uninterrupted():  # or their segment would stay
            questions = Questions(self.way, self.snapshot.guard, self.sandbox, self.reserved)
            self.questions = self.held.enter_context(questions)
        self.questions.look_ahead(glance)
        self.memory.look_ahead(glance)
        self.snapshot.links.look_ahead(glance)


class _Owners:
    """Processes of which no two share something, in kcmp(2)'s order: so few have to be asked.

    Of memory that order holds only as long as none of them executes another program.
    """

    def __init__(self, kind: Kcmp) -> None:
        self._kind, self._ways = kind, list[Way]()

    def of(self, way: Way) -> int:
        """Return who is known to share it with a process; itself if nobody, which is known then."""
        first, end = 0, len(self._ways)
        while first < end:
            middle = (first + end) // 2
            order = kcmp(self._kind, self._ways[middle].tid, way.tid)
            if not order:
                return self._ways[middle].pid
            first, end = (middle + 1, end) if order < 0 else (first, middle)
        self._ways.insert(first, way)
        return way.pid

    def leave_out(self, way: Way, heir: Way | None) -> None:
        """Forget a process; the heir, if any, has shared it and stands for it from now on."""
        if way in self._ways:
            at = self._ways.index(way)
            self._ways[at : at + 1] = [heir] if heir else []


class Targets:
    """All processes of the tree, parents first; a context manager that lets go of them."""

    def __init__(self, options: DumpOptions, opened: OpenFiles) -> None:
        self._options, self._opened, self.root = options, opened, options.pid
        self._all: dict[int, Target] = {}
        self.way = way_to(options.pid)
        """To the root."""
        self._held = ExitStack()
        self._guard: Guard
        self._tree: Snapshot
        self.zombies: dict[int, procfs.Stat] = {}
        self.taken = False
        """Whether all has been taken of them, and is on disk."""
        self._owners = {kind: _Owners(kind) for kind in (Kcmp.FILES, Kcmp.FS, Kcmp.VM)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._held as all_held:
            for target in self:
                all_held.push(target.held)

    def __iter__(self) -> Iterator[Target]:
        return iter([*self._all.values()])

    # --- while they run

    def find(self) -> None:
        """Take in the root and its descendants; refuse what cannot be dumped."""
        self._take_in(self.way, None)
        while self.together(self._find_new):
            pass
        # First: a mapping has no number to be named by.
        self.together(lambda: self._opened.check(self._options))
        self.each(self._check_memory)
        self._check_makers({one.pid: one.parent for one in self})

    def _check_makers(self, parents: dict[int, int]) -> None:
        """Refuse who has a memory that nobody could give it again."""
        if found := strangers({one.pid: one.memory_of for one in self}, parents):
            raise Unsupported(
                f"pid {found[0]} shares its memory with pid {found[1]}, which is neither its "
                "parent nor a child of the same one: not supported yet"
            )

    def _check_memory(self, target: Target) -> None:
        if target.memory_of == target.pid:
            check_memory([one.way for one in self if one.memory_of == target.pid], self._options)

    def _find_new(self) -> list[Target]:
        """Take in the children that are not known yet."""
        found = [
            self._try(pid, parent)
            for parent in self
            for pid in self._children(parent.pid)
            if pid not in self._all
        ]
        return [target for target in found if target]

    def catch_up(self) -> None:
        """Take in who was born while memory was saved, and save theirs: it is less each time."""
        for _ in range(_ROUNDS):
            known = set(self._all)
            self.together(self._find_new)
            new = [target for target in self if target.pid not in known]
            self.each(self._check_memory, new)
            self._begin(new)
            self.each(lambda target: target.memory.prepare(), new)
            if not new:
                return

    def _children(self, pid: int) -> list[int]:
        try:
            return procfs.children(pid)
        except NoSuchTask:
            return []

    def _try(self, pid: int, parent: Target) -> Target | None:
        """Take in a child, unless it has ended. Raises Again if its first thread just has."""
        way = way_to(pid)
        try:
            return None if procfs.is_ending(way.tid) else self._take_in(way, parent)
        except CkptError as error:
            if is_over(pid):
                return None
            if way_to(pid) != way:
                raise Again(str(error)) from error
            raise

    def _take_in(self, way: Way, parent: Target | None, *, stopped: bool = False) -> Target:
        target, pid = Target(way, parent), way.pid
        try:
            check(way, self.way, self._options)
            if not stopped:
                target.sandbox.look()
            target.owners = self._find_owners(way)
            if target.memory_of != pid:
                target.reserved = self._all[target.memory_of].reserved
            if target.owners[Kcmp.FILES] == pid:
                self._opened.add(way, target.pidfd)
        except BaseException:
            for owners in self._owners.values():
                owners.leave_out(way, None)
            target.held.close()
            raise
        self._all[way.pid] = target
        return target

    def _find_owners(self, way: Way) -> dict[Kcmp, int]:
        """Return whose what a process has; who is about to execute a program has it done first."""
        pid, deadline = way.pid, time.monotonic() + VFORK_S
        while True:
            found = {kind: owners.of(way) for kind, owners in self._owners.items()}
            memory = found[Kcmp.VM]
            with_it = [one for one in self if one.memory_of == memory != pid]
            if not await_vfork(pid, [one.pid for one in with_it], deadline):
                break
        # Signal handlers are shared by some of those only who share their memory.
        handlers = (one for one in with_it if not kcmp(Kcmp.SIGHAND, one.tid, way.tid))
        first = next(handlers, None)
        return found | {Kcmp.SIGHAND: first.owners[Kcmp.SIGHAND] if first else pid}

    def see_who_shares(self) -> None:
        """See that it is known who shares memory with whom; raises Again.

        Who executes another program gets other memory, and has then another place in kcmp's order;
        from here on whoever does so is found out (`infect`).
        """
        ordered = _Owners(Kcmp.VM)
        for target in self:
            pid, owner = target.pid, ordered.of(target.way)
            if owner != target.memory_of and not is_over(pid):
                raise Again(f"pid {pid} has executed another program, or shares memory by now")
        self._owners[Kcmp.VM] = ordered

    def begin(self, tree: Snapshot) -> None:
        """Begin to save their memory."""
        self._tree = tree
        self._guard = self._held.enter_context(Guard())
        self._begin(self)

    def _begin(self, some: Iterable[Target]) -> None:
        self.each(lambda target: target.begin(self._tree, self._guard), some)
        self.each(self._start, some)

    def _start(self, target: Target) -> None:
        name, log = self._options.engine, self._options.log
        with uninterrupted():  # or a segment would stay
            if target.memory_of == target.pid:
                target.memory = target.held.enter_context(engine(target.snapshot, name, log))
            else:
                target.memory = Elsewhere()

    def each(self, do: Callable[[Target], None], some: Iterable[Target] | None = None) -> None:
        """Do it with all, or some; a child that ends meanwhile is left out."""
        for target in self if some is None else some:
            if self._all.get(target.pid) is not target:
                continue  # left out already
            try:
                do(target)
            except (NoSuchTask, TargetDied, OSError):
                if target.pid == self.root or not is_over(target.pid):
                    raise
                self._leave_out(target.pid)

    def together(self, do: Callable[[], T]) -> T:
        """Do what concerns all at once; and again as long as children end meanwhile."""
        while True:
            try:
                return do()
            except (NoSuchTask, OSError):
                ended = self.ended()
                if not ended:
                    raise
                for pid in ended:
                    self._leave_out(pid)

    def ended(self) -> list[int]:
        """Return the descendants that have ended since they were taken in, if the root has not.

        Once all is taken that is no matter any more.
        """
        if self.taken:
            return []
        ended = [one.pid for one in self if is_over(one.pid)]
        return [] if self.root in ended else ended

    def is_astray(self) -> bool:
        """Say whether a process is no more reached as it was, since a thread of it has ended."""
        return any(way_to(way.pid) != way for way in (self.way, *(one.way for one in self)))

    def _leave_out(self, pid: int) -> None:
        """Forget a process; what others have shared with it is one of theirs from now on.

        But not of those that end as well: they have nothing any more, and so all the same.
        """
        target = self._all.pop(pid)
        self._opened.leave_out(target.tid)
        target.held.close()
        with_it = [one for one in self if pid in one.owners.values()]
        with_it = [one for one in with_it if not is_over(one.pid)]
        for kind in SHARED:
            heirs = [other for other in with_it if other.owners[kind] == pid]
            for other in heirs:
                other.owners[kind] = heirs[0].pid
            if kind in self._owners:
                self._owners[kind].leave_out(target.way, heirs[0].way if heirs else None)
            if heirs and kind is Kcmp.FILES:
                self._opened.add(heirs[0].way, heirs[0].pidfd)
            elif heirs and kind is Kcmp.VM and hasattr(target, "memory"):
                # What was saved of it was saved by way of who is no more.
                raise Again(f"pid {pid} has ended, whose memory pid {heirs[0].pid} shares")

    def generations(self) -> list[list[int]]:
        """Return the descendants' pids, generation by generation."""
        found: dict[int, list[int]] = {}
        for target in self:
            found.setdefault(target.generation, []).append(target.pid)
        return [pids for generation, pids in sorted(found.items()) if generation]

    @property
    def waits(self) -> dict[int, Wait]:
        """What our earlier stops have interrupted."""
        return {tid: wait for target in self for tid, wait in target.snapshot.waits.items()}

    # --- in the freeze

    def settle(self, frozen: Frozen, seen: Seen, glance: Glance) -> Seen:
        """Leave out who has ended, take in who was born since; returns what is seen of all."""
        for pid in [target.pid for target in self if target.pid not in frozen.processes]:
            self._leave_out(pid)
        parents = _parents(frozen, seen)
        while born := parents.keys() - frozen.processes.keys() - self.zombies.keys():
            frozen.add(born)
            for pid in sorted(born):
                if pid in frozen.processes:
                    self._take_in_late(pid, self._all[parents[pid]], glance)
                else:
                    self._bury(pid)
            seen = glance.look()
            parents = _parents(frozen, seen)
        for target in self:
            if not frozen.processes[target.pid].is_led_by(target.tid):
                raise Again(f"thread {target.tid} of pid {target.pid} has ended")
        self._check_settled(parents)
        return seen

    def _check_settled(self, parents: dict[int, int]) -> None:
        """See that all are still in the tree, and share what they did; raises Again."""
        for target in self:
            pid = target.pid
            if pid != self.root and pid not in parents:
                raise Again(
                    f"pid {pid} has left the tree: its parent has ended",
                    hint="try again when it has ended, too, or end it",
                )
            for kind, owner in target.owners.items():
                its = self._all.get(owner)
                if not its or (its is not target and kcmp(kind, its.tid, target.tid)):
                    raise Again(f"pid {pid} has taken leave of what it shared with pid {owner}")
        if any(one.memory_of != one.pid for one in self):
            self._check_makers(parents)

    def _bury(self, pid: int) -> None:
        """Take note of a child that has ended, but not of one that is gone altogether."""
        with suppress(NoSuchTask):
            stat = procfs.stat(pid)
            if stat.state not in "ZX":  # but it could not be stopped
                raise Again(f"pid {pid} is just ending")
            self.zombies[pid] = stat

    def _take_in_late(self, pid: int, parent: Target, glance: Glance) -> None:
        target = self._take_in(way_to(pid), parent, stopped=True)
        self._check_memory(target)
        target.begin(self._tree, self._guard)
        target.memory = Elsewhere() if target.memory_of != pid else Stop(target.snapshot)
        target.look_ahead(glance)
        target.snapshot.links.save(self._tree.files)

    def frozen(self, frozen: Frozen) -> list[tuple[Target, FrozenProcess]]:
        """Return all with what they are as stopped processes."""
        return [(target, frozen.processes[target.pid]) for target in self]


def _parents(frozen: Frozen, seen: Seen) -> dict[int, int]:
    """Return the children of all processes that are stopped, and whose each is."""
    return {
        int(child): pid
        for pid, process in frozen.processes.items()
        for one in process.threads
        for child in seen.read(pid, f"task/{one.tid}/children").split()
    }
