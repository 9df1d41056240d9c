# SPDX-License-Identifier: Apache-2.0
"""A second process of ours that puts targets right if we are killed while they are lent to us.

A thread whose tracer dies runs on, and the stub takes it home by itself (`kernel.remote`). What
it cannot do, the guard does: take the segment away, unblock the signals of a thread that was not
yet in the stub, bring home one that was just detaching. It waits for our end, and for nothing
else, in a session of its own; all it has to know is in memory that we share, so that watching
over a freeze costs the freeze nothing. It imports nothing before it is needed.
"""

import mmap
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from struct import Struct
from typing import NamedTuple, Self

from ckpt.errors import CkptError, KernelError, NoSuchTask, NotPermitted, TargetDied
from ckpt.freeze import Frozen, FrozenThread
from ckpt.kernel import maps, mem, seccomp, sysvipc
from ckpt.kernel.arch import NO_SYSCALL, Regs, home_of, is_held
from ckpt.kernel.files import anonymous_file
from ckpt.kernel.gadget import Gadget
from ckpt.kernel.nsfs import entered
from ckpt.kernel.pidfd import has_ended, pidfd_getfd, pidfd_of, pidfd_open
from ckpt.kernel.remote import COUNT, LEFT, TID, Detaching, Remote, Segment
from ckpt.kernel.userfaultfd import Userfaultfd
from ckpt.kernel.way import way_to

_ROOM = 4 << 20  # of a nameless file: it takes what is written
_SEGMENT = Struct("<qq")  # 1 + id, whether of another IPC namespace than ours
_SEGMENTS = 8
_HEAD, _THREAD = Struct("<6Q"), Struct("<4Q")  # base, size, Gadget, number of threads; a Lent
_NOTES = _SEGMENT.size * _SEGMENTS
_PROMISE = Struct("<6q")  # whether it is to be kept; descriptor, inode, level, option, value
_PROMISES = _ROOM // 2
_REGS_SIZE = 27 * 8
_PATIENCE, _TRUST, _PAUSE_MS = 10.0, 0.5, 1

# It starts within 8 ms, beside us, and imports our modules only when it has something to do.
# To be killed is not to be gone: SIGKILL is pending (bit 9) while we wait for a lock in the kernel,
# which a thread of a process may hold that waits for us, with our userfaultfd, to answer it.
_PROGRAM = """
import select
import _socket
told = _socket.socket(fileno={told})
poll = select.poll()
poll.register({parent}, select.POLLIN)
poll.register(told, select.POLLIN)
wards = []
def take():
    try:
        data, fds, _, _ = told.recvmsg(4, 64, 0x40)
    except OSError:
        return False
    for _, _, fds in fds:
        wards.append((int.from_bytes(data, "little"), *memoryview(fds).cast("i")))
    return bool(data)
def killed():
    try:
        with open("/proc/{ours}/status") as status:
            pending = [line.split()[1] for line in status if line.startswith("SigPnd:")]
    except OSError:
        return True
    return int(pending[0], 16) & 0x100
while {parent} not in dict(poll.poll(1000)) and not killed():
    while take():
        pass
while take():
    pass
import sys
sys.path[:] = {path!r}
from ckpt.guard import put_right
put_right(wards, {ours}, {parent})
"""


class Lent(NamedTuple):
    """A thread that is lent to us: its signal mask, ours while it is, and its slot's address."""

    tid: int
    sigmask: int
    blocked: int
    slot: int


class Notes(NamedTuple):
    """What is to be put right in a process: where the segment is, and where its threads belong."""

    base: int
    size: int
    gadget: Gadget
    leader: Regs
    threads: dict[int, Lent]

    @classmethod
    def read(cls, memory: mmap.mmap) -> "Notes | None":
        """Read them; None if there is nothing to do."""
        base, size, address, risen, hold, count = _HEAD.unpack_from(memory, _NOTES)
        at = _NOTES + _HEAD.size
        leader = Regs.unpack(memory[at : at + _REGS_SIZE])
        at += _REGS_SIZE
        threads = [Lent(*_THREAD.unpack_from(memory, at + i * _THREAD.size)) for i in range(count)]
        gadget = Gadget(address, risen, hold)
        return cls(base, size, gadget, leader, {one.tid: one for one in threads}) if base else None


