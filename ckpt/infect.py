# SPDX-License-Identifier: Apache-2.0
"""What a process has to be asked itself: written out before the freeze, answered in one round.

A question is a few system calls in a batch and a function that reads their results, later, when
the process runs again. Every thread answers at the same time as the others.
"""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from struct import Struct
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from ckpt.errors import CkptError, KernelError, TargetDied
from ckpt.freeze import Frozen, FrozenProcess, FrozenThread
from ckpt.guard import Ward
from ckpt.image import pb
from ckpt.interrupt import uninterrupted
from ckpt.kernel import maps, procfs, seccomp
from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import check
from ckpt.kernel.gadget import Gadget, find_holding, find_syscall
from ckpt.kernel.glance import Glance, Seen
from ckpt.kernel.pidfd import pidfd_getfd
from ckpt.kernel.procfs import signal_sets
from ckpt.kernel.remote import At, Batch, Call, Detaching, Remote, Segment, Slot, quiet_signal
from ckpt.kernel.threads import Running, State
from ckpt.kernel.userfaultfd import (
    UFFDIO_API,
    USERFAULTFD_IOC_NEW,
    Feature,
    Userfaultfd,
    api_request,
)
from ckpt.kernel.way import Way
from ckpt.memory import mm
from ckpt.memory.layout import Range, hole
from ckpt.sandbox import Sandbox, refused_unharmed
from ckpt.task import ended, process, thread
from ckpt.task.restart import Wait

_USERFAULTFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK
_FETCHING = (NR.userfaultfd, NR.ioctl, NR.close, NR.socketpair, NR.recvmsg)
_IOVEC, _MSGHDR = Struct("<QQ"), Struct("<QIxxxxQQQQQ")
_LEADER_ROOM, _TIMER_ROOM, _THREAD_ROOM, _SPARE_THREADS = 16 << 10, 512, 2 << 10, 16


class _ThreadQuestions(NamedTuple):
    slot: Slot
    batch: Batch
    thread: thread.Answer
    keyrings: bool


