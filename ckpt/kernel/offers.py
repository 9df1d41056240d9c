# SPDX-License-Identifier: Apache-2.0
"""What the kernel offers to a checkpoint beyond what we use, as `ckpt check --feature` tells it.

Found out by doing, like `features`. What would leave a trace (mounts, links, devices) is done by a
child in namespaces of its own, which end with it.
"""

import errno
import fcntl
import mmap
import os
import shutil
import signal
import socket
import struct
from collections.abc import Callable
from functools import cache

from ckpt.errors import CkptError
from ckpt.kernel import files, procfs
from ckpt.kernel.arch import NR
from ckpt.kernel.features import closing, pidfd, traced, works
from ckpt.kernel.ffi import check, ffi, lib, syscall
from ckpt.kernel.ptrace import Options

_NEWNS, _NEWNET = 0x0002_0000, 0x4000_0000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_ARCH_MAP_VDSO_32, _ARCH_MAP_VDSO_64 = 0x2002, 0x2003
_MOVE_MOUNT_SET_GROUP = 0x100
_TFD_IOC_SET_TICKS, _SIOCGSKNS, _SIOCUNIXFILE = 0x4008_5400, 0x894C, 0x89E0
_TUNSETIFF, _TUNGETFEATURES, _TUNGETDEVNETNS = 0x4004_54CA, 0x8004_54CF, 0x54E3
_IFF_TUN, _IPV6_FREEBIND = 1, 78
_SUSPEND_SECCOMP, _GET_FILTER = 1 << 21, 0x420C
_POKEUSER, _DEBUG_REGISTERS = 6, 848
_AUTOFS = "fd={fd},pgrp={group},minproto=5,maxproto=5,direct"


def _call(nr: int, *args: int | bytes) -> int:
    kept = [ffi.new("char[]", arg) if isinstance(arg, bytes) else arg for arg in args]
    numbers = (a if isinstance(a, int) else int(ffi.cast("uintptr_t", a)) for a in kept)
    return check(syscall(nr, *numbers), f"system call {nr}")


