# SPDX-License-Identifier: Apache-2.0
"""What a dump or restore was asked to do; the same for the command line and the RPC."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonOptions:
    """Options that both verbs have. Paths are as the user wrote them."""

    images_dir: str = "."
    work_dir: str | None = None
    shell_job: bool = False
    ext_unix_sk: bool = False
    tcp_established: bool = False
    file_locks: bool = False
    evasive_devices: bool = False
    link_remap: bool = False
    external: tuple[str, ...] = ()
    json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpOptions(CommonOptions):
    """A dump of the process tree rooted at pid."""

    pid: int
    leave_running: bool = False
    leave_stopped: bool = False
    prev_images_dir: str | None = None
    ghost_limit: int = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOptions(CommonOptions):
    """A restore of an image directory.

    inherit_fd maps an external resource's name to a descriptor of ours.
    """

    detached: bool = False
    sibling: bool = False
    pidfile: str | None = None
    inherit_fd: dict[str, int] = field(default_factory=dict)
