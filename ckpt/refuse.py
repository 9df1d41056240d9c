# SPDX-License-Identifier: Apache-2.0
"""Refuse a target that cannot be dumped, by name and reason, while it still runs untouched."""

import os
import time
from contextlib import suppress

from ckpt import namespaces
from ckpt.errors import KernelError, NoSuchTask, NotPermitted, OptionsError, Unsupported
from ckpt.files import external
from ckpt.kernel import features, maps, procfs
from ckpt.kernel.kcmp import Kcmp, kcmp
from ckpt.kernel.maps import SmapsEntry
from ckpt.kernel.nsfs import entered
from ckpt.kernel.procfs import Stat, Status
from ckpt.kernel.vfork import is_vforking
from ckpt.kernel.way import Way, way_to
from ckpt.memory import vmas
from ckpt.memory.pagers import await_pagers
from ckpt.namespaces import ipcshm
from ckpt.options import DumpOptions

VFORK_S = 1.0
"""How long a vfork(2) may last: until the child executes."""
_PAUSE_S = 0.002
_PF_KTHREAD = 0x0020_0000
_PIDS = 1 << 22  # the kernel's PID_MAX_LIMIT
_ELF64 = b"\x7fELF\x02"
_SHARED = ((Kcmp.FILES, "table of descriptors"), (Kcmp.FS, "working directory"))
_SYS_PTRACE, _SYS_ADMIN = 1 << 19, 1 << 21


def check_pid(pid: int) -> None:
    """Raise OptionsError for what is no process, NoSuchTask for what is none any more."""
    if not 0 < pid < _PIDS:
        raise OptionsError(f"{pid} is not a pid")
    if not os.path.exists(f"/proc/{pid}"):
        raise NoSuchTask(f"pid {pid}: no such process")
    tgid = procfs.status(pid).tgid
    if tgid != pid:
        raise OptionsError(f"pid {pid} is a thread", hint=f"dump its process, {tgid}")


def check(way: Way, root: Way, options: DumpOptions) -> None:
    """Raise what is wrong with a process of the tree: mostly Unsupported.

    What is wrong with an open file its kind says.
    """
    external.check(options.external)
    pid, tid = way
    status, stat = procfs.status(tid), procfs.stat(tid)
    _check_identity(pid, status, stat)
    _check_rights(pid)
    if not features.pagemap_scan():
        raise Unsupported(
            f"pid {pid}: this kernel cannot tell which of its pages are in use (PAGEMAP_SCAN)",
            hint="Linux 6.7 or newer is needed; `ckpt check` says what else is missing",
        )
    _check_program(way)
    _check_alone(way)
    if pid == root.pid:
        _check_session(pid, stat, options)
        _check_outside(way)
    else:
        _check_namespaces(way, root)


def check_memory(ways: list[Way], options: DumpOptions) -> None:
    """Raise what is wrong with a mapping of processes that share their memory.

    Waits for a lazy restore to be through.
    """
    way, mappings = ways[0], _with_all_pages(ways, options)
    for mapping in mappings:
        vmas.check(way, mapping)
    if segments := {one.inode for one in mappings if vmas.is_sysv(vmas.status_of(one))}:
        with entered("ipc", way.tid):
            ipcshm.check(way.pid, segments)


def _check_namespaces(way: Way, root: Way) -> None:
    """Refuse a process of the tree in other namespaces than the root's."""
    its, roots = procfs.namespaces(way.tid), procfs.namespaces(root.tid)
    if own := [kind for kind, ino in its.items() if ino != roots.get(kind)]:
        raise Unsupported(
            f"pid {way.pid} is in another {own[0]} namespace than pid {root.pid}: not supported yet"
        )


def await_vfork(pid: int, sharers: list[int], deadline: float) -> bool:
    """Wait until none of the processes that have the same memory waits in a vfork(2).

    Say whether one did: then who shares it with whom is to be found out anew. Raises Unsupported
    when it takes longer than until the deadline, a time.monotonic().
    """
    waited = False
    while any(is_vforking(one) for one in sharers):
        if time.monotonic() >= deadline:
            raise Unsupported(
                f"pid {pid} has the memory of who waits for it in a vfork(2): not supported",
                hint="it is over as soon as the child executes: try again",
            )
        waited = True
        time.sleep(_PAUSE_S)
    return waited


