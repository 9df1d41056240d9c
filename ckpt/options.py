# SPDX-License-Identifier: Apache-2.0
"""What a dump or restore was asked to do; the same for the command line and the RPC."""

from collections.abc import Mapping
from typing import Any, NoReturn, Protocol, Self, dataclass_transform

from ckpt.log import Log


class Notify(Protocol):
    """Who is told how far a story is, and may object: see `ckpt.hooks`."""

    def __call__(self, point: str, pid: int) -> None:
        """Hear of a point; pid is 0 as long as there is no process. Raises CkptError to object."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
class _Request:
    """Fields by name, as a frozen dataclass has them: those cost each start 15 ms."""

    def __init__(self, **given: Any) -> None:
        for name in given:
            if not any(name in kind.__annotations__ for kind in type(self).__mro__[:-2]):
                raise TypeError(f"{type(self).__name__} has no {name}")
        self.__dict__.update(given)

    def replace(self, **changes: Any) -> Self:
        """Return the same request but for these fields."""
        return type(self)(**(self.__dict__ | changes))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} is as it was asked for")


class CommonOptions(_Request):
    """Options that both verbs have. Paths are as the user wrote them; log is told what goes on."""

    images_dir: str = "."
    work_dir: str | None = None
    shell_job: bool = False
    ext_unix_sk: bool = False
    tcp_established: bool = False
    tcp_close: bool = False
    file_locks: bool = False
    evasive_devices: bool = False
    link_remap: bool = False
    manage_cgroups: str = "soft"
    """How a process comes back into its cgroups: ignore, none, props, soft, full or strict."""
    external: tuple[str, ...] = ()
    json: bool = False
    notify: tuple[Notify, ...] = ()
    plugins: tuple[Any, ...] = ()
    """Those that take part: ckpt.plugin.Plugin, which this module cannot know."""
    log: Log = Log()

    @property
    def stats_dir(self) -> str:
        """Where statistics go."""
        return self.work_dir or self.images_dir

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The kinds of open files that plugins bring; they go before ours."""
        return tuple(kind for plugin in self.plugins for kind in plugin.kinds)


class DumpOptions(CommonOptions):
    """A dump of the process tree rooted at pid."""

    pid: int
    leave_running: bool = False
    leave_stopped: bool = False
    prev_images_dir: str | None = None
    ghost_limit: int = 1 << 20
    skip_in_flight: bool = False
    force_irmap: bool = False
    irmap_scan_path: tuple[str, ...] = ()
    engine: str = "stop"
    precopy: int | None = None
    """How many passes over the memory come before the freeze, at most; None: as many as pay."""
    max_rate: int = 0
    """Bytes a second that are copied while the process runs, at most; 0: no limit."""
    buffer: int = 64 << 20
    """Bytes of the process's memory that we hold at once, at most."""


class RestoreOptions(CommonOptions):
    """A restore of an image directory.

    inherit_fd maps an external resource's name to a descriptor of ours.
    """

    detached: bool = False
    sibling: bool = False
    pidfile: str | None = None
    lazy_pages: bool = False
    record: bool = True
    inherit_fd: Mapping[str, int] = {}
    cgroup_roots: Mapping[str, str] = {}
    """By controller, where else a process goes; an empty one stands for all others."""
