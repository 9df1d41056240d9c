# SPDX-License-Identifier: Apache-2.0
"""The interface that every kind of open file has: how it is recognised, dumped and made again.

A kind works on *local* descriptors. At dump `pidfd_getfd` has given us a copy of the target's
descriptor: the same open file, so what is asked of the copy is asked of the target's file. At
restore a kind makes the file here; the restored task inherits the descriptor and moves it to its
number. So a kind is ordinary Python that needs neither root nor a target to be tested. What only
the restored task can open, it opens itself (`open_inside`: a pidfd of its own); what can only be
said with the final numbers (an epoll set keeps the number a file had when it was added) is said
in `connect`.

To add a kind: `protos/x.proto`, `ckpt/files/x.py`, `tests/programs/x.c`, and a line in
`ckpt.files.KINDS`; docs/writing-a-kind.md walks through it.
"""

import fcntl
import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from struct import Struct
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from ckpt.errors import CkptError, ImageError, Unsupported
from ckpt.image import pb
from ckpt.image.directory import ImageDir
from ckpt.image.records import RecordWriter
from ckpt.kernel.fdinfo import FdInfo
from ckpt.kernel.glance import Glance
from ckpt.kernel.remote import Batch, Call
from ckpt.options import DumpOptions, RestoreOptions

T = TypeVar("T")

F_GETOWN_EX, F_GETOWNER_UIDS = 16, 17
_OWNER = Struct("<ii")

INSIDE = -1
"""What `create` returns for a file that only the restored task itself can open."""


class OpenFile(NamedTuple):
    """One open file of the target, seen through a local copy of its descriptor.

    fd is the local copy (the table closes it), pid and number name the target's own descriptor
    (the lowest, if several share the file; -1 if it is in flight, in a socket of pid's), id is its
    number in the image. links are those of every open file of the tree: a socket's peer is inside
    if its `socket:[INODE]` is there. tid is the thread by which the process is reached, if it is
    another than the first one (`kernel.way`).
    """

    fd: int
    pid: int
    number: int
    id: int
    stat: os.stat_result
    link: str
    info: FdInfo
    links: frozenset[str] = frozenset()
    pids: tuple[int, ...] = ()
    tid: int = 0

    @property
    def proc(self) -> int:
        """The process for whom asks the kernel, by /proc or kcmp(2): a thread of it that lives."""
        return self.tid or self.pid

    @property
    def tree(self) -> tuple[int, ...]:
        """The processes that are dumped, as far as they have descriptors of their own."""
        return self.pids or (self.pid,)

    @property
    def flags(self) -> int:
        """The open flags (O_*), without O_CLOEXEC, which belongs to a descriptor."""
        return fcntl.fcntl(self.fd, fcntl.F_GETFL)

    @property
    def name(self) -> str:
        """How to name it in a message: `fd 7 of pid 812 (pipe:[123])`."""
        if self.number < 0:
            return f"a descriptor in flight in a socket of pid {self.pid} ({self.link})"
        return f"fd {self.number} of pid {self.pid} ({self.link})"

    def owner(self) -> pb.fown_entry:
        """Return who gets SIGIO, as fcntl(2) F_GETOWN_EX tells."""
        kind, pid = _OWNER.unpack(fcntl.fcntl(self.fd, F_GETOWN_EX, bytes(8)))
        if not pid:
            return pb.fown_entry(uid=0, euid=0, signum=0, pid_type=0, pid=0)
        uid, euid = _OWNER.unpack(fcntl.fcntl(self.fd, F_GETOWNER_UIDS, bytes(8)))
        signum = fcntl.fcntl(self.fd, fcntl.F_GETSIG)
        return pb.fown_entry(uid=uid, euid=euid, signum=signum, pid_type=kind, pid=pid)

    def common(self) -> dict[str, Any]:
        """Return the three fields that nearly every kind's message has: id, flags, fown."""
        return {"id": self.id, "flags": self.flags, "fown": self.owner()}


