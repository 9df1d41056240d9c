# SPDX-License-Identifier: Apache-2.0
"""The image of a process tree as a restore needs it: read, checked, its files made."""

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from ckpt import namespaces, pstree
from ckpt.errors import ImageError, KernelError, Unsupported
from ckpt.files import external, tty
from ckpt.files.kind import Restore
from ckpt.files.mapped import open_mapped
from ckpt.files.table import FileTable, Opened
from ckpt.image import pb
from ckpt.image.directory import ImageDir
from ckpt.kernel.arch import NR
from ckpt.kernel.inotify import Watch
from ckpt.kernel.remote import Batch
from ckpt.memory import shmem, vmas
from ckpt.memory.shmem import SharedObject
from ckpt.memory.vmas import FILE_BACKED
from ckpt.options import RestoreOptions
from ckpt.pstree import Item, State
from ckpt.task import ended, ending, regs, seccomp, signals
from ckpt.task.process import TASK_DEAD, TASK_ZOMBIE


class SavedTask(NamedTuple):
    """The records of a process that runs."""

    item: Item
    cores: dict[int, pb.core_entry]
    mm: pb.mm_entry
    vmas: list[pb.vma_entry]
    fs: pb.fs_entry
    fdinfo: list[pb.fdinfo_entry]
    ids: pb.task_kobj_ids_entry
    own_namespaces: dict[str, int]
    filters: dict[int, seccomp.Wanted]
    memory_of: int
    """Whose pagemap has its pages: its own pid, or that of who shares its memory."""

    @property
    def pid(self) -> int:
        """Its pid, which is its first thread's tid."""
        return self.item.pid

    @property
    def tids(self) -> tuple[int, ...]:
        """Its threads."""
        return self.item.threads

    @property
    def leader(self) -> pb.core_entry:
        """The record of the first thread, which has what all share."""
        return self.cores[self.pid]

    @property
    def is_led(self) -> bool:
        """Say whether the first thread lives; if not, it ends when all is done."""
        return not ended.is_ended(self.leader)

    @property
    def lives(self) -> list[int]:
        """Its threads that run."""
        return [tid for tid in self.tids if tid != self.pid or self.is_led]

    def sigmask(self, tid: int) -> int:
        """Return the blocked signals of a thread."""
        core = self.cores[tid]
        return core.tc.blk_sigset if tid == self.pid else core.thread_core.blk_sigset

    def first_touched(self) -> list[int]:
        """Return what is touched first: stacks, code, and the arguments that ps(1) shows.

        Those cannot wait: /proc and ptrace(2) read no page that is still to come (EIO).
        """
        found = [self.mm.mm_arg_start, self.mm.mm_env_start]
        for tid in self.lives:
            general = regs.registers(self.cores[tid])
            found += [general.sp, general.ip, general.fs_base]
        return found

    @property
    def kill_all(self) -> int:
        """Return whom kill(2) kills with all its children: the group that it leads, or it alone."""
        return -self.pid if self.pid in (self.item.sid, self.item.pgid) else self.pid

    def pending(self) -> int:
        """Return the signals that will be pending for the process or a thread, as a mask."""
        queues = [self.leader.tc.signals_s]
        queues += [core.thread_core.signals_p for core in self.cores.values()]
        return signals.mask(queues)


class Saved(NamedTuple):
    """The records of a tree: its items, parents before children, and what is known of each."""

    items: list[Item]
    tasks: dict[int, SavedTask]
    dead: dict[int, pb.core_entry]
    filters: pb.seccomp_entry

    @property
    def pid(self) -> int:
        """The pid of the root."""
        return self.items[0].pid

    def exit_signal(self, pid: int) -> int:
        """Return which signal tells its parent of its end; a stand-in's is SIGCHLD."""
        core = self.tasks[pid].leader if pid in self.tasks else self.dead.get(pid)
        return ending.signal_of(core.tc) if core else signal.SIGCHLD

    @property
    def memories(self) -> dict[int, list[SavedTask]]:
        """Return who has which memory, by the pid that it is saved under."""
        found: dict[int, list[SavedTask]] = {}
        for task in self.tasks.values():
            found.setdefault(task.memory_of, []).append(task)
        return found


