# SPDX-License-Identifier: Apache-2.0
"""What /proc says about a task: one function per file, one named tuple per record.

`x(pid)` reads and parses, `parse_x(text)` only parses. A pid is a number or "self"; wherever the
kernel keeps the value per thread, a tid is as good as a pid, since /proc/TID exists though it is
not listed. Mappings, descriptors, locks and mounts have modules of their own beside this one.

Sizes are bytes and paths text (undecodable bytes as surrogates, `os.fsdecode`). Every function
raises NoSuchTask when the task is gone (or its memory, for a zombie's auxv), NotPermitted when
the kernel refuses, and KernelError when the file is missing though the task is there.

These run while a target is frozen, hence whole-file reads and bytes; pathlib costs start-up time.
Formats: proc(5) and the pages it leads to (proc_pid_stat(5), ...); fs/proc/array.c where named.
"""

import errno
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Literal, NamedTuple

from ckpt.errors import CkptError, KernelError, NoSuchTask, NotPermitted

Pid = int | Literal["self"]
Read = Callable[[int, str], bytes]
"""What `read` does, or `glance.Seen.read`."""

RLIM_INFINITY = 2**64 - 1
"""No limit, as getrlimit(2) returns it."""

_PF_EXITING = 4

INVALID_UID = 2**32 - 1
"""The login uid of a task that no login set."""


def read(pid: Pid, name: str) -> bytes:
    """All of /proc/PID/NAME. One moment's view only if the task is stopped."""
    return read_path(f"/proc/{pid}/{name}")


