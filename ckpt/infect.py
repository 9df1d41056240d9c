# SPDX-License-Identifier: Apache-2.0
"""What a process has to be asked itself: written out before the freeze, answered in one round.

A question is a few system calls in a batch and a function that reads their results, later, when
the process runs again. Every thread answers at the same time as the others.
"""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from struct import Struct
from types import TracebackType
from typing import NamedTuple, Self

from ckpt.errors import KernelError, TargetDied
from ckpt.freeze import Frozen, FrozenProcess, FrozenThread
from ckpt.guard import Ward
from ckpt.image import pb
from ckpt.interrupt import uninterrupted
from ckpt.kernel import maps, procfs, seccomp
from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import check
from ckpt.kernel.glance import Glance, Seen
from ckpt.kernel.pidfd import pidfd_getfd
from ckpt.kernel.procfs import PosixTimer, SignalSets, signal_sets
from ckpt.kernel.ptrace import hear
from ckpt.kernel.remote import (
    At,
    Batch,
    Call,
    Gadget,
    Remote,
    Segment,
    Slot,
    find_holding,
    find_syscall,
    quiet_signal,
)
from ckpt.kernel.threads import State, send
from ckpt.kernel.userfaultfd import (
    UFFDIO_API,
    USERFAULTFD_IOC_NEW,
    Feature,
    Userfaultfd,
    api_request,
)
from ckpt.memory import mm
from ckpt.memory.layout import hole
from ckpt.sandbox import Sandbox, refused_unharmed
from ckpt.task import process, thread
from ckpt.task.restart import Wait

_USERFAULTFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK
_FETCHING = (NR.userfaultfd, NR.ioctl, NR.close, NR.socketpair, NR.recvmsg)
_IOVEC, _MSGHDR = Struct("<QQ"), Struct("<QIxxxxQQQQQ")
_LEADER_ROOM, _TIMER_ROOM, _THREAD_ROOM, _SPARE_THREADS = 16 << 10, 512, 2 << 10, 16


class _ThreadQuestions(NamedTuple):
    slot: Slot
    batch: Batch
    thread: thread.Answer


class _Lent(NamedTuple):
    """A thread that is lent to us, and its batch."""

    remote: Remote
    one: FrozenThread
    batch: Batch


def _set_out(lent: list[_Lent], gadget: Gadget) -> list[_Lent]:
    """Set all threads off, the leader first; returns those that have still to be waited for."""
    leader = lent[0]
    one = leader.one
    left = leader.remote.attach(one.regs, one.sigmask, gadget, leader.batch)
    away = lent if left else lent[1:]
    send(each.remote.setting_out(each.one.regs, each.one.sigmask, each.batch) for each in away)
    return away


def _bring_home(away: list[_Lent]) -> None:
    """Wait for all these threads; who is not to detach the segment goes home at once.

    All of them must be out of the stub before it goes, whatever became of their calls.
    """
    hear(each.one.tracee for each in away)
    failed, homeward = [], []
    for each in away:
        try:
            each.remote.finish(each.batch)
        except KernelError as error:
            failed.append(error)
        if each.one.tid != each.remote.tgid:
            homeward += each.remote.going_home(each.one.regs, each.one.sigmask)
    send(homeward)
    if failed:
        raise failed[0]