def read(image: ImageDir) -> Saved:
    """Read and check the records of an image."""
    dead: dict[int, pb.core_entry] = {}
    items = pstree.tree(_items(image, dead))
    if items[0].state is State.DEAD:
        raise ImageError(f"core-{items[0].pid}.img: the root has ended")
    of_dumper = image.read("inventory").root_ids
    filters = image.read("seccomp") if image.exists("seccomp") else pb.seccomp_entry()
    seccomp.check(filters)
    tasks: dict[int, SavedTask] = {}
    for item in items:
        if item.state is State.ALIVE:
            tasks[item.pid] = _read_task(image, item, of_dumper, filters, tasks)
    _check_handlers(tasks.values())
    owners = {task.item.memory: pid for pid, task in tasks.items() if image.exists("pagemap", pid)}
    for pid, task in tasks.items():
        tasks[pid] = task._replace(memory_of=owners.get(task.item.memory, pid))
    return Saved(items, tasks, dead, filters)


def _items(image: ImageDir, dead: dict[int, pb.core_entry]) -> Iterator[Item]:
    """Yield the processes, and take note of those that have ended: they have no threads."""
    for tree, _ in image.records("pstree"):
        if tree.pid not in pstree.PIDS:
            raise ImageError(f"pstree.img: no process can be pid {tree.pid}")
        core, ids = image.read("core", tree.pid), (tree.pid, tree.ppid, tree.pgid, tree.sid)
        if core.tc.task_state in (TASK_DEAD, TASK_ZOMBIE):
            dead[tree.pid] = core
            yield Item(*ids, state=State.DEAD)
        else:
            memory = image.read("ids", tree.pid).vm_id
            yield Item(*ids, tuple(tree.threads), memory=memory)


def _read_task(
    image: ImageDir,
    item: Item,
    of_dumper: pb.task_kobj_ids_entry,
    filters: pb.seccomp_entry,
    others: dict[int, SavedTask],
) -> SavedTask:
    pid = item.pid
    cores = {tid: image.read("core", tid) for tid in item.threads}
    for tid, core in cores.items():
        _check_core(core, tid, leader=tid == pid)
    mm = image.read("mm", pid)
    ids = image.read("ids", pid)
    mappings = vmas.checked(mm.vmas or (vma for vma, _ in image.records("vmas", pid)))
    parent = others[item.ppid].ids if item.ppid else None
    own = _own_namespaces(ids, pid, of_dumper, parent)
    fdinfo = [entry for entry, _ in image.records("fdinfo", ids.files_id)]
    fs, wanted = image.read("fs", pid), seccomp.wanted(pid, cores, filters)
    return SavedTask(item, cores, mm, mappings, fs, fdinfo, ids, own, wanted, pid)


def _check_handlers(tasks: Iterable[SavedTask]) -> None:
    """See that signal handlers are shared only by who shares their memory, too (clone(2))."""
    seen: dict[int, SavedTask] = {}
    for task in tasks:
        other = seen.setdefault(task.ids.sighand_id, task)
        if other.ids.vm_id != task.ids.vm_id:
            raise ImageError(
                f"ids-{task.pid}.img: signal handlers of pid {other.pid}, but not its memory"
            )


def _own_namespaces(
    ids: pb.task_kobj_ids_entry,
    pid: int,
    of_dumper: pb.task_kobj_ids_entry,
    parent: pb.task_kobj_ids_entry | None,
) -> dict[str, int]:
    """Return the ids of those that are not the dumper's, which are named in the inventory.

    For the dumper's own those of the restorer stand in. All others are those of the root.
    """
    known = {kind.name for kind in namespaces.KINDS}
    own: dict[str, int] = {}
    for field, ns_id in ids.ListFields():
        kind, is_namespace, _ = field.name.partition("_ns_id")
        if not is_namespace:
            continue
        other = parent is not None and ns_id != getattr(parent, field.name)
        if ns_id != getattr(of_dumper, field.name):
            own[kind] = ns_id
            other = other or kind not in known
        if other:
            raise Unsupported(f"pid {pid} had its own {kind} namespace: not restored yet")
    return own


def _check_core(core: pb.core_entry, tid: int, *, leader: bool) -> None:
    if core.mtype != regs.MACHINE:
        name = pb.core_entry.march.Name(core.mtype)
        raise ImageError(f"core-{tid}.img: of another architecture, {name}")
    if not core.HasField("thread_core") or (leader and not core.HasField("tc")):
        raise ImageError(f"core-{tid}.img: incomplete")


_MOST_LATE = 16  # inotify instances; a user may have 128 (fs.inotify.max_user_instances)