class Questions:
    """The questions to a process, and after a visit the answers; a context manager.

    Built while the process runs. If it changed since (a thread more, another timer), `asked`
    builds anew what that touches. Each process has a segment of its own; of those that share their
    memory none may be where another's is to be: these places are `reserved`.
    """

    def __init__(self, way: Way, guard: Ward, sandbox: Sandbox, reserved: list[Range]) -> None:
        self.way, self._guard, self._sandbox = way, guard, sandbox
        self.pid, self.tid = way
        status = procfs.status(self.tid)
        self._timers = procfs.timers(self.tid)
        tids = [tid for tid in procfs.threads(self.pid) if tid != self.pid]
        self._program = _Program(way)
        self._gadget = self._program.gadget
        threads = (len(tids) + _SPARE_THREADS) * _THREAD_ROOM
        size = 4096 + _LEADER_ROOM + 2 * _TIMER_ROOM * len(self._timers) + threads
        base = hole(size, [*self._program.busy, *reserved])
        self._segment = Segment(
            size, base, pid=self.tid, uid=status.uids[1], gid=status.gids[1], lasting=True
        )
        reserved.append((base, base + self._segment.size))
        guard.keep(self._segment)
        self._threads: dict[int, _ThreadQuestions] = {}
        self._taken: dict[int, thread.Raw] = {}
        self._of_all: tuple[Seen, int, list[bytes]]
        for tid in (self.tid, *tids):
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

    def _of_thread(self, tid: int) -> _ThreadQuestions:
        """Return the questions to a thread; built anew if its filters have become stricter."""
        keyrings = self._sandbox.may_tell_keyrings(tid)
        known = self._threads.get(tid)
        if not known or known.keyrings != keyrings:
            known = self._build(keyrings=keyrings, leader=tid == self.tid)
            self._threads[tid] = known
        return known

    def _build(self, *, keyrings: bool, leader: bool) -> _ThreadQuestions:
        room = _LEADER_ROOM + _TIMER_ROOM * len(self._timers) if leader else _THREAD_ROOM
        slot = self._segment.slot(room)
        batch = Batch(slot)
        if leader:
            self._ask_process = process.ask(self._timers, batch)
            self._ask_mm = mm.ask(batch)
        return _ThreadQuestions(slot, batch, thread.ask(batch, keyrings=keyrings), keyrings)

    def look_ahead(self, glance: Glance) -> None:
        """Open what will be read in the freeze."""
        first = [f"/proc/{self.tid}/{name}" for name in ("maps", "timers")]
        for tid in self._threads:
            first += [f"/proc/{tid}/status", f"/proc/{self.pid}/task/{tid}/children"]
        glance.add(*first, first=True)
        glance.add(*(f"/proc/{self.tid}/{name}" for name in (*process.NAMES, "auxv", "cgroup")))
        if self.way.is_another:
            glance.add(*(f"/proc/{self.pid}/{name}" for name in ended.NAMES))

    def asked(self, frozen: FrozenProcess, seen: Seen) -> "Visit":
        """Return the visit to the process at which all its threads answer.

        seen is what a glance has told of it since it stands still. Raises what is to be refused.
        """
        self._program.check(seen.read(self.tid, "maps"))
        timers = procfs.parse_timers(seen.read(self.tid, "timers"))
        if timers != self._timers:
            self._timers = timers
            del self._threads[self.tid]
        lent: list[Asked] = []
        with refused_unharmed(frozen.threads):
            for one in frozen.threads:
                status = seen.read(one.tid, "status")
                self._sandbox.open(one, status)
                signals = signal_sets(status)
                pending = one.tracee.pending(shared=False) if signals.own else []
                self._taken[one.tid] = thread.Raw(status, one.state, pending)
                slot, batch, *_ = self._of_thread(one.tid)
                remote = Remote(one.tracee, self.pid, slot, signo=quiet_signal(*signals))
                lent.append(Asked(remote, one, batch, homeward=bool(lent)))
        leader = frozen.leader
        queued = leader.tracee.pending(shared=True) if signals.shared else []
        self._of_all = seen, leader.stop_signal, queued
        return Visit(self._guard, self._gadget, lent)

    @cached_property
    def _process(self) -> process.Raw:
        """What the glance has told of what all threads share."""
        seen, stop_signal, queued = self._of_all
        return process.take(self.tid, stop_signal, queued, seen.read)

    @property
    def stat(self) -> bytes:
        """/proc/TID/stat of the thread by which the process is reached."""
        return self._process.stat

    @property
    def status(self) -> bytes:
        """Its /proc/TID/status."""
        return self._taken[self.tid].status

    def of_process(self) -> pb.task_core_entry:
        """Return the record of what all threads share; the process may run again."""
        return self._ask_process(self._process)

    def of_ended(self) -> pb.core_entry:
        """Return the record of a first thread that has ended."""
        raw = ended.Raw(*(self._of_all[0].read(self.pid, name) for name in ended.NAMES))
        return ended.record(raw, self.of_process(), self.of_thread(self.tid)[1])

    def of_mm(self) -> pb.mm_entry:
        """Return the record of the address space, without its mappings."""
        stat = procfs.parse_stat(self._process.stat)
        auxv = self._of_all[0].read(self.tid, "auxv")
        return self._ask_mm(stat, procfs.parse_auxv(auxv))

    def of_thread(self, tid: int) -> tuple[State, pb.thread_core_entry, int]:
        """Return what a thread was, its record, and its clear_tid address."""
        taken = self._taken[tid]
        return taken.state, *self._threads[tid].thread(taken)


class Asked(NamedTuple):
    """A thread that is lent to us, and its batch."""

    remote: Remote
    one: FrozenThread
    batch: Batch
    homeward: bool
    """Whether it goes home as soon as it has answered: all do but the one that leads."""