class Questions:
    """The questions to a process, and after `ask` the answers; a context manager.

    Built while the process runs. If it changed since (a thread more, another timer), `ask`
    builds anew what that touches.
    """

    def __init__(self, pid: int, guard: Ward, sandbox: Sandbox) -> None:
        self.pid, self._guard, self._sandbox = pid, guard, sandbox
        status = procfs.status(pid)
        self._timers = procfs.timers(pid)
        tids = procfs.threads(pid)
        self._program = _Program(pid)
        self._gadget = self._program.gadget
        threads = (len(tids) + _SPARE_THREADS) * _THREAD_ROOM
        size = 4096 + _LEADER_ROOM + 2 * _TIMER_ROOM * len(self._timers) + threads
        base = hole(size, self._program.busy)
        self._segment = Segment(
            size, base, pid=pid, uid=status.uids[1], gid=status.gids[1], lasting=True
        )
        guard.keep(self._segment)
        self._threads: dict[int, _ThreadQuestions] = {}
        self._taken: dict[int, thread.Raw] = {}
        self._signals: dict[int, SignalSets] = {}
        self._process: process.Raw
        self._auxv = b""
        self._build_leader(self._timers)
        for tid in tids:
            self._of_thread(tid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._segment.close()

    def _build_leader(self, timers: list[PosixTimer]) -> None:
        slot = self._segment.slot(_LEADER_ROOM + _TIMER_ROOM * len(timers))
        batch = Batch(slot)
        self._ask_process = process.ask(timers, batch)
        self._ask_mm = mm.ask(batch)
        self._threads[self.pid] = _ThreadQuestions(slot, batch, thread.ask(batch))

    def _of_thread(self, tid: int) -> _ThreadQuestions:
        if tid not in self._threads:
            slot = self._segment.slot(_THREAD_ROOM)
            batch = Batch(slot)
            self._threads[tid] = _ThreadQuestions(slot, batch, thread.ask(batch))
        return self._threads[tid]

    def look_ahead(self, glance: Glance) -> None:
        """Open what will be read in the freeze."""
        first = [f"/proc/{self.pid}/{name}" for name in ("maps", "timers")]
        for tid in self._threads:
            first += [f"/proc/{tid}/status", f"/proc/{self.pid}/task/{tid}/children"]
        glance.add(*first, first=True)
        glance.add(*(f"/proc/{self.pid}/{name}" for name in (*process.NAMES, "auxv", "cgroup")))

    @contextmanager
    def asked(self, frozen: FrozenProcess, seen: Seen) -> Iterator[None]:
        """Have all threads of the frozen process answer while the block does something else.

        seen is what a glance has told of it since it stands still. When the block is left they
        are as they were.
        """
        self._program.check(seen.read(self.pid, "maps"))
        timers = procfs.parse_timers(seen.read(self.pid, "timers"))
        if timers != self._timers:
            self._build_leader(timers)
        self._signals = {
            one.tid: signal_sets(seen.read(one.tid, "status")) for one in frozen.threads
        }
        with refused_unharmed(frozen.threads):
            for one in frozen.threads:
                self._sandbox.open(one, seen.read(one.tid, "status"))
        lent = [_Lent(self._remote(one), one, self._of(one)) for one in frozen.threads]
        leader = lent[0]
        self._guard.watch(
            self._gadget, leader.one.regs, [(each.remote, each.one.sigmask) for each in lent]
        )
        try:
            away = _set_out(lent, self._gadget)
            try:
                yield
            finally:
                _bring_home(away)
                self._segment.remove()
        finally:
            leader.remote.cure(leader.one.regs, leader.one.sigmask, self._gadget)
            self._guard.relax()

    def _of(self, one: FrozenThread) -> Batch:
        return self._of_thread(one.tid).batch

    def take(self, frozen: FrozenProcess, seen: Seen) -> None:
        """Take what the answers are to be put together with, while the process is stopped."""
        leader, queued = frozen.leader, bool(self._signals[self.pid].shared)
        self._process = process.take(leader.tracee, leader.stop_signal, seen.read, pending=queued)
        self._auxv = seen.read(self.pid, "auxv")
        for one in frozen.threads:
            pending = one.tracee.pending(shared=False) if self._signals[one.tid].own else []
            self._taken[one.tid] = thread.Raw(seen.read(one.tid, "status"), one.state, pending)

    @property
    def stat(self) -> bytes:
        """The process's /proc/PID/stat."""
        return self._process.stat

    @property
    def status(self) -> bytes:
        """The first thread's /proc/PID/status."""
        return self._taken[self.pid].status

    def of_process(self) -> pb.task_core_entry:
        """Return the record of what all threads share; the process may run again."""
        return self._ask_process(self._process)

    def of_mm(self) -> pb.mm_entry:
        """Return the record of the address space, without its mappings."""
        stat = procfs.parse_stat(self._process.stat)
        return self._ask_mm(stat, procfs.parse_auxv(self._auxv))

    def of_thread(self, tid: int) -> tuple[State, pb.thread_core_entry, int]:
        """Return what a thread was, its record, and its clear_tid address."""
        taken = self._taken[tid]
        return taken.state, *self._threads[tid].thread(taken)

    def _remote(self, one: FrozenThread) -> Remote:
        signo = quiet_signal(*self._signals[one.tid])
        return Remote(one.tracee, self.pid, self._of_thread(one.tid).slot, signo=signo)


class _Program:
    """What a process executed when we looked: where its code makes system calls for us.

    When it is stopped it may have executed another.
    """

    def __init__(self, pid: int) -> None:
        text = procfs.read(pid, "maps")
        mappings = maps.parse_maps(text)
        self._pid = pid
        self.busy = [(entry.start, entry.end) for entry in mappings]
        self.gadget = _gadget(pid, mappings)
        lines = zip(self.busy, text.splitlines(keepends=True), strict=True)
        places = self.gadget.address, self.gadget.hold
        self._code = [
            line for (start, end), line in lines if any(start <= at < end for at in places)
        ]

    def check(self, text: bytes) -> None:
        """Raise TargetDied if the mappings that it has now are not that program's."""
        if not all(line in text for line in self._code):
            raise TargetDied(
                f"pid {self._pid} ended, or executed another program, while we looked at it"
            )


def _gadget(pid: int, mappings: list[maps.MapsEntry]) -> Gadget:
    """Find system call instructions; in the vDSO, if there is one, in libc, or in any code."""
    code = [entry for entry in mappings if entry.prot & 4 and entry.path != "[vsyscall]"]
    code.sort(key=lambda entry: (entry.path != "[vdso]", "libc" not in entry.path))
    ranges = [(entry.start, entry.end) for entry in code]
    mem = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return find_syscall(mem, ranges)._replace(hold=find_holding(mem, ranges))
    finally:
        os.close(mem)


class Errand:
    """Calls that the first thread of a process makes for us, while all threads are stopped.

    Then none of them forks or executes with the segment in place. A context manager; made while
    the process runs. The rest of the segment, beyond `slot`, is the caller's. Without a sandbox it
    has been seen to that the thread may make the calls.
    """

    def __init__(
        self,
        pid: int,
        guard: Ward | None,
        sandbox: Sandbox | None,
        calls: tuple[NR, ...] = (),
        *,
        room: int = 0,
    ) -> None:
        self.pid, self._guard, self._sandbox, self._calls = pid, guard, sandbox, calls
        if sandbox:
            sandbox.allow(pid, calls)
        self._program = _Program(pid)
        self.gadget = self._program.gadget
        if not guard:
            self.gadget = self.gadget._replace(hold=0)
        status = procfs.status(pid)
        size = 4096 + _LEADER_ROOM + room
        base = hole(size, self._program.busy)
        self.segment = Segment(
            size, base, pid=pid, uid=status.uids[1], gid=status.gids[1], lasting=bool(guard)
        )
        if guard:
            guard.keep(self.segment)
        self.slot = self.segment.slot(_LEADER_ROOM)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.segment.close()

    @contextmanager
    def lent(self, frozen: Frozen | FrozenProcess) -> Iterator[Remote]:
        """Lend the thread, to be infected; when the block ends it is as it was."""
        self._program.check(procfs.read(self.pid, "maps"))
        one, status = frozen.leader, procfs.read(self.pid, "status")
        with refused_unharmed(frozen.threads):
            if self._sandbox:
                self._sandbox.open(one, status, self._calls)
            else:
                seccomp.suspend(one.tracee)
        signo = quiet_signal(*signal_sets(status))
        remote = Remote(one.tracee, self.pid, self.slot, signo=signo)
        with uninterrupted():
            if self._guard:
                self._guard.watch(self.gadget, one.regs, [(remote, one.sigmask)])
            try:
                yield remote
            finally:
                remote.cure(one.regs, one.sigmask, self.gadget)
                if self._guard:
                    self._guard.relax()


def fetch_userfaultfd(
    pid: int,
    pidfd: int,
    features: Feature,
    register: Callable[[Userfaultfd], None],
    guard: Ward,
    sandbox: Sandbox,
) -> dict[int, Wait]:
    """Have a running process open a userfaultfd, take it over, and leave none with it.

    Gives it to register while the process is stopped: its mappings are whole then. Returns the
    waits that stopping the process has interrupted. The call that closes it there is in the batch
    that opens it: without us it would be made all the same.
    Raises KernelError (EPERM: it may not, nor may we for it).
    """
    with (
        uninterrupted(),
        Errand(pid, guard, sandbox, _FETCHING) as errand,
        Frozen(pid) as frozen,
        errand.lent(frozen) as remote,
    ):
        one, batch = frozen.leader, remote.batch()
        fd = batch.call(NR.userfaultfd, _USERFAULTFD_FLAGS)
        api = batch.call(NR.ioctl, fd, UFFDIO_API, batch.data(api_request(features)))
        remote.pause(batch)
        batch.call(NR.close, fd)
        remote.infect(one.regs, one.sigmask, errand.gadget, batch)
        if fd.ret == -errno.EPERM:
            remote.go_on(batch)
            fd, api, batch = _hand_in(remote, one, pidfd, features)
        try:
            check(fd.ret, "userfaultfd", pid=pid)
            check(api.ret, "UFFDIO_API", pid=pid)
            register(Userfaultfd(pidfd_getfd(pidfd, fd.ret)))
            return frozen.waits
        finally:
            remote.go_on(batch)


def _hand_in(
    remote: Remote, one: FrozenThread, pidfd: int, features: Feature
) -> tuple[Call, Call, Batch]:
    """Have a task without privilege open one by /dev/userfaultfd, which we open and send to it.

    What the device gives handles the kernel's own faults, too, whoever asks (Linux 6.1). All that
    the task opens for it is closed by the same batch; without us it receives, and closes, nothing.
    """
    batch = remote.batch()
    pair, message = batch.room(8), _Message(batch)
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    batch.call(NR.socketpair, socket.AF_UNIX, kind, 0, pair, must=True)
    ours, its = (At(pair.address + at) for at in (0, 4))
    remote.pause(batch)
    batch.call(NR.recvmsg, its, message.header, socket.MSG_CMSG_CLOEXEC)
    fd = batch.call(NR.ioctl, message.fd, USERFAULTFD_IOC_NEW, _USERFAULTFD_FLAGS)
    api = batch.call(NR.ioctl, fd, UFFDIO_API, batch.data(api_request(features)))
    remote.pause(batch)
    for each in (fd, message.fd, its, ours):
        batch.call(NR.close, each)
    remote.run(batch, one.regs, one.sigmask)
    _send_device(pidfd_getfd(pidfd, int.from_bytes(pair.bytes[:4], "little")))
    remote.go_on(batch)
    return fd, api, batch


class _Message:
    """Where a task receives one descriptor: header is its struct msghdr, fd where that comes.

    Until it has come there is -1, which no call takes for a descriptor.
    """

    def __init__(self, batch: Batch) -> None:
        space = socket.CMSG_SPACE(4)
        vector = batch.data(_IOVEC.pack(batch.room(1).address, 1))
        control = batch.data(b"\xff" * space)
        self.header = batch.data(_MSGHDR.pack(0, 0, vector.address, 1, control.address, space, 0))
        self.fd = At(control.address + socket.CMSG_LEN(0))


def _send_device(fd: int) -> None:
    """Send /dev/userfaultfd by a socket, which is closed."""
    with socket.socket(fileno=fd) as sock:
        try:
            device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise KernelError(error.errno or 0, "opening /dev/userfaultfd") from error
        try:
            socket.send_fds(sock, [b"."], [device])
        finally:
            os.close(device)
