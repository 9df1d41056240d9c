# SPDX-License-Identifier: Apache-2.0
"""The open files of a tree: fetched and recorded while it runs, looked at again in the freeze.

Each open file is fetched once by pidfd_getfd; descriptors that share one (dup) are found by kcmp,
and the first kind that claims a file dumps it. Nearly all that a kind writes can be written ahead
of the freeze. There it only takes to see that the same descriptors still lead to the same open
files, that fdinfo says the same of them, and that their kinds see no change: by a glance, which
asks the kernel everything in one go (`FileKind.glimpse`), or by asking the kind (`state`). What
did change is dumped again, unless it is what fdinfo says and the kind can put into its message
when the target runs again (`late`).
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from itertools import zip_longest
from struct import Struct
from typing import Any, NamedTuple, Self

from ckpt.errors import CkptError, KernelError, NoSuchTask, Unsupported
from ckpt.files import KINDS, locks
from ckpt.files.claim import dump_file, kind_of
from ckpt.files.descriptors import Descriptor, groups, look
from ckpt.files.kind import F_GETOWN_EX, Dump, FileKind, Held, NotNow, OpenFile
from ckpt.image import pb
from ckpt.kernel import procfs
from ckpt.kernel.arch import NR
from ckpt.kernel.fdinfo import parse_fdinfo
from ckpt.kernel.files import as_many_as_we_may
from ckpt.kernel.glance import NOTHING, Glance, Part, Seen
from ckpt.kernel.kcmp import Kcmp, same_files
from ckpt.kernel.pidfd import pidfd_getfd
from ckpt.kernel.way import Way
from ckpt.options import DumpOptions

FD_CLOEXEC = fcntl.FD_CLOEXEC
_UNKNOWN = object()
_NO_OWNER = bytes(8)
_OURS = 256  # descriptors that we need for other things, more than enough
_PATIENCE_S, _PAUSE_S = 1.0, 0.002
_DIRENT = 32  # bytes of a struct linux_dirent64 with a number for its name
_DIRENT_HEAD = Struct("<QqHB")  # ino, off, reclen, type; then the name


class Place(NamedTuple):
    """Where an open file is: a process, by the thread it is reached by, and a number there."""

    tid: int
    number: int

    @property
    def info(self) -> str:
        """Its fdinfo, below /proc/TID."""
        return f"fdinfo/{self.number}"


class _Table(NamedTuple):
    """A table of descriptors: a process that has it, a pidfd for it, and the open /proc/TID/fd."""

    pid: int
    tid: int
    pidfd: int
    directory: int


class Opened:
    """One open file: our copy of it, where it is, and what was dumped ahead."""

    __slots__ = (
        "fd", "file", "file_id", "glimpse", "has_owner", "held", "kind", "link", "places", "seen",
        "told",
    )  # fmt: skip

    def __init__(self, fd: int, link: str) -> None:
        self.fd, self.link = fd, link
        self.file_id = 0
        self.places: list[Place] = []
        self.kind: type[FileKind] | None = None
        self.file: OpenFile | None = None
        self.has_owner = False
        self.held: Held | None = None
        self.seen: object = None
        self.glimpse = NOTHING
        self.told = False
        """Whether the glimpse tells of all changes but those that fdinfo shows."""

    @property
    def looks_around(self) -> bool:
        """Whether its record depends on which other files are open."""
        return bool(self.kind and self.kind.looks_around)

    def close(self) -> None:
        """Let go of our copy."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class OpenFiles:
    """All open files of a tree, a context manager around our copies of them.

    So we have as many as it has, and twice as many if we may.
    """

    def __init__(self, kinds: tuple[type[FileKind], ...] = ()) -> None:
        self._kinds = (*kinds, *KINDS)
        self._most = as_many_as_we_may()
        self._tables: dict[int, _Table] = {}
        self._parts: dict[int, Part] = {}
        self._by_place: dict[Place, Opened] = {}
        self._sorted: list[Opened] | None = None
        self._links: frozenset[str] | None = None
        self._seen = self.ahead = Seen()
        """What the last glance has told, and the one before all was dumped ahead."""
        self._infos: dict[str, Opened] = {}
        self._everything = NOTHING
        self._gone: list[Opened] = []
        self._agrees = False
        self._direct, self._unsure = False, list[Opened]()
        self._carried: dict[int, Opened] = {}  # by our copies of their descriptors

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for tid in [*self._tables]:
            self.leave_out(tid)
        self._drop_carried()

    def close_copies(self) -> None:
        """Let go of all copies: what was dumped of the files is known without."""
        for one in self._all():
            one.close()
        self._drop_carried()

    def add(self, way: Way, pidfd: int) -> None:
        """Take in the table of a process, which is not another's as well."""
        pid, tid = way
        try:
            directory = os.open(f"/proc/{tid}/fd", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NoSuchTask(f"pid {pid}: it has ended") from None
        except OSError as error:
            raise KernelError(error.errno or 0, f"opening /proc/{tid}/fd") from error
        self._tables[tid] = _Table(pid, tid, pidfd, directory)

    def leave_out(self, tid: int) -> None:
        """Forget the table of a process, if it was taken in."""
        table = self._tables.pop(tid, None)
        if table:
            os.close(table.directory)
            self._parts.pop(tid, None)
            for place in [place for place in self._by_place if place.tid == tid]:
                self._forget(place)

    def _all(self) -> list[Opened]:
        """Return the open files, each once, by their lowest numbers."""
        if self._sorted is None:
            places = sorted(self._by_place)
            self._sorted = list(dict.fromkeys(self._by_place[place] for place in places))
        return self._sorted

    # --- which there are

    def look(self) -> bool:
        """Fetch what is new and let go of what is closed; say whether anything was."""
        changed = [self._look(table) for table in self._tables.values()]
        return any(changed)

    def _look(self, table: _Table) -> bool:
        tid = table.tid
        numbers = procfs.fds(tid)
        before = {place.number: one for place, one in self._by_place.items() if place.tid == tid}
        known = [number for number in numbers if number in before]
        same = same_files(tid, known, [before[number].fd for number in known])
        kept = {number for number, yes in zip(known, same, strict=True) if yes}
        if len(kept) == len(numbers) == len(before):
            return False
        for number in [number for number in before if number not in kept]:
            self._forget(Place(tid, number))
        self._fetch(table, [number for number in numbers if number not in kept])
        return True

    def _all_links(self) -> frozenset[str]:
        """Return where all of them lead, in flight or not."""
        if self._links is None:
            everything = (*self._by_place.values(), *self._carried.values())
            self._links = frozenset(one.link for one in everything)
        return self._links

    def _forget(self, place: Place) -> None:
        one = self._by_place.pop(place)
        self._sorted = self._links = None
        one.places.remove(place)
        if not one.places:
            one.close()
            self._gone.append(one)

    def _fetch(self, table: _Table, numbers: list[int]) -> None:
        """Take copies of descriptors, one for each open file; what closes meanwhile is left out."""
        alike: dict[str, list[Opened]] = {}
        for known in self._all():
            alike.setdefault(known.link, []).append(known)
        for group in groups(table.tid, look(table.tid, numbers)):
            one = self._known(table, group[0], alike) or self._copy(table, group[0])
            if one:
                new = [Place(table.tid, descriptor.number) for descriptor in group]
                one.places = sorted([*one.places, *new])
                self._by_place.update(dict.fromkeys(new, one))
                self._sorted = self._links = None

    def _copy(self, table: _Table, new: Descriptor) -> Opened | None:
        """Take a copy of a descriptor; None if it is closed by now."""
        try:
            fd = pidfd_getfd(table.pidfd, new.number)
        except KernelError as error:
            if error.errno == errno.EMFILE:
                error.hint = f"pid {table.pid} has more files open than we may: raise `ulimit -Hn`"
            if error.errno != errno.EBADF:
                raise
            return None
        return Opened(fd, os.readlink(f"/proc/self/fd/{fd}"))  # the number may be another's by now

    def _known(
        self, table: _Table, new: Descriptor, alike: dict[str, list[Opened]]
    ) -> Opened | None:
        """Return the open file that a new descriptor shares with an old one."""
        old = alike.get(new.link, [])
        same = same_files(table.tid, [new.number] * len(old), [one.fd for one in old])
        return next((one for one, yes in zip(old, same, strict=True) if yes), None)

    # --- what they are

    def check(self, options: DumpOptions) -> None:
        """Refuse what cannot be dumped, while the target still runs. Raises Unsupported.

        What is likely to be over in a moment is given a second; and who opens and closes files
        while we look may seem to have what it has not.
        """
        deadline = time.monotonic() + _PATIENCE_S
        try:
            while not self._is_fine(options, final=time.monotonic() >= deadline):
                time.sleep(_PAUSE_S)
        finally:
            for place in [*self._by_place]:
                self._forget(place)

    def _is_fine(self, options: DumpOptions, *, final: bool) -> bool:
        """Say whether all can be dumped; raise what is wrong if it stays so, or this is final."""
        self.look()
        try:
            self._check(options)
        except Unsupported as error:
            if final or not (isinstance(error, NotNow) or self.look()):
                raise
            return False
        return True

    def _check(self, options: DumpOptions) -> None:
        try:
            self._look_inside(self._all(), None)
            for one in (*self._all(), *self._in_flight()):
                file = self._file(one, procfs.read)
                if file:
                    kind_of(file, self._kinds).check(file, options)
                    locks.check(file, options)
        finally:
            self._drop_carried()

    def _file(self, one: Opened, read: Callable[[int, str], bytes]) -> OpenFile | None:
        """Return what a kind is to see of an open file; None if it is closed by now."""
        place = one.places[0] if one.places else Place(next(iter(self._tables)), -1)
        try:
            info = parse_fdinfo(read(place.tid, place.info) if one.places else _own_fdinfo(one.fd))
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            return None
        link = one.link
        if link.startswith("/"):  # it may have been renamed
            link = os.readlink(f"/proc/self/fd/{one.fd}")
        st = os.fstat(one.fd)
        pids = tuple(table.pid for table in self._tables.values())
        tid, number = place
        pid = self._tables[tid].pid
        links = self._all_links()
        return OpenFile(one.fd, pid, number, one.file_id, st, link, info, links, pids, tid)

    # --- in flight

    def _look_inside(self, these: list[Opened], out: Dump | None) -> bool:
        """Find the files in flight in sockets, and in sockets in flight; say if there are any."""
        left = list(these)
        while left:
            one = left.pop()
            if not one.link.startswith("socket:") or (one.kind and "carried" not in vars(one.kind)):
                continue
            if file := self._file(one, procfs.read):
                left += self._carry(kind_of(file, self._kinds).carried(file, out))
        return bool(self._carried)

    def _carry(self, fds: Iterable[int]) -> list[Opened]:
        """Take note of files in flight; returns those that are not open elsewhere."""
        copies = {fd: Opened(fd, os.readlink(f"/proc/self/fd/{fd}")) for fd in fds}
        self._carried.update(copies)
        self._links = None
        new = []
        for fd, one in copies.items():
            if same := self._same(one):
                self._carried[fd] = same
            else:
                _check_carried(one, next(iter(self._tables.values())).pid)
                new.append(one)
        return new

    def _same(self, new: Opened) -> Opened | None:
        """Return what else leads to an open file in flight."""
        alike = [one for one in (*self._all(), *self._in_flight()) if one.link == new.link]
        same = same_files(os.getpid(), [new.fd] * len(alike), [one.fd for one in alike])
        found = zip(alike, same, strict=True)
        return next((one for one, yes in found if yes and one is not new), None)

    def _in_flight(self) -> list[Opened]:
        """Return the open files that are nothing but in flight."""
        return [one for fd, one in self._carried.items() if one.fd == fd]

    def _drop_carried(self) -> None:
        for fd in self._carried:
            os.close(fd)
        self._carried.clear()
        self._links = None

    # --- ahead of the freeze

    def look_ahead(self, out: Dump, glance: Glance) -> None:
        """Dump what we know of and need not wait for; glance is what will be seen in the freeze."""
        begin = glance.mark()
        if 2 * len(self._by_place) + _OURS < self._most:
            glance.add(*(f"/proc/{place.tid}/{place.info}" for place in self._by_place))
        for table in self._tables.values():
            self._glimpse_table(table, glance)
        for one in self._all():
            one.file_id = out.next_id()
            with suppress(CkptError):  # it is closed by now, or to be refused in the freeze
                self._glimpse(one, glance)
        self._everything = glance.since(begin)
        self.ahead = self._seen = glance.look()
        self._agrees = all(map(self._agrees_with, self._parts))
        self._direct = any(map(_is_direct, self._all()))
        for one in self._all():
            with suppress(CkptError):  # likewise; or it has what passes through it just now
                self._dump_ahead(one, out)

    def _glimpse_table(self, table: _Table, glance: Glance) -> None:
        """Have the glance see which descriptors there are, and that they lead where they did."""
        begin = glance.mark()
        mine = [(place, one) for place, one in self._by_place.items() if place.tid == table.tid]
        size = _DIRENT * (len(mine) + _OURS)
        glance.call(NR.lseek, table.directory, 0, os.SEEK_SET)
        glance.call(NR.getdents64, table.directory, glance.out(size), size)
        for (tid, number), one in mine:
            glance.call(NR.kcmp, tid, os.getpid(), Kcmp.FILE, number, one.fd)
        self._parts[table.tid] = glance.since(begin)

    def _agrees_with(self, tid: int) -> bool:
        """Say whether the glance has seen the descriptors that we know of, and no other.

        It came after we looked; and what it sees again in the freeze would be taken for known.
        """
        (_, size, *others), answers = self.ahead.answers(self._parts[tid])
        numbers, at = set(), 0
        while at < size:
            length = _DIRENT_HEAD.unpack_from(answers, at)[2]
            numbers.add(answers[at + _DIRENT_HEAD.size : at + length].split(b"\0")[0])
            at += length
        known = {b"%d" % place.number for place in self._by_place if place.tid == tid}
        return not any(others) and numbers - {b".", b".."} == known

    def _glimpse(self, one: Opened, glance: Glance) -> None:
        file = self._file(one, procfs.read)
        if not file:
            return
        one.kind, one.file = kind_of(file, self._kinds), file
        one.has_owner = not file.flags & os.O_PATH
        begin = glance.mark()
        if one.has_owner:
            glance.call(NR.fcntl, one.fd, F_GETOWN_EX, glance.out(len(_NO_OWNER)))
        one.told = one.kind.glimpse(file, glance)
        one.glimpse = glance.since(begin)

    def _dump_ahead(self, one: Opened, out: Dump) -> None:
        if not one.file or not one.kind:
            return
        one.seen = self._see(one)
        if one.seen is _UNKNOWN:
            return
        for place in one.places:  # all of them: as of now
            self._info(place)
        self._infos |= {f"/proc/{place.tid}/{place.info}": one for place in one.places}
        file = one.file._replace(info=parse_fdinfo(self._info(one.places[0])))
        with out.held() as held:
            dump_file(one.kind, file, out, partial(self._update, one))
            self._dump_locks(one, file, out)
        one.held = held

    def _dump_locks(self, one: Opened, file: OpenFile, out: Dump) -> None:
        """Write its locks; those that belong to processes, of each that has the file."""
        locks.dump(file, out)
        first = {place.tid: place for place in reversed(one.places)}
        for place in first.values():
            if place != one.places[0]:
                info = parse_fdinfo(self._info(place))
                pid = self._tables[place.tid].pid
                locks.dump_own(file._replace(pid=pid, number=place.number, info=info), out)

    def _update(self, one: Opened, message: Any) -> None:
        """Put what may still have changed into a message, when the target runs again."""
        if one.kind and one.kind.late:
            one.kind.update(message, parse_fdinfo(self._info(one.places[0])))

    def _see(self, one: Opened) -> object:
        """Return all of a file that may change, or that we have to see it when it is frozen."""
        assert one.kind and one.file
        state = one.kind.state(one.file)
        if state is None:
            return _UNKNOWN
        owner = fcntl.fcntl(one.fd, F_GETOWN_EX, _NO_OWNER) if one.has_owner else b""
        return [*one.places], owner, state

    def _info(self, place: Place) -> bytes:
        return self._seen.read(place.tid, place.info)

    # --- in the freeze

    def take(self, out: Dump, seen: Seen) -> None:
        """See to it that all records are as of now; seen is what a glance has just told."""
        self._seen = seen
        known = self._agrees and len(self._parts) == len(self._tables)
        same = known and seen.same_answers(self.ahead, self._everything)
        changed = not (same or (known and self._is_same_table())) and self.look()
        if changed:
            self._see_what_changed()
        out.carried_id = lambda fd: self._id(self._carried[fd], out)
        everything = self._all()
        suspects = self._suspects(same)
        stale = [one for one in suspects if not self._is_same(one, changed)]
        _drop(stale + [one for one in self._gone if one.held], everything)
        if self._look_inside([one for one in everything if not one.held], out):
            _drop([one for one in everything if one.held and one.looks_around], everything)
        kept = [one.held for one in everything if one.held]
        self._unsure = [*suspects, *(one for one in everything if not one.held)]
        out.later(lambda: _keep(kept))
        for one in (*everything, *self._in_flight()):
            if not one.held:
                self._dump_now(one, out)

    def _see_what_changed(self) -> None:
        """Read of fdinfo what the glance has not, before it is too late.

        And what it has seen too early: what is closed was in epoll sets still, for our sake.
        """
        for place, one in self._by_place.items():
            if not one.held or one.looks_around:
                self._seen.look_again(place.tid, place.info)
            else:
                self._info(place)

    def _is_same_table(self) -> bool:
        """Say whether no descriptor has come or gone, nor leads elsewhere."""
        now, ahead = self._seen, self.ahead
        return all(now.same_answers(ahead, part) for part in self._parts.values())

    def _suspects(self, same: bool) -> list[Opened]:
        """Return those dumped ahead of which a glance does not show that they are the same.

        same says whether all its calls have answered as they had.
        """
        now, ahead = self._seen, self.ahead
        held = [one for one in self._all() if one.held]
        if not same:
            return held
        paths = now.differing(ahead, self._everything)
        different = {self._infos[path] for path in paths if path in self._infos}
        return [one for one in held if one in different or not one.told]

    def _is_same(self, one: Opened, changed: bool) -> bool:
        """Say whether what was dumped ahead is still true; changed if descriptors came or went."""
        assert one.kind
        if changed and one.looks_around:
            return False
        glimpse = self._seen.same_answers(self.ahead, one.glimpse)
        if (changed or not one.told or not glimpse) and self._see(one) != one.seen:
            return False
        return all(self._is_same_info(place, one.kind.late) for place in one.places)

    def _is_same_info(self, place: Place, late: tuple[bytes, ...]) -> bool:
        """Say whether fdinfo says the same of a descriptor, but for what can be put in late."""
        now, ahead = (seen.read(place.tid, place.info) for seen in (self._seen, self.ahead))
        if now == ahead or not late:
            return now == ahead
        lines = zip_longest(now.split(b"\n"), ahead.split(b"\n"), fillvalue=b"")
        return all(a == b or (a.startswith(late) and b.startswith(late)) for a, b in lines)

    def _id(self, one: Opened, out: Dump) -> int:
        one.file_id = one.file_id or out.next_id()
        return one.file_id

    def _dump_now(self, one: Opened, out: Dump) -> None:
        self._id(one, out)
        file = self._file(one, self._seen.read)
        assert file, one.link
        one.kind = kind_of(file, self._kinds)
        dump_file(one.kind, file, out)
        self._dump_locks(one, file, out)

    def any_direct(self) -> bool:
        """Say whether a file is open for direct I/O, or may have been until just now."""
        return self._direct or any(map(_is_direct, self._unsure))

    # --- when it may run again

    def entries(self, tid: int) -> list[pb.fdinfo_entry]:
        """Return what fdinfo-ID.img is to hold for the table of a process."""
        found = []
        for place, one in sorted(self._by_place.items()):
            if place.tid != tid:
                continue
            assert one.kind
            cloexec = parse_fdinfo(self._info(place)).flags & os.O_CLOEXEC
            found.append(
                pb.fdinfo_entry(
                    id=one.file_id,
                    flags=FD_CLOEXEC if cloexec else 0,
                    type=one.kind.type,
                    fd=place.number,
                )
            )
        return found


def _is_direct(one: Opened) -> bool:
    return bool(fcntl.fcntl(one.fd, fcntl.F_GETFL) & os.O_DIRECT)


def _own_fdinfo(fd: int) -> bytes:
    return procfs.read("self", f"fdinfo/{fd}")


def _check_carried(one: Opened, pid: int) -> None:
    """Refuse what can only be made again with a number in the task."""
    st, info = os.fstat(one.fd), parse_fdinfo(_own_fdinfo(one.fd))
    file = OpenFile(one.fd, pid, -1, 0, st, one.link, info)
    if info.locks or "connect" in vars(kind_of(file)):
        raise Unsupported(f"{file.name}: not supported", hint="wait until it has been received")


def _keep(kept: list[Held]) -> None:
    for held in kept:
        held.keep()


def _drop(stale: list[Opened], everything: list[Opened]) -> None:
    """Forget what was dumped of them, and of whom relied on it: shared content is written once."""
    while stale:
        lost = set()
        for one in stale:
            assert one.held
            lost |= one.held.drop()
            one.held = None
        stale = [one for one in everything if one.held and one.held.asked & lost]