def _check_outside(root: Way) -> None:
    """Refuse a root that shares its memory with its parent, which is not dumped."""
    parent, deadline = procfs.stat(root.tid).ppid, time.monotonic() + VFORK_S
    while parent and _have_one_memory(root, parent):
        if not await_vfork(root.pid, [parent], deadline):
            raise Unsupported(
                f"pid {root.pid} shares its memory with its parent (CLONE_VM), which is not dumped",
                hint=f"dump the parent, pid {parent}, with all its children",
            )


def _have_one_memory(root: Way, parent: int) -> bool:
    """Say whether a root has its parent's memory; of one that is out of our reach it has none."""
    with suppress(NotPermitted, NoSuchTask):
        return not kcmp(Kcmp.VM, root.tid, way_to(parent).tid)
    return False


def _with_all_pages(ways: list[Way], options: DumpOptions) -> list[SmapsEntry]:
    """Return the mappings; those of a lazy restore that is not through yet, when it is."""
    mappings = maps.smaps(ways[0].tid)
    if any("um" in mapping.vm_flags for mapping in mappings):
        await_pagers([way.pid for way in ways], options.log)
        mappings = maps.smaps(ways[0].tid)
    return mappings


def _check_identity(pid: int, status: Status, stat: Stat) -> None:
    if status.kthread or stat.flags & _PF_KTHREAD:
        raise Unsupported(f"pid {pid} ({stat.comm}) is a kernel thread")
    if stat.state in "ZX":
        raise Unsupported(
            f"pid {pid} ({stat.comm}) is a zombie: there is nothing left to dump",
            hint=f"its parent, {stat.ppid}, has not waited for it",
        )
    if pid in _ancestors():
        raise OptionsError(
            f"pid {pid} is ckpt itself or an ancestor of it: stopping it would stop us",
            hint="run ckpt from somewhere else",
        )
    if status.tracer_pid not in (0, os.getpid()):
        raise NotPermitted(
            1,
            f"pid {pid} is traced by pid {status.tracer_pid}",
            hint="a task has one tracer: detach the debugger first",
        )


def _ancestors() -> set[int]:
    found, pid = set(), os.getpid()
    while pid:
        found.add(pid)
        pid = procfs.stat(pid).ppid
    return found


def _check_rights(pid: int) -> None:
    capabilities = procfs.status("self").cap_eff
    if not capabilities & _SYS_PTRACE or not capabilities & _SYS_ADMIN:
        raise NotPermitted(
            1, f"dump of pid {pid}", hint="run as root: it takes CAP_SYS_PTRACE and CAP_SYS_ADMIN"
        )


def _check_program(way: Way) -> None:
    pid, tid = way
    try:
        exe = os.open(f"/proc/{tid}/exe", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NoSuchTask(f"pid {pid}: it has ended") from None
    except OSError as error:
        raise KernelError(error.errno or 0, f"opening /proc/{tid}/exe") from error
    try:
        head = os.pread(exe, len(_ELF64), 0)
    finally:
        os.close(exe)
    if head != _ELF64:
        raise Unsupported(
            f"pid {pid} runs a 32-bit program: not supported",
            hint="only 64-bit programs can be dumped",
        )


def _check_alone(way: Way) -> None:
    pid, tid = way
    _check_threads(way)
    ours, its = procfs.namespaces("self"), procfs.namespaces(tid)
    own = {kind.name for kind in namespaces.KINDS}
    for kind in its:
        if its[kind] != ours.get(kind) and kind not in own:
            raise Unsupported(
                f"pid {pid} is in another {kind} namespace: not supported yet",
                hint=f"run ckpt inside it: nsenter --target {tid} --{kind}",
            )


def _check_threads(way: Way) -> None:
    """Refuse what a thread may have of its own, and records have of the process."""
    its = procfs.namespaces(way.tid)
    for tid in procfs.threads(way.pid):
        with suppress(NoSuchTask):  # a thread may end at any time
            own = [kind for kind, ino in procfs.namespaces(tid).items() if ino != its.get(kind)]
            own += [word for kind, word in _SHARED if kcmp(kind, way.tid, tid)]
            if own and tid != way.tid and not procfs.is_ending(tid):
                raise Unsupported(
                    f"thread {tid} of pid {way.pid} has its own {own[0]}: not supported",
                    hint="all threads have to share their namespaces, descriptors and directories",
                )


def _check_session(pid: int, stat: Stat, options: DumpOptions) -> None:
    """A session that goes on without the target cannot be made again around it."""
    if stat.session != pid and not options.shell_job:
        raise Unsupported(
            f"pid {pid} is in session {stat.session}, whose leader is not dumped with it",
            hint="--shell-job leaves it to the session that restore is called from",
        )
