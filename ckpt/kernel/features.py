# SPDX-License-Identifier: Apache-2.0
"""What this kernel can do and lets us do, found out by doing it, never by its version.

A probe takes microseconds (those that need a tracee half a millisecond), is made once, and leaves
nothing behind. `dump`, `restore`, `ckpt check`, the RPC and the skips of tests ask the same ones.
"""

import errno
import fcntl
import mmap
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntFlag
from functools import cache

from ckpt.kernel import files, pagemap, procfs
from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import check, ffi, lib, syscall
from ckpt.kernel.kcmp import Kcmp, kcmp
from ckpt.kernel.pidfd import pidfd_getfd, pidfd_open
from ckpt.kernel.ptrace import Options, Tracee, reap

_PR_SET_MM, _PR_SET_MM_MAP_SIZE = 35, 15
_PR_TIMER_CREATE_RESTORE_IDS, _IDS_GET = 77, 2
_UFFD_API, _UFFDIO_API = 0xAA, 0xC018AA3F
_MADV_GUARD_INSTALL = 102
_SYS_PTRACE, _SYS_ADMIN = 1 << 19, 1 << 21
_MFD_HUGETLB = 4


class Uffd(IntFlag):
    """UFFD_FEATURE_*: what a userfaultfd can tell and do."""

    PAGEFAULT_FLAG_WP = 1 << 0
    EVENT_FORK = 1 << 1
    EVENT_REMAP = 1 << 2
    EVENT_REMOVE = 1 << 3
    MISSING_HUGETLBFS = 1 << 4
    MISSING_SHMEM = 1 << 5
    EVENT_UNMAP = 1 << 6
    SIGBUS = 1 << 7
    THREAD_ID = 1 << 8
    MINOR_HUGETLBFS = 1 << 9
    MINOR_SHMEM = 1 << 10
    EXACT_ADDRESS = 1 << 11
    WP_HUGETLBFS_SHMEM = 1 << 12
    WP_UNPOPULATED = 1 << 13
    POISON = 1 << 14
    WP_ASYNC = 1 << 15
    MOVE = 1 << 16


_EVENTS = Uffd.EVENT_FORK | Uffd.EVENT_REMAP | Uffd.EVENT_REMOVE | Uffd.EVENT_UNMAP


def works(attempt: Callable[[], object]) -> bool:
    """Tell whether it is done without an error of the system's."""
    try:
        attempt()
    except OSError:
        return False
    return True


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """Close a descriptor with the block."""
    try:
        yield fd
    finally:
        os.close(fd)


# --- what every dump or restore needs


@cache
def privileges() -> bool:
    """May we look into any process? CAP_SYS_PTRACE and CAP_SYS_ADMIN."""
    return not ~procfs.status("self").cap_eff & (_SYS_PTRACE | _SYS_ADMIN)


def _scans(category: pagemap.Page) -> bool:
    with closing(os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)) as fd:
        return works(lambda: list(pagemap.scan(fd, [(0, mmap.PAGESIZE)], any_of=category)))


@cache
def pagemap_scan() -> bool:
    """PAGEMAP_SCAN (Linux 6.7)."""
    return _scans(pagemap.Page.PRESENT)


@cache
def pidfd() -> bool:
    """pidfd_getfd(2): copies of descriptors of another process (Linux 5.6)."""

    def attempt() -> None:
        with closing(pidfd_open(os.getpid())) as fd:
            os.close(pidfd_getfd(fd, fd))

    return works(attempt)


@cache
def clone3_set_tid() -> bool:
    """A child with a pid of our choice (Linux 5.5): of ours, which is taken, it must say so."""
    ret = lib.core_clone_paused(0, ffi.new("int32_t[]", [os.getpid()]), 1, ffi.new("int32_t[2]"))
    return int(ret) == -errno.EEXIST


@cache
def mm_map() -> bool:
    """PR_SET_MM_MAP: where a process's code, heap and arguments are."""
    size = ffi.new("uint32_t *")
    address = int(ffi.cast("uintptr_t", size))
    return syscall(NR.prctl, _PR_SET_MM, _PR_SET_MM_MAP_SIZE, address) == 0


@cache
def kcmp_files() -> bool:
    """kcmp(2): whether two descriptors are one open file."""
    return works(lambda: kcmp(Kcmp.FILE, os.getpid(), os.getpid(), 0, 0))


@contextmanager
def _tracee() -> Iterator[Tracee]:
    """A stopped child of ours, which ends with the block."""
    lifeline = os.pipe2(os.O_CLOEXEC)
    pid = 0
    try:
        pid = check(lib.core_clone_paused(0, ffi.NULL, 0, lifeline), "clone3")
        tracee = Tracee(pid, Options.EXITKILL)
        tracee.interrupt()
        tracee.wait()
        yield tracee
    finally:
        if pid:
            os.kill(pid, 9)
            reap(pid)
        os.close(lifeline[0])
        os.close(lifeline[1])