class SaveShmem(Protocol):
    """Writes the content of a shared memory object as pagemap-shmem-ID.img."""

    def __call__(self, shmid: int, fd: int, size: int) -> None:
        """Save the size bytes of the file at fd; a second call for an id does nothing."""


class LoadShmem(Protocol):
    """Fills a shared memory object from pagemap-shmem-ID.img."""

    def __call__(self, shmid: int, fd: int) -> None:
        """Write the saved pages of shmid to the file at fd."""


class Promise(Protocol):
    """Has an option of a target's socket set should we die before the promise is kept."""

    def __call__(self, file: OpenFile, level: int, option: int, value: int) -> Callable[[], None]:
        """Return what is to be called when it is kept."""


def _unheard(file: OpenFile, level: int, option: int, value: int) -> Callable[[], None]:
    return lambda: None


def _no_id(fd: int) -> int:
    raise Unsupported(f"a descriptor in flight ({os.readlink(f'/proc/self/fd/{fd}')})")


class Passing(CkptError):
    """What was to be dumped ahead of the freeze, but cannot be."""


class NotNow(Unsupported):
    """What cannot be dumped in the state it is in, which a target at work leaves in a moment."""


class Held:
    """What a kind has written ahead of the freeze: part of the image once it is kept."""

    def __init__(self, seen: set[Hashable]) -> None:
        self._seen = seen
        self._first: set[Hashable] = set()
        self.asked: set[Hashable] = set()
        self.actions: list[Callable[[], None]] = []

    def first(self, key: Hashable) -> bool:
        """Say whether key is new, and take note that it was asked for."""
        self.asked.add(key)
        if key in self._seen:
            return False
        self._seen.add(key)
        self._first.add(key)
        return True

    def keep(self) -> None:
        """Write it."""
        for action in self.actions:
            action()

    def drop(self) -> set[Hashable]:
        """Have it be as if nothing had been; returns the keys that are new again."""
        self._seen -= self._first
        return self._first


class _HeldWriter:
    """Stands in for a RecordWriter while what is written is held back."""

    def __init__(self, held: Held, writer: RecordWriter) -> None:
        self._held, self._writer = held, writer

    def append(self, entry: Any, data: bytes = b"") -> None:
        """Have the record written if it is kept."""
        self._held.actions.append(lambda: self._writer.append(entry, data))