def _in_child(attempt: Callable[[], object], unshared: int = 0) -> bool:
    """Say whether a child of ours gets through with it, in namespaces of its own."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            if unshared:
                _call(NR.unshare, unshared)
            if unshared & _NEWNS:
                _call(NR.mount, b"none", b"/", 0, _MS_REC_PRIVATE, 0)
            attempt()
            code = 0
        except (OSError, AssertionError, CkptError):
            pass
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def _said(attempt: Callable[[], object], number: int) -> bool:
    """Say whether it fails like this: the request is known, but this is not what it is for."""
    try:
        attempt()
    except OSError as error:
        return error.errno == number
    return False


# --- memory and time


@cache
def aio_remap() -> bool:
    """The ring of an AIO context may be moved, and the context with it."""

    def attempt() -> None:
        context = ffi.new("uint64_t *")
        check(syscall(NR.io_setup, 1, int(ffi.cast("uintptr_t", context))), "io_setup")
        with open("/proc/self/maps") as maps:
            (ring,) = (line.split()[0] for line in maps if "/[aio]" in line)
        start, end = (int(word, 16) for word in ring.split("-"))
        with mmap.mmap(-1, end - start) as place:
            new = int(ffi.cast("uintptr_t", ffi.from_buffer(place)))
            _call(NR.mremap, start, end - start, end - start, _MREMAP_MAYMOVE | _MREMAP_FIXED, new)
            _call(NR.io_getevents, new, 0, 1, 0, 0)
            os._exit(0)  # what place has now is not ours to unmap

    return _in_child(attempt)


@cache
def timerfd() -> bool:
    """The ticks of a timer can be set."""

    def attempt() -> None:
        with closing(files.timerfd_create(0, os.O_CLOEXEC)) as fd:
            fcntl.ioctl(fd, _TFD_IOC_SET_TICKS, (1).to_bytes(8, "little"))

    return works(attempt)


def _maps_vdso(which: int) -> bool:
    """There is one already, it says, if it is asked to map another."""
    return syscall(NR.arch_prctl, which, 0) == -errno.EEXIST


def can_map_vdso() -> bool:
    """arch_prctl(ARCH_MAP_VDSO_64)."""
    return _maps_vdso(_ARCH_MAP_VDSO_64)


def compat_cr() -> bool:
    """The same for 32-bit programs."""
    return _maps_vdso(_ARCH_MAP_VDSO_32)


# --- tasks


@cache
def seccomp_suspend() -> bool:
    """PTRACE_O_SUSPEND_SECCOMP."""
    return traced(lambda tracee: tracee.set_options(Options(_SUSPEND_SECCOMP)))


@cache
def seccomp_filters() -> bool:
    """PTRACE_SECCOMP_GET_FILTER; that there is none to get is what it says."""
    found = []
    traced(lambda tracee: found.append(lib.core_ptrace(_GET_FILTER, tracee.tid, 0, 0)))
    return found in ([-errno.EINVAL], [-errno.ENOENT])


@cache
def breakpoints() -> bool:
    """Breakpoints of the CPU: address and control are debug registers 0 and 7."""

    def attempt(tid: int) -> None:
        for register, value in ((0, 0x1000), (7, 1)):
            at = _DEBUG_REGISTERS + 8 * register
            check(lib.core_ptrace(_POKEUSER, tid, at, value), "PTRACE_POKEUSER")

    return traced(lambda tracee: attempt(tracee.tid))


def loginuid() -> bool:
    """Who has logged in can be set; here, to what it is."""

    def attempt() -> None:
        with open("/proc/self/loginuid", "r+") as file:
            number = file.read()
            file.seek(0)
            file.write(number)

    return _in_child(attempt)


def ns_pid() -> bool:
    """The pid that a task has in its own namespace is in /proc/PID/status."""
    return b"NSpid:\t" in procfs.read("self", "status")


def pidfd_store() -> bool:
    """A pidfd can be sent away and come back."""

    def attempt() -> None:
        pid, pair = os.getpid(), socket.socketpair()
        with closing(os.pidfd_open(pid)) as fd, pair[0], pair[1]:
            socket.send_fds(pair[0], [b"."], [fd])
            _, (back,), _, _ = socket.recv_fds(pair[1], 1, 1)
            with closing(back):
                signal.pidfd_send_signal(back, 0)

    return pidfd() and works(attempt)


def apparmor_stacking() -> bool:
    """AppArmor says so."""
    try:
        with open("/sys/kernel/security/apparmor/features/domain/stack") as file:
            return file.read().strip() == "yes"
    except OSError:
        return False


# --- mounts


def move_mount_set_group() -> bool:
    """MOVE_MOUNT_SET_GROUP: flags are looked at before descriptors."""
    ret = syscall(NR.move_mount, -1, 0, -1, 0, _MOVE_MOUNT_SET_GROUP)
    return ret in (-errno.EFAULT, -errno.EBADF)


@cache
def autofs() -> bool:
    """The inode of an autofs mount's pipe is in mountinfo."""

    def attempt() -> None:
        _, end = os.pipe()
        options = _AUTOFS.format(fd=end, group=os.getpgrp()).encode()
        _call(NR.mount, b"ckpt", b"/proc", b"autofs", 0, options)
        _call(NR.umount2, b"/proc", 0)

    return _in_child(attempt, _NEWNS)


@cache
def overlayfs_maps() -> bool:
    """What is mapped of an overlay is in map_files as the overlay's."""

    def attempt() -> None:
        _call(NR.mount, b"ckpt", b"/tmp", b"tmpfs", 0, 0)
        for name in ("low", "up", "work", "all"):
            os.mkdir(f"/tmp/{name}")
        with open("/tmp/low/file", "wb") as low:
            low.write(bytes(mmap.PAGESIZE))
        options = b"lowerdir=/tmp/low,upperdir=/tmp/up,workdir=/tmp/work"
        _call(NR.mount, b"ckpt", b"/tmp/all", b"overlay", 0, options)
        with (
            open("/tmp/all/file", "rb") as file,
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE) as page,
        ):
            at = int(ffi.cast("uintptr_t", ffi.from_buffer(page)))
            link = os.stat(f"/proc/self/map_files/{at:x}-{at + mmap.PAGESIZE:x}")
            assert os.path.samestat(link, os.fstat(file.fileno()))

    return _in_child(attempt, _NEWNS)


# --- network


def sk_ns() -> bool:
    """SIOCGSKNS: the namespace of a socket."""
    with socket.socket() as sock:
        return works(lambda: os.close(fcntl.ioctl(sock, _SIOCGSKNS)))