class Contents:
    """Fills shared memory objects, and puts aside those that may be filled late."""

    def __init__(self, image: ImageDir, late: dict[int, list[pb.vma_entry]]) -> None:
        self.pages = 0
        self.late: list[tuple[SharedObject, list[pb.vma_entry]]] = []
        """The objects that are still empty, and their mappings."""
        self._image, self._may_be_late = image, late

    def __call__(self, shmid: int, fd: int) -> None:
        """Fill the object at fd, or take a copy of the descriptor."""
        mappings = self._may_be_late.get(shmid)
        there = mappings is not None and self._image.exists("pagemap-shmem", shmid)
        watch = self._watch(fd) if there else None
        if mappings is None or watch is None:
            self.pages += shmem.load(self._image, shmid, fd)
            return
        try:
            reader = shmem.open_pages(self._image, shmid, fd)
        except BaseException:
            watch.close()
            raise
        one = SharedObject(len(self.late) + 1, os.dup(fd), reader, watch)
        self.late.append((one, mappings))

    def _watch(self, fd: int) -> Watch | None:
        """Begin to watch an object; None if there are many, of what a user may have few."""
        if len(self.late) == _MOST_LATE:
            return None
        with suppress(KernelError):
            return Watch(fd)
        return None

    def close(self) -> None:
        """Let go of what was put aside."""
        while self.late:
            self.late.pop()[0].close()


def _late_objects(
    image: ImageDir, saved: Saved, entries: dict[int, pb.file_entry]
) -> dict[int, list[pb.vma_entry]]:
    """Return the objects that may come late: of a tree none, as each process has its own pager."""
    if not image.exists("memfd") or len(saved.tasks) > 1:
        return {}
    from ckpt.memory import lateness  # an eager restore starts sooner without it

    memfds = [entry for entry, _ in image.records("memfd")]
    task = saved.tasks[saved.pid]
    opened = [entry.id for entry in task.fdinfo]
    opened += [task.mm.exe_file_id, task.fs.cwd_id, task.fs.root_id]
    return lateness.late_objects(memfds, entries, opened, task.vmas)


class Files:
    """Every file that the processes of an image need, as descriptors of ours that they inherit.

    late says whether shared memory may be filled when they run.
    """

    def __init__(
        self, image: ImageDir, saved: Saved, options: RestoreOptions, *, late: bool = False
    ) -> None:
        external.check(options.external)
        external.check_inherited(options)
        entries = {entry.id: entry for entry, _ in image.records("files")}
        objects = _late_objects(image, saved, entries) if late else {}
        self.contents = Contents(image, objects)
        self._make = Restore(image, options, entries, self.contents)
        tables = {task.ids.files_id: task.fdinfo for task in saved.tasks.values()}
        self._opened = Opened(tables.values(), self._make)
        self._tables = {one: FileTable(tables[one], self._opened) for one in tables}
        self._paths: dict[tuple[int, int], int] = {}
        self.terminals: dict[int, tty.Controlling] = {}
        """The terminals that control sessions, by session."""
        self._closed = False
        try:
            self._opened.create()
            self.terminals = tty.controlling(self._make)
            for task in saved.tasks.values():
                self._open_paths(task)
        except BaseException:
            self.close(ok=False)
            self._make.abandon()
            raise

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(ok=False)
        if kind is not None:
            self._make.abandon()

    def _open_paths(self, task: SavedTask) -> None:
        self.exe(task.mm)
        self._path(task.fs.cwd_id, os.O_PATH)
        self._path(task.fs.root_id, os.O_PATH)
        for entry in task.vmas:
            self.mapped(entry)

    def _path(self, file_id: int, flags: int) -> int:
        key = file_id, flags
        if key not in self._paths:
            self._paths[key] = self._opened.raise_fd(open_mapped(file_id, flags, self._make))
        return self._paths[key]

    def table(self, task: SavedTask) -> FileTable:
        """Return the descriptor table of a task, which others may have as well."""
        return self._tables[task.ids.files_id]

    def exe(self, mm: pb.mm_entry) -> int:
        """Return the descriptor of what it executes."""
        return self._path(mm.exe_file_id, os.O_RDONLY)

    def mapped(self, entry: pb.vma_entry) -> int:
        """Return the descriptor to map; -1 for anonymous memory."""
        return self._path(entry.shmid, entry.fdflags) if entry.status & FILE_BACKED else -1

    def restore_fs(self, fs: pb.fs_entry, batch: Batch) -> None:
        """Add the calls that set root, working directory and umask."""
        if self._make.entry(fs.root_id).reg.name != "/":
            batch.call(NR.fchdir, self._path(fs.root_id, os.O_PATH), must=True)
            batch.call(NR.chroot, batch.data(b".\0"), must=True)
        batch.call(NR.fchdir, self._path(fs.cwd_id, os.O_PATH), must=True)
        batch.call(NR.umask, fs.umask, must=True)

    def close(self, *, ok: bool) -> None:
        """Close our copies; with ok, ghosts and links have served their purpose."""
        if self._closed:
            return
        self._closed = True
        self._make.close(ok=ok)
        self.contents.close()
        for fd in self._paths.values():
            os.close(fd)
        self._opened.close()