class Dump:
    """What the kinds of one dump share.

    root is where the target's paths begin, as we see it: `/`, or `/proc/PID/root` if it has a
    mount namespace of its own.
    """

    def __init__(
        self,
        image: ImageDir,
        options: DumpOptions,
        save_shmem: SaveShmem,
        next_id: Callable[[], int],
        add_entry: Callable[[pb.file_entry], None],
        root: str = "/",
    ) -> None:
        self.image, self.options, self.root = image, options, root
        self.save_shmem, self.next_id, self._add_entry = save_shmem, next_id, add_entry
        self._seen: set[Hashable] = set()
        self._writers: dict[str, RecordWriter] = {}
        self._memo: dict[Hashable, Any] = {}
        self._moment: dict[Hashable, Any] = {}
        self._held: Held | None = None
        self._undo: list[Callable[[], None]] = []
        self._before_kill: list[Callable[[], None]] = []
        self._later: list[Callable[[], None]] = []
        self.promise: Promise = _unheard
        self.carried_id: Callable[[int], int] = _no_id
        """Returns the id of a file in flight by our copy of its descriptor."""

    def first(self, *key: Hashable) -> bool:
        """Say whether this is the first call with key: shared content is written once."""
        if self._held:
            return self._held.first(key)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    @contextmanager
    def held(self) -> Iterator[Held]:
        """Hold back what the block writes until it is kept; what it would undo or save is not."""
        self._held = held = Held(self._seen)
        try:
            yield held
        except BaseException:
            held.drop()
            raise
        finally:
            self._held = None

    def _do(self, action: Callable[[], None]) -> None:
        if self._held:
            self._held.actions.append(action)
        else:
            action()

    def add_entry(self, entry: pb.file_entry) -> None:
        """Add a record to files.img."""
        self._do(lambda: self._add_entry(entry))

    def memo(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what make() gave when first asked for key (a socket table, an inode's id)."""
        if key not in self._memo:
            self._memo[key] = make()
        result: T = self._memo[key]
        return result

    def memo_now(self, key: Hashable, make: Callable[[], T]) -> T:
        """Like memo, for what may change while the target runs: in the freeze it is made anew."""
        if key not in self._moment:
            self._moment[key] = make()
        result: T = self._moment[key]
        return result

    def passing(self) -> None:
        """Say that what comes is content that comes and goes: it has to wait for the freeze.

        Ahead of it, raises Passing: that it is not there before and after does not tell.
        """
        if self._held:
            raise Passing("content of a queue")

    def frozen(self) -> None:
        """Take note that the target stands still from now on."""
        self._moment.clear()

    def writer(self, kind: str) -> "RecordWriter | _HeldWriter":
        """Return the writer of an image that the whole tree shares, made at first use."""
        if kind not in self._writers:
            self._writers[kind] = self.image.writer(kind)
        writer = self._writers[kind]
        return _HeldWriter(self._held, writer) if self._held else writer

    def later(self, do: Callable[[], None]) -> None:
        """Have do() called by settle(): to write what was read while the target was frozen."""
        self._do(lambda: self._later.append(do))

    def settle(self) -> None:
        """Do what was put off: all records are there then."""
        for do in self._later:
            do()
        self._later.clear()

    def close(self) -> None:
        """Do what is still put off, and finish the images that writer() began."""
        self.settle()
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def undo(self, do: Callable[[], None]) -> None:
        """Have do() called if the dump fails: it takes back what was changed for the image."""
        self._undo.append(do)

    def abandon(self) -> None:
        """Take back, last first, what was changed for an image that will not be."""
        while self._undo:
            self._undo.pop()()
        for writer in self._writers.values():
            with suppress(ImageError):  # a full disk may be why there will be none
                writer.close()
        self._writers.clear()

    @contextmanager
    def changed(self, file: OpenFile, level: int, option: int, value: int) -> Iterator[None]:
        """Have an option of a socket be another while the block lasts, at most: then it is value.

        The target is stopped meanwhile, and whoever puts it right if we die sets the value too.
        """
        kept = self.promise(file, level, option, value)
        try:
            yield
        finally:
            kept()

    def before_kill(self, do: Callable[[], None]) -> None:
        """Have do() called if the target, still frozen, is about to be killed after the dump."""
        self._do(lambda: self._before_kill.append(do))

    def about_to_kill(self) -> None:
        """Do what takes place just before the kill: a connection must not say goodbye."""
        while self._before_kill:
            self._before_kill.pop()()


class Restore:
    """What the kinds of one restore share; entries maps image ids to files.img's records.

    root is as in Dump. close() it once every file is made, mapped and in its place.
    """

    def __init__(
        self,
        image: ImageDir,
        options: RestoreOptions,
        entries: dict[int, pb.file_entry],
        load_shmem: LoadShmem,
        make: Callable[[int], int] = lambda _: -1,
        root: str = "/",
    ) -> None:
        self.image, self.options, self.root = image, options, root
        self.entries, self.load_shmem, self.make = entries, load_shmem, make
        self._once: dict[Hashable, Any] = {}
        self._at_end: list[Callable[[bool], None]] = []
        self._undo: list[Callable[[], None]] = []

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what make() gave when first asked for key: both ends of a pipe, say."""
        if key not in self._once:
            self._once[key] = make()
        result: T = self._once[key]
        return result

    def entry(self, file_id: int) -> pb.file_entry:
        """Return the record of an id; raises ImageError if there is none."""
        try:
            return self.entries[file_id]
        except KeyError:
            raise ImageError(f"files.img: no file with id {file_id}") from None

    def at_end(self, do: Callable[[bool], None]) -> None:
        """Have do(ok) called by close(): to unlink what had to have a name, to seal, to close."""
        self._at_end.append(do)

    def close(self, *, ok: bool) -> None:
        """Do what was put off, last first. The tasks must not run yet; ok is false on failure."""
        while self._at_end:
            self._at_end.pop()(ok)

    def undo(self, do: Callable[[], None]) -> None:
        """Have do() called if the restore fails, even after close(): it removes what it made."""
        self._undo.append(do)

    def abandon(self) -> None:
        """Remove, last first, what was made outside of the task that will not be."""
        while self._undo:
            self._undo.pop()()


class Placed(NamedTuple):
    """Where a restored file ended up: its lowest number in the task, and the file's image id."""

    number: int
    id: int


class FileKind:
    """One kind of open file. All methods are class methods: a kind has no state.

    type is its fd_types value, field the name of its message in file_entry.
    """

    type: ClassVar[int]
    field: ClassVar[str]
    looks_around: ClassVar[bool] = False
    """Whether its record depends on which other files are open."""
    late: ClassVar[tuple[bytes, ...]] = ()
    """How lines of fdinfo begin that may change until the freeze: `update` puts them in."""

    @classmethod
    def claims(cls, file: OpenFile) -> bool:
        """Say whether this file is of this kind; the first of KINDS to do so dumps it."""
        raise NotImplementedError

    @classmethod
    def check(cls, file: OpenFile, options: DumpOptions) -> None:
        """Raise Unsupported if this file cannot be dumped; runs before the target is touched."""

    @classmethod
    def state(cls, file: OpenFile) -> Hashable | None:
        """Return all of its record that can change without fdinfo or F_GETOWN_EX showing it.

        Asked ahead of the freeze and in it, so this has to be quick; of file, only the local copy
        is up to date. As long as it is the same the record made ahead is good. None: it has to be
        made in the freeze.
        """
        return None

    @classmethod
    def carried(cls, file: OpenFile, out: Dump | None) -> Iterable[int]:
        """Return copies of the descriptors in flight in it (SCM_RIGHTS), for the caller to close.

        While the target runs there is no out, and those of the first packet have to do.
        """
        return ()

    @classmethod
    def dump(cls, file: OpenFile, out: Dump) -> Any:
        """Return the kind's message. Runs while the target is frozen, or before (see state).

        Or return what makes the message later, when the target may run again.
        """
        raise NotImplementedError

    @classmethod
    def glimpse(cls, file: OpenFile, glance: Glance) -> bool:
        """Add calls to a glance that answer otherwise once `state` has changed.

        Return False if there are none that tell: then `state` is asked itself, which takes longer.
        """
        return False

    @classmethod
    def update(cls, message: Any, info: FdInfo) -> None:
        """Bring a message that was made ahead up to date with fdinfo in the freeze: see `late`."""

    @classmethod
    def create(cls, entry: Any, make: Restore) -> int:
        """Make the file from its message and return a local descriptor of it, or INSIDE."""
        raise NotImplementedError

    @classmethod
    def open_inside(cls, entry: Any, make: Restore, batch: Batch) -> Call:
        """Add the call with which the task opens the file itself, all its threads being there.

        Asked for where `create` has said INSIDE; the table puts the descriptor in its place.
        """
        raise NotImplementedError

    @classmethod
    def connect(cls, entry: Any, placed: Placed, make: Restore, batch: Batch) -> None:
        """Say what can only be said inside the task, once all its descriptors are in place.

        A batch that is full raises BatchFull: run it, and call again with a new one until that
        does not happen. So this goes on where it was, by what it keeps with make.once.
        """


def anon_inode(file: OpenFile, name: str) -> bool:
    """Say whether file is an anonymous inode of that name: its link is `anon_inode:[name]`."""
    return file.link == f"anon_inode:{name}"