class Visit:
    """The segment comes into a process, its threads answer, and it goes again.

    Each step is begun, and ended when others have been begun in other processes.
    """

    def __init__(self, guard: Ward | None, gadget: Gadget, asked: list[Asked]) -> None:
        self._guard, self._gadget, self._asked = guard, gadget, asked
        self._leader = asked[0]
        self.remote = asked[0].remote
        self._coming: Running | None = None
        self._going: Detaching | None = None
        self._begun = False

    def begin(self) -> None:
        """Have it guarded: from here on there is something to be put right."""
        if self._guard:
            lent = [(each.remote, each.one.sigmask) for each in self._asked]
            self._guard.watch(self._gadget, self._leader.one.raw_regs, lent)
        self._begun = True

    def come(self) -> None:
        """Begin to have the segment attached."""
        self.begin()
        self._coming = self.remote.attaching(self._leader.one.raw_regs, self._gadget)

    def poke(self) -> None:
        """Have that go on which takes more than one step."""
        if self._coming:
            self._coming.poke()
        if self._going:
            self._going.call.poke()

    def here(self) -> list[Asked]:
        """Wait for the segment; returns the threads that have still to be asked."""
        remote, one, batch, _ = self._leader
        if not self._coming:
            remote.attach(one.regs, one.sigmask, self._gadget, batch)
            return self._asked[1:]
        coming, self._coming = self._coming, None
        remote.attached(coming)
        return self._asked

    def go(self) -> None:
        """Begin to have it detached: all have answered, and are at home but for the first."""
        remote, one, *_ = self._leader
        self._going = remote.detaching(one.regs, one.sigmask, self._gadget)
        remote.slot.segment.remove()

    def end(self) -> None:
        """Wait until all is as it was, wherever this has come to."""
        if not self._begun:
            return
        if self._coming:
            with suppress(CkptError):
                self._coming.result()
        if not self._going:
            self.go()
        going, self._begun = self._going, False
        assert going
        self._leader.remote.left(going.end())
        if self._guard:
            self._guard.relax()


class _Program:
    """What a process executed when we looked: where its code makes system calls for us.

    When it is stopped it may have executed another.
    """

    def __init__(self, way: Way) -> None:
        self._pid, tid = way
        self.text = text = procfs.read(tid, "maps")
        self.mappings = mappings = maps.parse_maps(text)
        self.busy = [(entry.start, entry.end) for entry in mappings]
        self.gadget = _gadget(tid, mappings)
        lines = zip(self.busy, text.splitlines(keepends=True), strict=True)
        places = self.gadget.address, self.gadget.hold
        self._code = [
            line for (start, end), line in lines if any(start <= at < end for at in places)
        ]

    def check(self, text: bytes) -> None:
        """Raise TargetDied if the mappings that it has now are not that program's."""
        if text != self.text and not all(line in text for line in self._code):
            raise TargetDied(
                f"pid {self._pid} ended, or executed another program, while we looked at it"
            )


