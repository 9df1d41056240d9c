# SPDX-License-Identifier: Apache-2.0
"""Cgroups as directories (cgroups(7)): found, opened, made, their control files read and written.

A hierarchy is named as in /proc/PID/cgroup: `pids`, `cpu,cpuacct`, `name=systemd`; version 2 is the
empty name. Paths begin at the root of the hierarchy.
"""

import errno
import os
from typing import Self

from ckpt.errors import CkptError, KernelError
from ckpt.kernel.mountinfo import Mount, mountinfo

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LARGEST = 1 << 16
_PATH_MAX = 4096


def mountpoint(name: str) -> str:
    """Return where a hierarchy is mounted as a whole. Raises CkptError if it is nowhere."""
    for mount in mountinfo("self"):
        if mount.root == "/" and _has(mount, name):
            return mount.mountpoint
    raise CkptError(
        f"no cgroups of {name or 'version 2'} are mounted here",
        hint="--manage-cgroups=ignore leaves the process in ours",
    )


def _has(mount: Mount, name: str) -> bool:
    if not name:
        return mount.fstype == "cgroup2"
    options = mount.super_options.split(",")
    return mount.fstype == "cgroup" and set(name.split(",")) <= set(options)


def components(path: str) -> list[str]:
    """Take a path apart; raises ValueError for one that leads anywhere but down."""
    found = [name for name in path.split("/") if name]
    if ".." in found or "." in found or "\0" in path or len(path) > _PATH_MAX:
        raise ValueError(path)
    return found


class Cgroup:
    """One cgroup, open; a context manager. Raises KernelError for what fails."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd, self.name = fd, name

    @classmethod
    def open(cls, hierarchy: str, path: str) -> Self:
        """Open one that is there."""
        group = cls.root(hierarchy)
        try:
            for name in components(path):
                group.enter(name)
        except BaseException:
            group.close()
            raise
        return group

    @classmethod
    def root(cls, hierarchy: str) -> Self:
        """Open the root of a hierarchy."""
        place = mountpoint(hierarchy)
        try:
            return cls(os.open(place, _DIRECTORY), place)
        except OSError as error:
            raise KernelError(error.errno or 0, f"opening {place}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        os.close(self.fd)

    def enter(self, name: str) -> None:
        """Be the cgroup of this name below."""
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=self.fd)
        except OSError as error:
            raise KernelError(error.errno or 0, f"opening {self.name}/{name}") from error
        os.close(self.fd)
        self.fd, self.name = fd, f"{self.name}/{name}"

    def make(self, name: str) -> bool:
        """Make one below; say whether it was not there."""
        try:
            os.mkdir(name, dir_fd=self.fd)
        except FileExistsError:
            return False
        except OSError as error:
            raise KernelError(error.errno or 0, f"making {self.name}/{name}") from error
        return True

    def read(self, name: str) -> str | None:
        """Return what a control file says, without its last newline; None if there is none."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KernelError(error.errno or 0, f"opening {self.name}/{name}") from error
        try:
            return os.read(fd, _LARGEST).decode(errors="replace").rstrip("\n")
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV):
                return None
            raise KernelError(error.errno or 0, f"reading {self.name}/{name}") from error
        finally:
            os.close(fd)

    def write(self, name: str, value: str) -> None:
        """Write to a control file."""
        try:
            fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise KernelError(error.errno or 0, f"writing {value} to {self.name}/{name}") from error

    def join(self, pid: int) -> None:
        """Move a process in, with all its threads."""
        self.write("cgroup.procs", str(pid))