class Guard:
    """The guard; a context manager around all that is done to its wards."""

    def __init__(self) -> None:
        self._process = 0
        self._socket, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def __enter__(self) -> Self:
        parent = pidfd_open(os.getpid())
        passed = (parent, self._theirs.fileno())
        program = _PROGRAM.format(
            ours=os.getpid(), parent=parent, path=sys.path, told=self._theirs.fileno()
        )
        null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]
        argv = [sys.executable, "-IS", "-c", program]
        for fd in passed:
            os.set_inheritable(fd, True)
        try:
            self._process = os.posix_spawn(argv[0], argv, {}, file_actions=null, setsid=True)
        except OSError as error:
            raise KernelError(error.errno or 0, f"starting {argv[0]}") from error
        finally:
            os.close(parent)
            self._theirs.close()
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._process, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self._process, 0)
        self._socket.close()

    def ward(self, pid: int) -> "Ward":
        """Have it guard a process from now on. Raises NoSuchTask."""
        pidfd = pidfd_open(pid)
        ward = Ward()
        try:
            told = [pid.to_bytes(4, "little")]
            socket.send_fds(self._socket, told, [pidfd, ward.file])
        except OSError as error:
            ward.close()
            raise KernelError(error.errno or 0, "telling the guard of a process") from error
        finally:
            os.close(pidfd)
        return ward