def sk_unix_file() -> bool:
    """SIOCUNIXFILE: the file that a unix socket is bound to; this one is not."""
    with socket.socket(socket.AF_UNIX) as sock:
        return _said(lambda: fcntl.ioctl(sock, _SIOCUNIXFILE), errno.ENOENT)


def ipv6_freebind() -> bool:
    """IPV6_FREEBIND: an address that is not there yet."""

    def attempt() -> None:
        with socket.socket(socket.AF_INET6) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)

    return works(attempt)


def tun() -> bool:
    """/dev/net/tun."""

    def attempt() -> None:
        with closing(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)) as fd:
            fcntl.ioctl(fd, _TUNGETFEATURES, bytes(4))

    return works(attempt)


@cache
def tun_ns() -> bool:
    """TUNGETDEVNETNS: the namespace of a tun device."""

    def attempt() -> None:
        with closing(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)) as fd:
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"ckpt", _IFF_TUN))
            os.close(fcntl.ioctl(fd, _TUNGETDEVNETNS))

    return _in_child(attempt, _NEWNET)


_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_REQUEST_ACK, _CREATE_EXCL, _DUMP = 0x5, 0x600, 0x301
_ROUTE, _DIAG, _NETFILTER = 0, 4, 12
_RTM_NEWLINK, _RTM_GETLINK, _RTM_GETNSID, _NFT_GETGEN = 16, 18, 90, 10 << 8 | 16
_BY_FAMILY, _NLMSG_ERROR = 20, 2
_IFLA_LINKINFO, _IFLA_TARGET_NETNSID, _INFO_KIND, _NETNSA_FD = 18, 46, 1, 3


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", len(data) + 4, kind) + data + bytes(-len(data) % 4)


def _ask(protocol: int, type_: int, body: bytes, flags: int = _REQUEST_ACK) -> int:
    """Send a netlink request; return the errno of the answer, 0 for any other answer."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
        sock.send(_HEADER.pack(_HEADER.size + len(body), type_, flags, 1, 0) + body)
        answer = sock.recv(1 << 16)
    if _HEADER.unpack_from(answer)[1] != _NLMSG_ERROR:
        return 0
    number: int = struct.unpack_from("=i", answer, _HEADER.size)[0]
    return -number


def _asked(*request: object) -> bool:
    return works(lambda: check(-_ask(*request), "netlink"))  # type: ignore[arg-type]


def net_diag_raw() -> bool:
    """Raw sockets are told by sock_diag(7)."""
    body = struct.pack("=BBBBI48x", socket.AF_INET, socket.IPPROTO_RAW, 0, 0, 0xFFFF_FFFF)
    return _asked(_DIAG, _BY_FAMILY, body, _DUMP)


def nftables() -> bool:
    """The generation of the rules can be asked for."""
    return _asked(_NETFILTER, _NFT_GETGEN, bytes(4))


def has_ipt_legacy() -> bool:
    """The iptables of old: the program and the tables."""
    return bool(shutil.which("iptables-legacy") and os.path.exists("/proc/net/ip_tables_names"))


def nsid() -> bool:
    """RTM_GETNSID: the number of a network namespace."""
    with closing(os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)) as fd:
        return _asked(
            _ROUTE, _RTM_GETNSID, bytes(4) + _attribute(_NETNSA_FD, struct.pack("=I", fd))
        )


def link_nsid() -> bool:
    """Links of another namespace by its number; who does not know that would tell ours."""
    nobody = _attribute(_IFLA_TARGET_NETNSID, struct.pack("=i", 1 << 30))
    body = struct.pack("=BxHiII", 0, 0, 1, 0, 0) + nobody
    try:
        return _ask(_ROUTE, _RTM_GETLINK, body) == errno.EINVAL
    except OSError:
        return False


@cache
def newifindex() -> bool:
    """A link with an index of our choice."""
    kind = _attribute(_IFLA_LINKINFO, _attribute(_INFO_KIND, b"veth"))
    body = struct.pack("=BxHiII", 0, 0, 10, 0, 0) + kind

    def attempt() -> None:
        flags = _REQUEST_ACK | _CREATE_EXCL
        assert _asked(_ROUTE, _RTM_NEWLINK, body, flags)
        assert 10 in dict(socket.if_nameindex())

    return _in_child(attempt, _NEWNET)
