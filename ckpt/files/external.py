# SPDX-License-Identifier: Apache-2.0
"""What stays outside of the image (--external), and what stands for it (--inherit-fd).

A resource is KIND[...], as CRIU names it: `tty[RDEV:DEV]`, `file[MNT:INODE]`, numbers in hex. At
restore a descriptor of ours takes its place, by the same name. Pipes (`pipe:[ID]`) and files (by
their path) can be replaced like this even if the dump did not leave them out.
"""

import os

from ckpt.errors import OptionsError
from ckpt.files.kind import OpenFile
from ckpt.options import RestoreOptions

_KINDS = {"file": "file[MNT:INODE]", "tty": "tty[RDEV:DEV]"}


def check(resources: tuple[str, ...]) -> None:
    """Raise OptionsError for a kind of resource that we cannot leave outside."""
    for resource in resources:
        kind, bracket, _ = resource.partition("[")
        if not bracket or kind not in _KINDS:
            raise OptionsError(
                f"--external {resource}: {kind}: not supported yet",
                hint=f"supported: {', '.join(_KINDS.values())}",
            )


def check_inherited(options: RestoreOptions) -> None:
    """Raise OptionsError for a descriptor in place of what has to be made together."""
    for key, fd in options.inherit_fd.items():
        if key.startswith("socket:["):
            raise OptionsError(f"--inherit-fd fd[{fd}]:{key}: sockets: not supported yet")


def tty_key(file: OpenFile) -> str:
    """Return the name of a terminal."""
    return f"tty[{file.stat.st_rdev:x}:{file.stat.st_dev:x}]"


def file_key(file: OpenFile) -> str:
    """Return the name of a file by mount and inode."""
    return f"file[{file.info.mnt_id:x}:{file.stat.st_ino:x}]"


def inherited(options: RestoreOptions, *keys: str) -> int | None:
    """Return a copy of our descriptor that stands for a resource, None if none does."""
    found = next((options.inherit_fd[key] for key in keys if key in options.inherit_fd), None)
    return None if found is None else os.dup(found)