class Ward:
    """What the guard has to know of one process, in memory that it shares with us."""

    def __init__(self) -> None:
        self._kept = self._promised = 0
        self.file = anonymous_file(_ROOM)  # which RLIMIT_FSIZE, that may be ours, does not limit
        self._memory = mmap.mmap(self.file, _ROOM)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it; the guard has its own copy."""
        self._memory.close()
        os.close(self.file)

    def watch(self, gadget: Gadget, leader: bytes, lent: list[tuple[Remote, int]]) -> None:
        """Take down what is to be put right: remotes with their own signal masks, leader first.

        leader are the registers of that. It counts from when the base is there.
        """
        segment, memory, at = lent[0][0].slot.segment, self._memory, _NOTES + _HEAD.size
        threads = [
            _THREAD.pack(remote.tid, sigmask, remote.blocked, remote.slot.address)
            for remote, sigmask in lent
        ]
        notes = home_of(leader) + b"".join(threads)
        memory[at : at + len(notes)] = notes
        _HEAD.pack_into(memory, _NOTES, 0, segment.size, *gadget, len(threads))
        memory[_NOTES : _NOTES + 8] = segment.base.to_bytes(8, "little")

    def relax(self) -> None:
        """All is as it was."""
        self._memory[_NOTES : _NOTES + 8] = bytes(8)

    def keep(self, segment: Segment) -> None:
        """Have it removed if we die before a thread of the process has it."""
        at = self._kept % _SEGMENTS * _SEGMENT.size
        _SEGMENT.pack_into(self._memory, at, 1 + segment.id, segment.elsewhere)
        self._kept += 1

    def promise(
        self, number: int, inode: int, level: int, option: int, value: int
    ) -> Callable[[], None]:
        """Have a socket's option set if we die; returns what is to be called when it is as it was.

        A socket option is of the open file: whatever is changed on our copy is changed there.
        """
        at = _PROMISES + self._promised * _PROMISE.size
        self._promised += 1
        _PROMISE.pack_into(self._memory, at, 1, number, inode, level, option, value)

        def kept() -> None:
            self._memory[at] = 0

        return kept


# --- in the guard


def put_right(wards: list[tuple[int, int, int]], ours: int, parent: int) -> None:
    """Put processes right, as soon as that can be: our tracing of them has ended with us.

    Each is a pid, a pidfd of it, and the file that its notes are in; `ours` is the process that
    has been killed, parent a pidfd of it.
    """
    while not has_ended(parent, _PAUSE_MS):
        _let_go([pid for pid, _, _ in wards], ours, parent)
    for pid, pidfd, file in wards:
        with closing(mmap.mmap(file, _ROOM)) as memory, suppress(CkptError, OSError):
            _put_one_right(pid, pidfd, memory)


def _put_one_right(pid: int, pidfd: int, memory: mmap.mmap) -> None:
    try:
        _keep_promises(pid, pidfd, memory)
        _put_threads_right(pid, pidfd, Notes.read(memory))
    finally:
        for at in range(0, _NOTES, _SEGMENT.size):
            number, elsewhere = _SEGMENT.unpack_from(memory, at)
            if number:
                _remove(number - 1, pid if elsewhere else os.getpid())


def _let_go(pids: list[int], ours: int, parent: int) -> None:
    """Have nobody wait any more for the userfaultfds of a process that was killed."""
    with suppress(CkptError, OSError):
        for number in os.listdir(f"/proc/{ours}/fd"):
            if os.readlink(f"/proc/{ours}/fd/{number}") == "anon_inode:[userfaultfd]":
                with closing(Userfaultfd(pidfd_getfd(parent, int(number)))) as uffd:
                    _unregister(uffd, pids)
                    uffd.wake_all()


def _unregister(uffd: Userfaultfd, pids: list[int]) -> None:
    """Unregister what is mapped in any process: it is of one of them, nobody knows which."""
    for pid in pids:
        with suppress(CkptError, OSError):
            for entry in maps.maps(way_to(pid).tid):
                with suppress(KernelError):
                    uffd.unregister(entry.start, entry.end)


def _keep_promises(pid: int, pidfd: int, memory: mmap.mmap) -> None:
    """Set the options of sockets that are still open under the same number."""
    way = way_to(pid)
    if not way.is_another:
        _set_options(pidfd, memory)
        return
    with suppress(CkptError):  # it has ended by now
        theirs = pidfd_of(way)
        try:
            _set_options(theirs, memory)
        finally:
            os.close(theirs)


def _set_options(pidfd: int, memory: mmap.mmap) -> None:
    for at in range(_PROMISES, _ROOM - _PROMISE.size, _PROMISE.size):
        wanted, number, inode, level, option, value = _PROMISE.unpack_from(memory, at)
        if not inode:
            return
        if wanted:
            with suppress(CkptError, OSError):
                _set_option(pidfd_getfd(pidfd, number), inode, level, option, value)


def _set_option(fd: int, inode: int, level: int, option: int, value: int) -> None:
    with socket.socket(fileno=fd) as sock:
        if os.fstat(fd).st_ino == inode:
            sock.setsockopt(level, option, value)


def _remove(shmid: int, pid: int) -> None:
    with suppress(CkptError), entered("ipc", pid):
        sysvipc.remove("shm", shmid)


def _put_threads_right(pid: int, pidfd: int, notes: Notes | None) -> None:
    begun = time.monotonic()
    while notes and not has_ended(pidfd, _PAUSE_MS) and time.monotonic() < begun + _PATIENCE:
        try:
            with Frozen(pid) as frozen:
                if _put_right(frozen, notes, trust=time.monotonic() < begun + _TRUST):
                    return
        except NotPermitted:
            continue  # somebody else traces it just now
        except (NoSuchTask, TargetDied):
            return


def _put_right(frozen: Frozen, notes: Notes, *, trust: bool) -> bool:
    """Do what can be done at once; False if threads are still on their way home."""
    # Whom the notes name first: it may have been led by another thread than it is by now.
    first = next(iter(notes.threads))
    leader = next((one for one in frozen.threads if one.tid == first), frozen.leader)
    regs = leader.regs
    if notes.gadget.hold and is_held(regs, notes.gadget.hold):
        regs = notes.leader
        leader.tracee.set_regs(regs)
    for one in frozen.threads:
        away = _is_away(notes, regs if one is leader else one.regs)
        if away or (trust and _is_in_stub(leader.tid, one.tid, notes)):
            return False
    for one in frozen.threads:
        lent = notes.threads.get(one.tid)
        if lent and one.sigmask == lent.blocked:
            one.tracee.set_sigmask(lent.sigmask)
    if any(entry.start == notes.base and _is_ours(entry) for entry in maps.maps(leader.tid)):
        _detach(leader, regs, notes)
    return True


def _is_ours(entry: maps.MapsEntry) -> bool:
    return entry.path.startswith("/SYSV")


def _is_away(notes: Notes, regs: Regs) -> bool:
    """Say whether a thread is in the segment, or about to enter it."""
    return any(notes.base <= at < notes.base + notes.size for at in (regs.ip, regs.sp))


def _is_in_stub(leader: int, tid: int, notes: Notes) -> bool:
    """Say whether it has set out and not come back: it may be in a signal handler on the way."""
    lent = notes.threads.get(tid)
    if not lent:
        return False
    with suppress(KernelError):
        there = mem.read(leader, lent.slot + TID, 8), mem.read(leader, lent.slot + COUNT, 8)
        return there[0] == tid.to_bytes(8, "little") and there[1] != LEFT.to_bytes(8, "little")
    return False


def _detach(leader: FrozenThread, regs: Regs, notes: Notes) -> None:
    seccomp.suspend(leader.tracee)
    sigmask = leader.tracee.sigmask()
    Detaching(leader.tracee, notes.base, regs, sigmask, notes.gadget, NO_SYSCALL).end()
