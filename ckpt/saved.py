# SPDX-License-Identifier: Apache-2.0
"""The image of one process as a restore needs it: read, checked, its files made."""

import os
from contextlib import suppress
from typing import NamedTuple

from ckpt import namespaces
from ckpt.errors import ImageError, KernelError, Unsupported
from ckpt.files import external
from ckpt.files.kind import Restore
from ckpt.files.mapped import open_mapped
from ckpt.files.table import FileTable
from ckpt.image import pb
from ckpt.image.directory import ImageDir
from ckpt.kernel.arch import NR
from ckpt.kernel.inotify import Watch
from ckpt.kernel.remote import Batch
from ckpt.memory import shmem, vmas
from ckpt.memory.shmem import SharedObject
from ckpt.memory.vmas import FILE_BACKED
from ckpt.options import RestoreOptions
from ckpt.task import regs, signals


class Saved(NamedTuple):
    """The records of a process."""

    pid: int
    tids: list[int]
    tree: pb.pstree_entry
    cores: dict[int, pb.core_entry]
    mm: pb.mm_entry
    vmas: list[pb.vma_entry]
    fs: pb.fs_entry
    fdinfo: list[pb.fdinfo_entry]
    ipc_id: int
    own_namespaces: dict[str, int]

    @property
    def leader(self) -> pb.core_entry:
        """The record of the first thread, which has what all share."""
        return self.cores[self.pid]

    def sigmask(self, tid: int) -> int:
        """Return the blocked signals of a thread."""
        core = self.cores[tid]
        return core.tc.blk_sigset if tid == self.pid else core.thread_core.blk_sigset

    def first_touched(self) -> list[int]:
        """Return what is touched first: stacks, code, and the arguments that ps(1) shows.

        Those cannot wait: /proc and ptrace(2) read no page that is still to come (EIO).
        """
        found = [self.mm.mm_arg_start, self.mm.mm_env_start]
        for core in self.cores.values():
            general = regs.registers(core)
            found += [general.sp, general.ip, general.fs_base]
        return found

    @property
    def kill_all(self) -> int:
        """Return whom kill(2) kills with all its children: the group that it leads, or it alone."""
        return -self.pid if self.pid in (self.tree.sid, self.tree.pgid) else self.pid

    def pending(self) -> int:
        """Return the signals that will be pending for the process or a thread, as a mask."""
        queues = [self.leader.tc.signals_s]
        queues += [core.thread_core.signals_p for core in self.cores.values()]
        return signals.mask(queues)


def read(image: ImageDir) -> Saved:
    """Read and check the records of the one process of an image."""
    trees = [tree for tree, _ in image.records("pstree")]
    if len(trees) != 1:
        raise ImageError(f"pstree.img: {len(trees)} processes; trees are not restored yet")
    tree = trees[0]
    pid, tids = tree.pid, list(tree.threads)
    if pid not in tids or not all(0 < tid < 1 << 22 for tid in tids):
        raise ImageError(f"pstree.img: pid {pid} with threads {tids[:8]}")
    cores = {tid: image.read("core", tid) for tid in tids}
    for tid, core in cores.items():
        _check_core(core, tid, leader=tid == pid)
    mm = image.read("mm", pid)
    ids = image.read("ids", pid)
    fdinfo = [entry for entry, _ in image.records("fdinfo", ids.files_id)]
    mappings = vmas.checked(mm.vmas or (vma for vma, _ in image.records("vmas", pid)))
    own, fs = _own_namespaces(image, ids, pid), image.read("fs", pid)
    return Saved(pid, tids, tree, cores, mm, mappings, fs, fdinfo, ids.ipc_ns_id, own)


def _own_namespaces(image: ImageDir, ids: pb.task_kobj_ids_entry, pid: int) -> dict[str, int]:
    """Return the ids of those that are not the dumper's, which are named in the inventory.

    For the dumper's own those of the restorer stand in.
    """
    of_dumper, known = image.read("inventory").root_ids, {kind.name for kind in namespaces.KINDS}
    own: dict[str, int] = {}
    for field, ns_id in ids.ListFields():
        kind, is_namespace, _ = field.name.partition("_ns_id")
        if is_namespace and ns_id != getattr(of_dumper, field.name):
            if kind not in known:
                raise Unsupported(f"pid {pid} had its own {kind} namespace: not restored yet")
            own[kind] = ns_id
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
    if not image.exists("memfd"):
        return {}
    from ckpt.memory import lateness  # an eager restore starts sooner without it

    memfds = [entry for entry, _ in image.records("memfd")]
    opened = [entry.id for entry in saved.fdinfo]
    opened += [saved.mm.exe_file_id, saved.fs.cwd_id, saved.fs.root_id]
    return lateness.late_objects(memfds, entries, opened, saved.vmas)


class Files:
    """Every file that a process of the image needs, as descriptors of ours that it inherits."""

    def __init__(self, image: ImageDir, saved: Saved, options: RestoreOptions) -> None:
        external.check(options.external)
        external.check_inherited(options)
        entries = {entry.id: entry for entry, _ in image.records("files")}
        late = _late_objects(image, saved, entries) if options.lazy_pages else {}
        self.contents = Contents(image, late)
        self._make = Restore(image, options, entries, self.contents)
        self.table = FileTable(saved.fdinfo, self._make)
        self._mapped: dict[tuple[int, int], int] = {}
        self._paths: list[int] = []
        self._closed = False
        try:
            self.table.create()
            self.exe = self._path(saved.mm.exe_file_id, os.O_RDONLY)
            self.cwd = self._path(saved.fs.cwd_id, os.O_PATH)
            self.root = self._path(saved.fs.root_id, os.O_PATH)
            for entry in saved.vmas:
                self.mapped(entry)
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

    def _path(self, file_id: int, flags: int) -> int:
        fd = self.table.raise_fd(open_mapped(file_id, flags, self._make))
        self._paths.append(fd)
        return fd

    def mapped(self, entry: pb.vma_entry) -> int:
        """Return the descriptor to map; -1 for anonymous memory."""
        if not entry.status & FILE_BACKED:
            return -1
        key = (entry.shmid, entry.fdflags)
        if key not in self._mapped:
            self._mapped[key] = self._path(entry.shmid, entry.fdflags)
        return self._mapped[key]

    def restore_fs(self, fs: pb.fs_entry, batch: Batch) -> None:
        """Add the calls that set root, working directory and umask."""
        if self._make.entry(fs.root_id).reg.name != "/":
            batch.call(NR.fchdir, self.root, must=True)
            batch.call(NR.chroot, batch.data(b".\0"), must=True)
        batch.call(NR.fchdir, self.cwd, must=True)
        batch.call(NR.umask, fs.umask, must=True)

    def close(self, *, ok: bool) -> None:
        """Close our copies; with ok, ghosts and links have served their purpose."""
        if self._closed:
            return
        self._closed = True
        self._make.close(ok=ok)
        self.contents.close()
        for fd in self._paths:
            os.close(fd)
        self.table.close()
