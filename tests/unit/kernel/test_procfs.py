# SPDX-License-Identifier: Apache-2.0
"""The parsers of per-task /proc files: given texts, and this very process."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading

import pytest

from ckpt.errors import KernelError, NoSuchTask
from ckpt.kernel import procfs

GONE = 2**22 + 1  # above the largest pid_max


def test_stat_of_an_awkward_name() -> None:
    rest = b" S 1 2 3 34816 5 4194560 " + b" ".join(b"%d" % n for n in range(10, 53))
    stat = procfs.parse_stat(b"812 (a) b\n(c) R 9) " + rest.strip() + b"\n")
    assert (stat.pid, stat.comm, stat.state) == (812, "a) b\n(c) R 9", "S")
    assert (stat.ppid, stat.pgrp, stat.session, stat.tty_nr, stat.tpgid) == (1, 2, 3, 34816, 5)
    assert (stat.nice, stat.num_threads, stat.starttime, stat.vsize) == (19, 20, 22, 23)
    assert (stat.rt_priority, stat.policy, stat.start_brk, stat.exit_code) == (40, 41, 47, 52)


def test_stat_of_this_process() -> None:
    stat = procfs.stat(os.getpid())
    assert (stat.pid, stat.ppid, stat.state) == (os.getpid(), os.getppid(), "R")
    assert (stat.pgrp, stat.session) == (os.getpgrp(), os.getsid(0))
    assert stat.start_code < stat.end_code and stat.env_start < stat.env_end
    thread = procfs.stat(os.getpid(), threading.get_native_id())
    assert (thread.pid, thread.starttime) == (threading.get_native_id(), stat.starttime)


STATUS = rb"""Name:	a\nb\\c
Umask:	0027
State:	S (sleeping)
Tgid:	10
Ngid:	0
Pid:	11
PPid:	1
TracerPid:	7
Uid:	1	2	3	4
Gid:	5	6	7	8
FDSize:	256
Groups:	4 24 27
NStgid:	10	3
NSpid:	11	4
NSpgid:	10	3
NSsid:	10	0
Kthread:	0
VmPeak:	    3060 kB
THP_enabled:	1
Threads:	2
SigQ:	3/96365
SigCgt:	0000000180004002
CapBnd:	000001ffffffffff
NoNewPrivs:	1
Seccomp:	2
Seccomp_filters:	1
Cpus_allowed:	1,00000003
x86_Thread_features:	shstk wrss
"""


def test_status() -> None:
    status = procfs.parse_status(STATUS)
    assert (status.name, status.umask, status.state) == ("a\nb\\c", 0o27, "S")
    assert (status.tgid, status.pid, status.tracer_pid) == (10, 11, 7)
    assert (status.uids, status.gids, status.groups) == ((1, 2, 3, 4), (5, 6, 7, 8), (4, 24, 27))
    assert (status.ns_pids, status.ns_sids, status.sigq) == ((11, 4), (10, 0), (3, 96365))
    assert (status.vm_peak, status.vm_size) == (3060 * 1024, 0)
    assert (status.sig_cgt, status.cap_bnd) == (0x180004002, 0x1FFFFFFFFFF)
    assert (status.no_new_privs, status.seccomp, status.seccomp_filters) == (1, 2, 1)
    assert (status.cpus_allowed, status.thread_features) == (1 << 32 | 3, ("shstk", "wrss"))


def test_status_of_this_process() -> None:
    status = procfs.status("self")
    assert (status.pid, status.uids) == (os.getpid(), (*os.getresuid(), os.geteuid()))
    assert set(status.groups) == set(os.getgroups())
    assert bool(status.sig_cgt >> signal.SIGINT - 1 & 1)
    assert bin(status.cpus_allowed).count("1") == len(os.sched_getaffinity(0))


def test_limits_are_in_the_order_of_their_numbers() -> None:
    limits = procfs.limits(os.getpid())
    assert len(limits) == 16
    for number in (resource.RLIMIT_NOFILE, resource.RLIMIT_STACK, resource.RLIMIT_CORE):
        assert limits[number] == tuple(
            procfs.RLIM_INFINITY if n == resource.RLIM_INFINITY else n
            for n in resource.getrlimit(number)
        )


def test_auxv_has_the_page_size() -> None:
    words = procfs.auxv(os.getpid())
    assert dict(zip(words[::2], words[1::2], strict=True))[6] == resource.getpagesize()


def test_timers() -> None:
    text = (
        b"ID: 2\nsignal: 34/0000dead0000beef\nnotify: signal/tid.812\nClockID: 1\n"
        b"ID: 0\nsignal: 14/0000000000000000\nnotify: none/pid.811\nClockID: -6\n"
    )
    assert procfs.parse_timers(text) == [
        procfs.PosixTimer(0, 14, 0, 1, 811, -6),
        procfs.PosixTimer(2, 34, 0xDEAD0000BEEF, 4, 812, 1),
    ]


def test_timers_of_a_process_that_has_one() -> None:
    libc = ctypes.CDLL(None)
    timer = ctypes.c_void_p()
    assert libc.timer_create(1, None, ctypes.byref(timer)) == 0
    try:
        found = procfs.timers("self")
    finally:
        libc.timer_delete(timer)
    assert (found[-1].signo, found[-1].notify, found[-1].clock) == (signal.SIGALRM, 0, 1)
    assert found[-1].target == os.getpid()


def test_small_files() -> None:
    pid = os.getpid()
    assert procfs.timerslack(pid) >= 0
    assert -1000 <= procfs.oom_score_adj(pid) <= 1000
    assert procfs.namespaces(pid)["mnt"] == os.stat("/proc/self/ns/mnt").st_ino
    assert procfs.readlink(pid, "cwd") == os.getcwd()
    assert all(count > 0 for _, _, count in procfs.id_map(pid, "uid"))
    assert procfs.wchan(pid)


def test_cgroup_paths_may_hold_colons() -> None:
    text = b"9:name=systemd:/a:b\n3:cpu,cpuacct:/\n0::/x\n"
    want = [(9, "name=systemd", "/a:b"), (3, "cpu,cpuacct", "/"), (0, "", "/x")]
    assert procfs.parse_cgroup(text) == want


def test_syscall() -> None:
    assert procfs.parse_syscall(b"running\n") is None
    assert procfs.parse_syscall(b"-1 0x10 0x20\n") == procfs.Syscall(-1, (), 0x10, 0x20)
    blocked = procfs.parse_syscall(b"35 0xff 0x0 0x1 0x2 0x3 0x4 0x7ffc 0x7f00\n")
    assert blocked == procfs.Syscall(35, (0xFF, 0, 1, 2, 3, 4), 0x7FFC, 0x7F00)


def test_children_of_every_thread() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in procfs.children(os.getpid())
        child.kill()


def test_threads() -> None:
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait)
    thread.start()
    assert {os.getpid(), thread.native_id} <= set(procfs.threads(os.getpid()))
    leave.set()
    thread.join()


def test_descriptors() -> None:
    with open("/dev/null") as file:
        assert file.fileno() in procfs.fds("self")
        assert procfs.fd_link("self", file.fileno()) == "/dev/null"


def test_shm() -> None:
    text = (
        b"       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid"
        b"  cgid      atime      dtime      ctime                   rss                  swap\n"
        b"      -812          4  1600                  8192    10    11      2     1     2     3"
        b"     4          0          0          0                  4096                     0\n"
    )
    assert procfs.parse_shm(text) == [procfs.Shm(-812, 4, 0o1600, 8192, 10, 11, 2, 1, 2, 3, 4)]
    assert isinstance(procfs.shm(), list)


@pytest.mark.parametrize("ask", [procfs.stat, procfs.fds, procfs.namespaces])
def test_a_task_that_is_gone(ask: object) -> None:
    assert callable(ask)
    with pytest.raises(NoSuchTask, match=str(GONE)):
        ask(GONE)


def test_a_thread_that_is_gone() -> None:
    with pytest.raises(NoSuchTask):
        procfs.status(os.getpid(), GONE)


def test_a_missing_file_of_a_task_that_is_there() -> None:
    with pytest.raises(KernelError, match="fd/99999"):
        procfs.fd_link(os.getpid(), 99999)