def _gadget(tid: int, mappings: list[maps.MapsEntry]) -> Gadget:
    """Find system call instructions; in the vDSO, if there is one, in libc, or in any code."""
    code = [entry for entry in mappings if entry.prot & 4 and entry.path != "[vsyscall]"]
    code.sort(key=lambda entry: (entry.path != "[vdso]", "libc" not in entry.path))
    ranges = [(entry.start, entry.end) for entry in code]
    mem = os.open(f"/proc/{tid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return find_syscall(mem, ranges)._replace(hold=find_holding(mem, ranges))
    finally:
        os.close(mem)


class Errand:
    """Calls that a thread of a process, mostly the first, makes for us while all are stopped.

    All that have its memory, of other processes, too: then none of them forks or executes with the
    segment in place. A context manager; made while the process runs. The rest of the segment,
    beyond `slot`, is the caller's. Without a sandbox it has been seen to that the thread may make
    the calls.
    """

    def __init__(
        self,
        way: Way,
        guard: Ward | None,
        sandbox: Sandbox | None,
        calls: tuple[NR, ...] = (),
        *,
        room: int = 0,
    ) -> None:
        self.pid, tid = self._way = way
        self._guard, self._sandbox, self._calls = guard, sandbox, calls
        if sandbox:
            sandbox.allow(tid, calls)
        self._program = _Program(way)
        self.gadget = self._program.gadget
        if not guard:
            self.gadget = self.gadget._replace(hold=0)
        status = procfs.status(tid)
        size = 4096 + _LEADER_ROOM + room
        base = hole(size, self._program.busy)
        self.segment = Segment(
            size, base, pid=tid, uid=status.uids[1], gid=status.gids[1], lasting=bool(guard)
        )
        if guard:
            guard.keep(self.segment)
        self.slot = self.segment.slot(_LEADER_ROOM)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.segment.close()

    @contextmanager
    def lent(self, frozen: Frozen | FrozenProcess, seen: Seen | None = None) -> Iterator[Visit]:
        """Lend the thread, to be infected; when the block ends, or before, it goes home.

        seen is what a glance has told of the process since it stands still.
        """
        seen, one = seen or Seen(), frozen.leader
        self._program.check(seen.read(one.tid, "maps"))
        status = seen.read(one.tid, "status")
        with refused_unharmed(frozen.threads):
            if self._sandbox:
                self._sandbox.open(one, status, self._calls)
            else:
                seccomp.suspend(one.tracee)
        signo = quiet_signal(*signal_sets(status))
        remote = Remote(one.tracee, self.pid, self.slot, signo=signo)
        visit = Visit(
            self._guard, self.gadget, [Asked(remote, one, remote.batch(), homeward=False)]
        )
        with uninterrupted():
            visit.begin()
            try:
                yield visit
            finally:
                visit.end()

    def mappings(self, seen: Seen) -> list[maps.MapsEntry]:
        """Return the mappings that a glance has seen: most likely those that there were before."""
        text = seen.read(self._way.tid, "maps")
        return self._program.mappings if text == self._program.text else maps.parse_maps(text)


class Registrar(Protocol):
    """Who wants a userfaultfd."""

    def plan(self, mappings: list[maps.MapsEntry]) -> None:
        """Take note of the mappings of the process, as they were and as they are."""

    def register(self, uffd: Userfaultfd) -> None:
        """Have it; the process is stopped, and its mappings are those that were told last."""


def fetch_userfaultfd(
    way: Way,
    pidfd: int,
    features: Feature,
    registrar: Registrar,
    guard: Ward,
    sandbox: Sandbox,
    sharers: list[int],
) -> dict[int, Wait]:
    """Have a running process open a userfaultfd, take it over, and leave none with it.

    The registrar has it while the process is stopped, and the sharers, who have its memory, too
    (parents first): its mappings are whole then. Returns the waits that stopping them has
    interrupted. The call that closes it there is in the batch that opens it: without us it would be
    made all the same.
    Raises KernelError (EPERM: it may not, nor may we for it).
    """
    with (
        uninterrupted(),
        Glance(aside=True) as glance,
        Errand(way, guard, sandbox, _FETCHING) as errand,
    ):
        glance.add(f"/proc/{way.tid}/maps", first=True)
        glance.add(*(f"/proc/{one}/status" for one in (*way, *sharers)), first=True)
        known = errand.mappings(Seen())
        registrar.plan(known)
        with Frozen(way.pid, [[one] for one in sharers], glance=glance) as frozen:
            seen = frozen.seen()
            with errand.lent(frozen, seen) as visit:
                with ExitStack() as held:
                    uffd = _fetch(visit, frozen.leader, errand.gadget, pidfd, features)
                    held.callback(uffd.close)
                    visit.go()
                    now = errand.mappings(seen)
                    if now is not known:
                        registrar.plan(now)
                    held.pop_all()
                registrar.register(uffd)
            return frozen.waits


def _fetch(
    visit: Visit, one: FrozenThread, gadget: Gadget, pidfd: int, features: Feature
) -> Userfaultfd:
    """Have a thread open a userfaultfd, and close it when we have it."""
    remote = visit.remote
    batch = remote.batch()
    fd = batch.call(NR.userfaultfd, _USERFAULTFD_FLAGS)
    api = batch.call(NR.ioctl, fd, UFFDIO_API, batch.data(api_request(features)))
    remote.pause(batch)
    batch.call(NR.close, fd)
    remote.infect(one.regs, one.sigmask, gadget, batch)
    if fd.ret == -errno.EPERM:
        remote.go_on(batch)
        fd, api, batch = _hand_in(remote, one, pidfd, features)
    try:
        check(fd.ret, "userfaultfd", pid=remote.tgid)
        check(api.ret, "UFFDIO_API", pid=remote.tgid)
        return Userfaultfd(pidfd_getfd(pidfd, fd.ret))
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
