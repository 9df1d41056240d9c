# SPDX-License-Identifier: Apache-2.0
"""The mounts of a task's mount namespace: /proc/PID/mountinfo (proc_pid_mountinfo(5))."""

import os
import re
from typing import NamedTuple

from ckpt.kernel import procfs
from ckpt.kernel.procfs import Pid


class Mount(NamedTuple):
    """One mount.

    `root` is the part of the file system that is mounted; `mountpoint` is relative to the task's
    root. `shared`, `master` and `propagate_from` are peer group ids, 0 for none. Mounts outside
    of the task's root are not listed, so a `parent` may be missing.
    """

    mnt_id: int
    parent: int
    major: int
    minor: int
    root: str
    mountpoint: str
    options: str
    shared: int
    master: int
    propagate_from: int
    unbindable: bool
    fstype: str
    source: str
    super_options: str

    @property
    def dev(self) -> int:
        """The device as `os.stat` numbers it (btrfs and overlayfs may give files another)."""
        return os.makedev(self.major, self.minor)


_ESCAPE = re.compile(rb"\\([0-7]{3})")


def mountinfo(pid: Pid) -> list[Mount]:
    """The mounts that a task sees, in the order of the mount namespace: parents first."""
    return parse_mountinfo(procfs.read(pid, "mountinfo"))


def parse_mountinfo(text: bytes) -> list[Mount]:
    """Parse /proc/PID/mountinfo."""
    return [_mount(line) for line in text.split(b"\n") if line]


def _mount(line: bytes) -> Mount:
    # Not split(): an empty source leaves two spaces, and only the space itself is escaped always.
    before, _, after = line.partition(b" - ")
    mnt_id, parent, dev, root, mountpoint, options, *optional = before.split(b" ")
    fstype, source, super_options = [*after.split(b" ", 2), b"", b""][:3]
    major, _, minor = dev.partition(b":")
    tags = dict(tag.partition(b":")[::2] for tag in optional)
    return Mount(
        mnt_id=int(mnt_id),
        parent=int(parent),
        major=int(major),
        minor=int(minor),
        root=_decode(root),
        mountpoint=_decode(mountpoint),
        options=options.decode(),
        shared=int(tags.get(b"shared", b"0")),
        master=int(tags.get(b"master", b"0")),
        propagate_from=int(tags.get(b"propagate_from", b"0")),
        unbindable=b"unbindable" in tags,
        fstype=_decode(fstype),
        source=_decode(source),
        super_options=_decode(super_options),
    )


def _decode(escaped: bytes) -> str:
    """Undo mangle() (fs/proc_namespace.c): space, tab, newline, backslash and # as octal."""
    return os.fsdecode(_ESCAPE.sub(lambda found: bytes((int(found[1], 8),)), escaped))