def read_path(path: str) -> bytes:
    """All of a file below /proc; a third faster than a file object would be."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _failure(error, "open", path) from error
    parts = []
    try:
        while part := os.read(fd, 65536):
            parts.append(part)
    except OSError as error:
        raise _failure(error, "read", path) from error
    finally:
        os.close(fd)
    return b"".join(parts)


def readlink(pid: Pid, name: str) -> str:
    """Where the link /proc/PID/NAME (exe, cwd, root, fd/N, ns/KIND) says it leads."""
    path = f"/proc/{pid}/{name}"
    try:
        return os.readlink(path)
    except OSError as error:
        raise _failure(error, "readlink", path) from error


def _listdir(pid: Pid, name: str) -> list[str]:
    path = f"/proc/{pid}/{name}"
    try:
        return os.listdir(path)
    except OSError as error:
        raise _failure(error, "readdir", path) from error


def _failure(error: OSError, doing: str, path: str) -> CkptError:
    """The error to raise: a file whose folder is gone too went with its task."""
    number = error.errno or errno.EIO
    gone = number == errno.ENOENT and not os.path.exists(os.path.dirname(path))
    if gone or number == errno.ESRCH:
        return NoSuchTask(f"{doing} {path}: no such task")
    if number in (errno.EACCES, errno.EPERM):
        return NotPermitted(number, f"{doing} {path}")
    return KernelError(number, f"{doing} {path}")


# --- stat


class Stat(NamedTuple):
    """/proc/PID/stat: names and units as in proc_pid_stat(5).

    `starttime` is in clock ticks since boot and, with the pid, names a process for good. The
    addresses and `exit_code` are 0 without the right to trace the task.
    """

    pid: int
    comm: str
    state: str
    ppid: int
    pgrp: int
    session: int
    tty_nr: int
    tpgid: int
    flags: int
    nice: int
    num_threads: int
    starttime: int
    vsize: int
    start_code: int
    end_code: int
    start_stack: int
    processor: int
    rt_priority: int
    policy: int
    start_data: int
    end_data: int
    start_brk: int
    arg_start: int
    arg_end: int
    env_start: int
    env_end: int
    exit_signal: int
    exit_code: int


# Field numbers of proc_pid_stat(5).
_STAT_FIELDS = {
    "ppid": 4,
    "pgrp": 5,
    "session": 6,
    "tty_nr": 7,
    "tpgid": 8,
    "flags": 9,
    "nice": 19,
    "num_threads": 20,
    "starttime": 22,
    "vsize": 23,
    "start_code": 26,
    "end_code": 27,
    "start_stack": 28,
    "exit_signal": 38,
    "processor": 39,
    "rt_priority": 40,
    "policy": 41,
    "start_data": 45,
    "end_data": 46,
    "start_brk": 47,
    "arg_start": 48,
    "arg_end": 49,
    "env_start": 50,
    "env_end": 51,
    "exit_code": 52,
}


def stat(pid: Pid, tid: int | None = None) -> Stat:
    """The `stat` of a process, or of its thread `tid`."""
    return parse_stat(read(pid, _of(tid, "stat")))


def parse_stat(text: bytes) -> Stat:
    """Parse /proc/PID/stat. `comm` is raw there and may hold spaces, newlines and parentheses."""
    opening, closing = text.index(b"("), text.rindex(b")")
    rest = text[closing + 2 :].split()
    return Stat(
        pid=int(text[:opening]),
        comm=os.fsdecode(text[opening + 1 : closing]),
        state=rest[0].decode(),
        **{name: int(rest[number - 3]) for name, number in _STAT_FIELDS.items()},
    )


def is_ending(pid: Pid) -> bool:
    """Whether a task has ended, or has begun to: then its memory is going already."""
    try:
        found = stat(pid)
    except NoSuchTask:
        return True
    return found.state in "ZX" or bool(found.flags & _PF_EXITING)


def is_zombie(pid: Pid) -> bool:
    """Whether a task has ended: it, or what is left of it to be waited for."""
    try:
        return stat(pid).state in "ZX"
    except NoSuchTask:
        return True


def _of(tid: int | None, name: str) -> str:
    return name if tid is None else f"task/{tid}/{name}"


# --- status


class Status(NamedTuple):
    """/proc/PID/status: names as in proc_pid_status(5), sizes in bytes, sets as bit masks.

    What a kernel, or a task without memory, does not show is 0 or empty. `uids` and `gids` are
    real, effective, saved and file system; `ns_*` go from our pid namespace to the innermost;
    `sigq` is (queued, limit). `kthread` is shown since Linux 6.8; before, ask `Stat.flags`.
    `thread_features` (shstk, wrss) are x86 shadow stacks, since Linux 6.6.
    """

    name: str
    state: str
    uids: tuple[int, int, int, int]
    gids: tuple[int, int, int, int]
    groups: tuple[int, ...]
    ns_tgids: tuple[int, ...]
    ns_pids: tuple[int, ...]
    ns_pgids: tuple[int, ...]
    ns_sids: tuple[int, ...]
    sigq: tuple[int, int]
    thread_features: tuple[str, ...]
    umask: int
    tgid: int
    ngid: int
    pid: int
    ppid: int
    tracer_pid: int
    fd_size: int
    kthread: int
    vm_peak: int
    vm_size: int
    vm_lck: int
    vm_pin: int
    vm_hwm: int
    vm_rss: int
    rss_anon: int
    rss_file: int
    rss_shmem: int
    vm_data: int
    vm_stk: int
    vm_exe: int
    vm_lib: int
    vm_pte: int
    vm_swap: int
    hugetlb_pages: int
    core_dumping: int
    thp_enabled: int
    threads: int
    sig_pnd: int
    shd_pnd: int
    sig_blk: int
    sig_ign: int
    sig_cgt: int
    cap_inh: int
    cap_prm: int
    cap_eff: int
    cap_bnd: int
    cap_amb: int
    no_new_privs: int
    seccomp: int
    seccomp_filters: int
    cpus_allowed: int
    mems_allowed: int


_STATUS_LINE = re.compile(rb"(\w+):\t([^\n]*)\n")
_STATUS_DECIMAL = {
    "tgid": b"Tgid",
    "ngid": b"Ngid",
    "pid": b"Pid",
    "ppid": b"PPid",
    "tracer_pid": b"TracerPid",
    "fd_size": b"FDSize",
    "kthread": b"Kthread",
    "core_dumping": b"CoreDumping",
    "thp_enabled": b"THP_enabled",
    "threads": b"Threads",
    "no_new_privs": b"NoNewPrivs",
    "seccomp": b"Seccomp",
    "seccomp_filters": b"Seccomp_filters",
}
_STATUS_KB = {
    "vm_peak": b"VmPeak",
    "vm_size": b"VmSize",
    "vm_lck": b"VmLck",
    "vm_pin": b"VmPin",
    "vm_hwm": b"VmHWM",
    "vm_rss": b"VmRSS",
    "rss_anon": b"RssAnon",
    "rss_file": b"RssFile",
    "rss_shmem": b"RssShmem",
    "vm_data": b"VmData",
    "vm_stk": b"VmStk",
    "vm_exe": b"VmExe",
    "vm_lib": b"VmLib",
    "vm_pte": b"VmPTE",
    "vm_swap": b"VmSwap",
    "hugetlb_pages": b"HugetlbPages",
}
_STATUS_HEX = {
    "sig_pnd": b"SigPnd",
    "shd_pnd": b"ShdPnd",
    "sig_blk": b"SigBlk",
    "sig_ign": b"SigIgn",
    "sig_cgt": b"SigCgt",
    "cap_inh": b"CapInh",
    "cap_prm": b"CapPrm",
    "cap_eff": b"CapEff",
    "cap_bnd": b"CapBnd",
    "cap_amb": b"CapAmb",
    "cpus_allowed": b"Cpus_allowed",
    "mems_allowed": b"Mems_allowed",
}


def status(pid: Pid, tid: int | None = None) -> Status:
    """The `status` of a process, or of its thread `tid`."""
    return parse_status(read(pid, _of(tid, "status")))


_SIGNAL_SETS = re.compile(
    rb"SigPnd:\t(\w+)\nShdPnd:\t(\w+)\nSigBlk:\t\w+\nSigIgn:\t\w+\nSigCgt:\t(\w+)\n"
)


class SignalSets(NamedTuple):
    """The signals that are pending for a thread, those for its process, and those it handles."""

    own: int
    shared: int
    caught: int


def signal_sets(status: bytes) -> SignalSets:
    """Parse only that of `status`: in no time."""
    return _parse_signal_sets(status[status.find(b"\nSigPnd:") + 1 : status.find(b"\nCapInh:") + 1])


@cache
def _parse_signal_sets(lines: bytes) -> SignalSets:
    match = _SIGNAL_SETS.fullmatch(lines)
    if match is None:
        raise KernelError(errno.EPROTO, "reading the signals of /proc/PID/status")
    return SignalSets(*(int(mask, 16) for mask in match.groups()))


def parse_status(text: bytes) -> Status:
    """Parse /proc/PID/status."""
    raw = dict(_STATUS_LINE.findall(text))
    queued, _, most = raw.get(b"SigQ", b"0/0").partition(b"/")
    numbers = {field: int(raw.get(key, b"0")) for field, key in _STATUS_DECIMAL.items()}
    numbers |= {field: _kb(raw.get(key, b"0")) for field, key in _STATUS_KB.items()}
    numbers |= {field: _mask(raw.get(key, b"0")) for field, key in _STATUS_HEX.items()}
    return Status(
        name=_comm(raw[b"Name"]),
        state=raw[b"State"][:1].decode(),
        umask=int(raw.get(b"Umask", b"0"), 8),
        uids=_four(raw[b"Uid"]),
        gids=_four(raw[b"Gid"]),
        groups=_ints(raw.get(b"Groups", b"")),
        ns_tgids=_ints(raw.get(b"NStgid", b"")),
        ns_pids=_ints(raw.get(b"NSpid", b"")),
        ns_pgids=_ints(raw.get(b"NSpgid", b"")),
        ns_sids=_ints(raw.get(b"NSsid", b"")),
        sigq=(int(queued), int(most)),
        thread_features=tuple(raw.get(b"x86_Thread_features", b"").decode().split()),
        **numbers,
    )


def _comm(escaped: bytes) -> str:
    """Undo proc_task_name() (fs/proc/array.c), which escapes newline and backslash."""
    if b"\\" not in escaped:
        return os.fsdecode(escaped)
    return os.fsdecode(re.sub(rb"\\(.)", lambda m: b"\n" if m[1] == b"n" else m[1], escaped))


def _kb(value: bytes) -> int:
    return int(value.split()[0]) * 1024


def _mask(value: bytes) -> int:
    return int(value.replace(b",", b""), 16)


def _ints(value: bytes) -> tuple[int, ...]:
    return tuple(map(int, value.split()))


def _four(value: bytes) -> tuple[int, int, int, int]:
    a, b, c, d = map(int, value.split())
    return a, b, c, d


# --- limits, timers, cgroups, system call


def auxv(pid: Pid) -> list[int]:
    """The auxiliary vector of the last execve: all its 64-bit words, type and value in turn."""
    return parse_auxv(read(pid, "auxv"))


def parse_auxv(data: bytes) -> list[int]:
    """Parse /proc/PID/auxv."""
    return memoryview(data).cast("Q").tolist()


def limits(pid: Pid) -> list[tuple[int, int]]:
    """(soft, hard) of each resource, in the order of the RLIMIT_ numbers 0 to 15.

    prlimit(2) would need CAP_SYS_RESOURCE over another user's task; this file does not.
    """
    return parse_limits(read(pid, "limits"))


def parse_limits(text: bytes) -> list[tuple[int, int]]:
    """Parse /proc/PID/limits: a heading, then lines of "%-25s %-20s %-20s %-10s"."""
    found = [line[26:].split()[:2] for line in text.splitlines()[1:]]
    return [(_limit(soft), _limit(hard)) for soft, hard in found]


def _limit(value: bytes) -> int:
    return RLIM_INFINITY if value == b"unlimited" else int(value)


class PosixTimer(NamedTuple):
    """A timer_create(2) timer.

    `notify` is a SIGEV_ number: 0 signal, 1 none, 2 thread, with 4 (SIGEV_THREAD_ID) added when
    `target` is the one thread to be signalled rather than the process. `sigval` is the pointer.
    """

    id: int
    signo: int
    sigval: int
    notify: int
    target: int
    clock: int


_TIMER = re.compile(
    rb"ID: (\d+)\nsignal: (\d+)/([0-9a-f]+)\nnotify: (\w+)/(pid|tid)\.(-?\d+)\nClockID: (-?\d+)\n"
)
_NOTIFY = {b"signal": 0, b"none": 1, b"thread": 2, b"pid": 0, b"tid": 4}


def timers(pid: Pid) -> list[PosixTimer]:
    """The POSIX timers of a process, by rising id (needs CONFIG_CHECKPOINT_RESTORE)."""
    return parse_timers(read(pid, "timers"))


def parse_timers(text: bytes) -> list[PosixTimer]:
    """Parse /proc/PID/timers."""
    found = (
        PosixTimer(int(i), int(signo), int(val, 16), _NOTIFY[how] | _NOTIFY[to], int(at), int(clk))
        for i, signo, val, how, to, at, clk in _TIMER.findall(text)
    )
    return sorted(found, key=lambda timer: timer.id)


def timerslack(pid: Pid) -> int:
    """The timer slack of a task (pid or tid), in nanoseconds."""
    return int(read(pid, "timerslack_ns"))


def oom_score_adj(pid: Pid) -> int:
    """How likely the OOM killer takes the process: -1000 to 1000."""
    return int(read(pid, "oom_score_adj"))


def cgroup(pid: Pid) -> list[tuple[int, str, str]]:
    """(hierarchy id, controllers, path) per hierarchy (cgroups(7)); version 2 is (0, "", path)."""
    return parse_cgroup(read(pid, "cgroup"))


def parse_cgroup(text: bytes) -> list[tuple[int, str, str]]:
    """Parse /proc/PID/cgroup. A path may hold colons."""
    split = (os.fsdecode(line).split(":", 2) for line in text.split(b"\n") if line)
    return [(int(hierarchy), controllers, path) for hierarchy, controllers, path in split]


class Syscall(NamedTuple):
    """The system call a task is blocked in; `number` -1 and no `args` if blocked outside of one."""

    number: int
    args: tuple[int, ...]
    sp: int
    pc: int


def syscall(tid: Pid) -> Syscall | None:
    """What a task (pid or tid) is blocked in, or None while it runs."""
    return parse_syscall(read(tid, "syscall"))


def parse_syscall(text: bytes) -> Syscall | None:
    """Parse /proc/PID/syscall: "running", or a decimal number and then hexadecimal words."""
    words = text.split()
    if words == [b"running"]:
        return None
    *args, sp, pc = (int(word, 16) for word in words[1:])
    return Syscall(int(words[0]), tuple(args), sp, pc)


def wchan(tid: Pid) -> str:
    """The kernel function a task (pid or tid) sleeps in; "0" if it does not sleep."""
    return read(tid, "wchan").decode()


# --- what belongs to a process


def threads(pid: Pid) -> list[int]:
    """The thread ids of a process, rising; new ones may appear unless it is stopped."""
    return sorted(map(int, _listdir(pid, "task")))


def thread_count(status: bytes) -> int:
    """How many threads a process has, by its `status`."""
    at = status.find(b"\nThreads:\t") + 10
    return int(status[at : status.find(b"\n", at)])


def children(pid: Pid) -> list[int]:
    """The child processes of all threads of a process, rising.

    proc_tid_children(5): only complete if the children are stopped (needs CONFIG_PROC_CHILDREN).
    """
    found: list[int] = []
    for tid in threads(pid):
        with suppress(NoSuchTask):  # a thread may end at any time
            found += map(int, read(pid, f"task/{tid}/children").split())
    return sorted(found)


def fds(pid: Pid) -> list[int]:
    """The numbers of the open descriptors of a process, rising."""
    return sorted(map(int, _listdir(pid, "fd")))


def fd_link(pid: Pid, fd: int) -> str:
    """What a descriptor is open on: a path, or a word like "socket:[812]"."""
    return readlink(pid, f"fd/{fd}")


def namespaces(pid: Pid) -> dict[str, int]:
    """The inode number of each namespace of a task, by its name in /proc/PID/ns.

    pid_for_children is absent as long as that namespace has no init (namespaces(7)).
    """
    found = {}
    for kind in _listdir(pid, "ns"):
        try:
            found[kind] = int(readlink(pid, f"ns/{kind}").partition("[")[2][:-1])
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
    return found


def id_map(pid: Pid, kind: Literal["uid", "gid"]) -> list[tuple[int, int, int]]:
    """(first id inside, first id outside, count) of a user namespace, outside as we see it."""
    lines = read(pid, f"{kind}_map").splitlines()
    return [(a, b, n) for a, b, n in (map(int, line.split()) for line in lines)]


# --- System V shared memory of our own IPC namespace


class Shm(NamedTuple):
    """A System V shared memory segment: names as in /proc/sysvipc/shm, `size` in bytes.

    `perms` holds the mode and, above it, SHM_DEST (0o1000) and SHM_LOCKED (0o2000).
    """

    key: int
    shmid: int
    perms: int
    size: int
    cpid: int
    lpid: int
    nattch: int
    uid: int
    gid: int
    cuid: int
    cgid: int


def shm() -> list[Shm]:
    """The System V shared memory segments of the caller's IPC namespace."""
    return parse_shm(read_path("/proc/sysvipc/shm"))


def parse_shm(text: bytes) -> list[Shm]:
    """Parse /proc/sysvipc/shm: decimal columns under a heading, the permissions octal."""
    return [_shm(line.split()) for line in text.splitlines()[1:]]


def _shm(words: Sequence[bytes]) -> Shm:
    key, shmid, perms, *rest = words
    return Shm(int(key), int(shmid), int(perms, 8), *map(int, rest[:8]))