def traced(attempt: Callable[[Tracee], object]) -> bool:
    """Tell whether it is done to a stopped child of ours."""

    def trace() -> None:
        with _tracee() as tracee:
            attempt(tracee)

    return works(trace)


@cache
def ptrace() -> bool:
    """PTRACE_SEIZE of a child, and all its registers."""
    return traced(lambda tracee: (tracee.regs(), tracee.xstate(), tracee.sigmask()))


@cache
def get_rseq_conf() -> bool:
    """PTRACE_GET_RSEQ_CONFIGURATION (Linux 5.13)."""
    return traced(lambda tracee: tracee.rseq())


# --- what only some processes need


@cache
def timer_cr_ids() -> bool:
    """PR_TIMER_CREATE_RESTORE_IDS: POSIX timers with ids of our choice (Linux 6.15)."""
    return syscall(NR.prctl, _PR_TIMER_CREATE_RESTORE_IDS, _IDS_GET) >= 0


@cache
def guard_pages() -> bool:
    """MADV_GUARD_INSTALL (Linux 6.13)."""
    with mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE) as page:
        return works(lambda: page.madvise(_MADV_GUARD_INSTALL))


@cache
def pagemap_scan_guard_pages() -> bool:
    """PAGEMAP_SCAN tells where guard pages are (Linux 6.15)."""
    return _scans(pagemap.Page.GUARD)


@cache
def uffd() -> Uffd:
    """Return what a userfaultfd can do here; nothing if we may not have one."""
    fd = syscall(NR.userfaultfd, os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        return Uffd(0)
    api = bytearray(_UFFD_API.to_bytes(24, "little"))
    with closing(fd):
        if not works(lambda: fcntl.ioctl(fd, _UFFDIO_API, api)):
            return Uffd(0)
    return Uffd(int.from_bytes(api[8:16], "little") & (1 << 17) - 1)


def uffd_wp() -> bool:
    """Write-protect faults, for a live dump."""
    return bool(uffd() & Uffd.PAGEFAULT_FLAG_WP)


def uffd_wp_async() -> bool:
    """Write-protection that only takes note: what was written since (Linux 6.7)."""
    return bool(uffd() & Uffd.WP_ASYNC)


def uffd_events() -> bool:
    """Forks, unmappings and the like are told."""
    return uffd() & _EVENTS == _EVENTS


@cache
def openat2() -> bool:
    """openat2(2): a path that leads nowhere else (Linux 5.6)."""
    flags = os.O_PATH | os.O_CLOEXEC
    return works(lambda: os.close(files.openat2(-100, "/", flags, files.RESOLVE_IN_ROOT)))


@cache
def kcmp_epoll() -> bool:
    """Which open file an epoll set watches."""

    def attempt() -> None:
        with closing(os.eventfd(0, os.EFD_CLOEXEC)) as event:
            epoll = _epoll_of(event)
            with closing(epoll):
                assert files.watches(os.getpid(), epoll, event, 0, event)

    return works(attempt)


def _epoll_of(watched: int) -> int:
    """Return a new epoll set that watches this descriptor."""
    from select import epoll

    with epoll() as made:
        made.register(watched)
        return os.dup(made.fileno())


@cache
def memfd_hugetlb() -> bool:
    """Anonymous files of huge pages."""
    return works(lambda: os.close(os.memfd_create("ckpt", os.MFD_CLOEXEC | _MFD_HUGETLB)))


@cache
def fdinfo_lock() -> bool:
    """File locks are listed in fdinfo (Linux 4.1)."""
    with closing(os.memfd_create("ckpt", os.MFD_CLOEXEC)) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        return b"lock:\t" in procfs.read("self", f"fdinfo/{fd}")


@cache
def mnt_id() -> bool:
    """The mount of an open file is in fdinfo."""
    with closing(os.open("/", os.O_PATH | os.O_CLOEXEC)) as fd:
        return b"mnt_id:\t" in procfs.read("self", f"fdinfo/{fd}")


@cache
def tcp_repair() -> bool:
    """TCP_REPAIR, half-closed connections included: state of a connection, set by hand."""

    def attempt() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, 19, 1)
            sock.setsockopt(socket.IPPROTO_TCP, 19, -1)

    return works(attempt)


@cache
def sockopt_buf_lock() -> bool:
    """SO_BUF_LOCK: sizes of socket buffers that were set by hand (Linux 5.15)."""

    def attempt() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.getsockopt(socket.SOL_SOCKET, 72)

    return works(attempt)


def namespace(kind: str) -> bool:
    """Are there namespaces of this kind?"""
    return os.path.exists(f"/proc/self/ns/{kind}")
