# SPDX-License-Identifier: Apache-2.0
"""An image directory: created, filled and sealed by a dump; opened and read by a restore.

Everything is opened relative to the directory's descriptor and without following symlinks, so no
path leads out of it; only `parent`, the image that unchanged pages are in, may lie elsewhere.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from types import TracebackType
from typing import Any, Self

from google.protobuf.message import Message

from ckpt.errors import ImageError
from ckpt.image.kinds import KINDS
from ckpt.image.records import Record, RecordWriter, Source
from ckpt.interrupt import uninterrupted

VERSION = 2
"""The `img_version` that we write and read."""

_PARENT = "parent"
_DRAFT = "inventory.img.tmp"
_BESIDE = ("stats-", "cpuinfo.")
_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_WRITE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def _failed(path: str, error: OSError) -> ImageError:
    return ImageError(f"{path}: {error.strerror}")


class ImageDir:
    """An image directory; a context manager that owns its descriptor.

    Made by `create` or `open`. Methods raise ImageError for whatever is wrong with the directory,
    its files and what they say. An `id` is what stands in the file name: a pid, a namespace id ...
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.deduplicated = False
        """Whether pages of it are holes; known of an image that is opened."""
        self._made_directory = False
        self._written: list[str] = []
        self._sealed = False

    @classmethod
    def create(cls, path: str | os.PathLike[str], parent: str | None = None) -> Self:
        """Make the directory, or take one that has no image in it, to write a new image.

        `parent` is the path, from inside the directory, of the image with the unchanged pages.
        """
        path = os.fspath(path)
        made = _make_directory(path)
        image = cls(path, _open_directory(path))
        image._made_directory = made
        try:
            image._refuse_used()
            if parent is not None:
                image._link_parent(parent)
        except BaseException:
            image.discard()
            raise
        return image

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, alone: bool = True) -> Self:
        """Open a finished image; refuse anything without an inventory of our version.

        And, if it is to be of use alone, one whose pages are in a newer image only.
        """
        path = os.fspath(path)
        image = cls(path, _open_directory(path))
        try:
            image._check_inventory(alone=alone)
        except BaseException:
            image.close()
            raise
        return image

    @classmethod
    def beside(cls, path: str | os.PathLike[str]) -> Self:
        """Open a directory for a file that is no part of an image, whatever else is in it."""
        path = os.fspath(path)
        return cls(path, _open_directory(path))

    def place(self, name: str) -> str:
        """Return the path of a file in it, for messages."""
        return f"{self.path}/{name}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; after an exception, an image that is not sealed yet is removed."""
        if kind is not None and not self._sealed:
            self.discard()
        self.close()

    def close(self) -> None:
        """Close the directory's descriptor, and the parent's if it was opened."""
        parent = self.__dict__.pop("parent", None)
        if parent is not None:
            parent.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def discard(self) -> None:
        """Remove what was written here, and the directory if it was made for it; then close."""
        for name in self._written:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.fd)
        self._written.clear()
        if self._made_directory:
            with suppress(OSError):  # someone else has put a file there
                os.rmdir(self.path)
        self.close()

    @cached_property
    def parent(self) -> "ImageDir | None":
        """The parent image, opened when first asked for; None if there is none."""
        try:
            fd = os.open(_PARENT, _DIRECTORY, dir_fd=self.fd)
        except FileNotFoundError:
            if not self._is_there(_PARENT):
                return None
            raise ImageError(f"{self.place(_PARENT)}: leads nowhere") from None
        except OSError as error:
            raise _failed(self.place(_PARENT), error) from error
        parent = ImageDir(self.place(_PARENT), fd)
        try:
            parent._check_inventory()
        except BaseException:
            parent.close()
            raise
        return parent

    # writing

    def write(self, kind: str, *messages: Message, id: int | None = None) -> None:
        """Write a file that holds these messages."""
        with self.writer(kind, id) as writer:
            for message in messages:
                writer.append(message)

    def writer(self, kind: str, id: int | None = None) -> RecordWriter:
        """Create a file to append records to."""
        name = KINDS[kind].file_name(id)
        return RecordWriter(self._create_file(name), self.place(name), KINDS[kind])

    def seal(self, inventory: Message) -> None:
        """Make the image valid and durable: sync all that was written, the inventory last."""
        self._put_inventory(inventory)
        self._sealed = True

    def _put_inventory(self, inventory: Message) -> None:
        name = KINDS["inventory"].file_name(None)
        fd = self._create_file(_DRAFT)
        with RecordWriter(fd, self.place(_DRAFT), KINDS["inventory"]) as writer:
            writer.append(inventory)
        try:
            for written in self._written:
                self._sync(written)
            os.rename(_DRAFT, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            self._written.append(name)
            os.fsync(self.fd)
        except OSError as error:
            raise _failed(self.path, error) from error

    def unseal(self) -> None:
        """Have it be no image after all: it is removed when an exception leaves the block."""
        self._sealed = False
        self._written.reverse()  # the inventory first

    # reading

    def exists(self, kind: str, id: int | None = None) -> bool:
        """Tell whether there is such a file."""
        return self._is_there(KINDS[kind].file_name(id))

    def source(self, kind: str, id: int | None = None) -> Source:
        """Open a file to read its records from, tails not included; magic words are checked."""
        name = KINDS[kind].file_name(id)
        source = Source(self._open_file(name), self.place(name))
        try:
            source.expect(KINDS[kind])
        except BaseException:
            source.close()
            raise
        return source

    def extents(self, kind: str, id: int | None = None) -> Iterator[tuple[Record, Source]]:
        """Yield records whose tails are still in the file; for tails too large for memory."""
        with self.source(kind, id) as source:
            for record in source.records(KINDS[kind]):
                yield record, source

    def records(self, kind: str, id: int | None = None) -> Iterator[tuple[Any, bytes]]:
        """Yield every message of a file, with its raw tail."""
        for record, source in self.extents(kind, id):
            yield record.message, source.tail(record)

    def read(self, kind: str, id: int | None = None) -> Any:
        """Return the message of a file that has exactly one."""
        messages = [message for message, _ in self.records(kind, id)]
        if len(messages) != 1:
            name = self.place(KINDS[kind].file_name(id))
            raise ImageError(f"{name}: expected one record, found {len(messages)}")
        return messages[0]

    def open_raw(self, kind: str, id: int, *, write: bool = False, change: bool = False) -> int:
        """Return a descriptor of a raw file (pages, route ...); the caller closes it.

        To write is to make it, to change is to write into one that is there.
        """
        name = KINDS[kind].file_name(id)
        if write:
            return self._create_file(name)
        return self._open_file(name, os.O_RDWR if change else os.O_RDONLY)

    def ids(self, kind: str) -> list[int]:
        """Return the ids of all files of a kind."""
        prefix, _, suffix = KINDS[kind].pattern.partition("%u")
        try:
            names = os.listdir(self.fd)
        except OSError as error:
            raise _failed(self.path, error) from error
        middles = [name.removeprefix(prefix).removesuffix(suffix) for name in names]
        found = [int(one) for one in middles if re.fullmatch("[0-9]{1,10}", one)]
        return sorted(id_ for id_ in found if KINDS[kind].file_name(id_) in names)

    def remove(self, kind: str, id: int) -> None:
        """Remove a file, to be written anew."""
        name = KINDS[kind].file_name(id)
        os.unlink(name, dir_fd=self.fd)
        self._written.remove(name)

    def needs_others(self) -> None:
        """Say in the inventory, for good, that it can only be used as a parent."""
        if not self.deduplicated:
            inventory = self.read("inventory")
            inventory.deduplicated = self.deduplicated = True
            with suppress(FileNotFoundError):  # of an attempt that was killed
                os.unlink(_DRAFT, dir_fd=self.fd)
            self._put_inventory(inventory)

    def open_ext(self, name: str, id: int, *, write: bool = False) -> int:
        """Return a descriptor of a plugin's own file; the caller closes it."""
        if not re.fullmatch(r"[a-z0-9_]{1,64}", name):
            raise ImageError(f"{name!r} cannot be in the name of an image file")
        file_name = f"ext-{name}-{id}.img"
        return self._create_file(file_name) if write else self._open_file(file_name)

    @contextmanager
    def rewritten(self, kind: str, id: int) -> Iterator[int]:
        """Give a descriptor of an empty file that takes the place of a raw file in the end."""
        name = KINDS[kind].file_name(id)
        draft = f"{name}.new"
        fd = self._create_file(draft)
        try:
            yield fd
            os.rename(draft, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            self._written.remove(draft)
        finally:
            os.close(fd)

    # the file system

    def _is_there(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _failed(self.place(name), error) from error
        return True

    def _create_file(self, name: str) -> int:
        # What is beside an image may be replaced, an image file never.
        flags = os.O_TRUNC if name.startswith(_BESIDE) else os.O_EXCL
        with uninterrupted():  # or it would stay
            try:
                fd = os.open(name, _WRITE | flags, 0o600, dir_fd=self.fd)
            except OSError as error:
                raise _failed(self.place(name), error) from error
            self._written.append(name)
        return fd

    def _open_file(self, name: str, mode: int = os.O_RDONLY) -> int:
        try:
            fd = os.open(name, _OPEN | mode, dir_fd=self.fd)
        except OSError as error:
            raise _failed(self.place(name), error) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ImageError(f"{self.place(name)}: not a regular file")
        return fd

    def _sync(self, name: str) -> None:
        if name == _PARENT:  # a symlink: synced with the directory
            return
        fd = self._open_file(name)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _link_parent(self, parent: str) -> None:
        try:
            os.symlink(parent, _PARENT, dir_fd=self.fd)
        except OSError as error:
            raise _failed(self.place(_PARENT), error) from error
        self._written.append(_PARENT)
        if self.parent is None:
            raise ImageError(f"{self.place(_PARENT)}: no such image")
        if self.parent.deduplicated:
            raise ImageError(
                f"{self.place(_PARENT)}: `ckpt dedup` has freed pages of it",
                hint="give the newer image, whose parent it is",
            )

    def _refuse_used(self) -> None:
        names = os.listdir(self.fd)
        names = [name for name in names if not name.startswith(_BESIDE)]
        used = [name for name in names if name.endswith(".img") or name == _PARENT]
        if used:
            raise ImageError(
                f"{self.path}: there is an image already ({min(used)})",
                hint="give a new directory, or empty this one",
            )
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=self.fd):
            raise ImageError(f"{self.path}: not writable")

    def _check_inventory(self, *, alone: bool = False) -> None:
        if not self.exists("inventory"):
            raise ImageError(
                f"{self.path}: no inventory.img: an unfinished dump, or not an image at all",
                hint="give the directory that a dump has finished in",
            )
        inventory = self.read("inventory")
        self.deduplicated = inventory.deduplicated
        if alone and self.deduplicated:
            raise ImageError(
                f"{self.path}: `ckpt dedup` has freed pages of it that a newer image has, too",
                hint="give the newer one, whose parent it is",
            )
        version = inventory.img_version
        if version != VERSION:
            raise ImageError(f"{self.path}: image version {version}; we read {VERSION}")


def _make_directory(path: str) -> bool:
    """Return whether it was not there before."""
    try:
        os.mkdir(path)
    except FileExistsError:
        return False
    except OSError as error:
        raise _failed(path, error) from error
    return True


def _open_directory(path: str) -> int:
    try:
        return os.open(path, _DIRECTORY)
    except OSError as error:
        raise _failed(path, error) from error
