# SPDX-License-Identifier: Apache-2.0
"""The cgroups that a process is in: cgroup.img, and back.

A process in the same ones as its dumper is left in those of its restorer. Any other is put back
where it was, in the way that --manage-cgroups says; what the cgroups themselves allow (their
control files) is saved with it, for where they have to be made anew.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from ckpt.errors import CkptError, ImageError
from ckpt.image import pb
from ckpt.image.directory import ImageDir
from ckpt.kernel import procfs
from ckpt.kernel.cgroupfs import Cgroup, components
from ckpt.options import RestoreOptions

MODES = ("ignore", "none", "props", "soft", "full", "strict")
"""Of --manage-cgroups; the default is soft."""
_OURS = 1
"""The id of the dumper's own set, which is in the inventory; others follow it."""

_CONTROLS = {  # in the order that they have to be written in
    "": ("cgroup.max.descendants", "cgroup.max.depth"),
    "cpu": ("cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.weight", "cpu.max"),
    "cpuset": ("cpuset.cpus", "cpuset.mems", "cpuset.cpus.partition"),
    "memory": (
        *("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.swappiness"),
        *("memory.soft_limit_in_bytes", "memory.min", "memory.low", "memory.high"),
        *("memory.max", "memory.swap.max"),
    ),
    "io": ("io.weight", "io.max"),
    "blkio": ("blkio.weight",),
    "pids": ("pids.max",),
    "net_cls": ("net_cls.classid",),
    "devices": ("devices.list",),
}
_ALL_DEVICES = "a *:* rwm"
_FROZEN = {"freezer.state": "THAWED", "cgroup.freeze": "0"}
_MOST = 1 << 12


class Place(NamedTuple):
    """A cgroup of one hierarchy."""

    hierarchy: str
    path: str


def _places(pid: procfs.Pid) -> list[Place]:
    return _parsed(procfs.read(pid, "cgroup"))


def _parsed(raw: bytes) -> list[Place]:
    return [Place(name, path) for _, name, path in procfs.parse_cgroup(raw)]


def _controls(hierarchy: str) -> Iterator[str]:
    """Yield the control files that count; version 2 has those of all controllers."""
    for controller in hierarchy.split(",") if hierarchy else _CONTROLS:
        yield from _CONTROLS.get(controller, ())


# --- dump


class Taken(Protocol):
    """What a dump has taken of a process."""

    cgroups: bytes
    cores: dict[int, pb.core_entry]


def take(pid: int, read: procfs.Read) -> bytes:
    """Take where a process is, in the freeze: what it means can be said later."""
    return read(pid, "cgroup")


def dump(tasks: Sequence[Taken], image: ImageDir) -> None:
    """Write cgroup.img, unless all are where we are, and put the ids of the sets into the cores."""
    ours = tuple(_places("self"))
    found = [tuple(_parsed(task.cgroups)) for task in tasks if task.cgroups]
    others = [group for group in dict.fromkeys(found) if group != ours]
    if not others:
        return
    # Real CRIU takes the dumper's own for granted, but fails at a task that is to go back to it.
    sets = {ours: _OURS} if ours in found else {}
    sets |= {group: set_id for set_id, group in enumerate(others, _OURS + 1)}
    for task, group in zip(tasks, found, strict=True):
        for core in task.cores.values():
            core.thread_core.cg_set = sets[group]
    places = sorted({place for group in sets for place in group})
    names = sorted({place.hierarchy for place in places})
    image.write(
        "cgroup",
        pb.cgroup_entry(
            sets=[_dump_set(group, set_id) for group, set_id in sets.items()],
            controllers=[
                _dump_controller(name, [one for one in places if one.hierarchy == name])
                for name in names
            ],
        ),
    )


def _dump_set(group: Iterable[Place], set_id: int) -> pb.cg_set_entry:
    members = [pb.cg_member_entry(name=name, path=path) for name, path in sorted(group)]
    return pb.cg_set_entry(id=set_id, ctls=members)


def _dump_controller(name: str, places: Iterable[Place]) -> pb.cg_controller_entry:
    entry = pb.cg_controller_entry(cnames=name.split(","), is_threaded=bool(name))
    for place in places:
        with suppress(CkptError), Cgroup.open(*place) as group:  # not mounted here, or gone by now
            _dump_directory(group, place, entry.dirs.add(dir_name=place.path.strip("/")))
    return entry


def _dump_directory(group: Cgroup, place: Place, entry: pb.cgroup_dir_entry) -> None:
    entry.dir_perms.CopyFrom(_as_perms(os.fstat(group.fd)))
    for name in _controls(place.hierarchy) if entry.dir_name else ():
        if (value := group.read(name)) is not None:
            perms = _as_perms(os.stat(name, dir_fd=group.fd))
            entry.properties.add(name=name, value=value, perms=perms)


def _as_perms(st: os.stat_result) -> pb.cgroup_perms:
    return pb.cgroup_perms(mode=st.st_mode, uid=st.st_uid, gid=st.st_gid)


# --- restore


class Cgroups:
    """Puts processes into their cgroups; after an error, leaving the `with` removes what it made.

    root is the record of the first process: --cgroup-root says where that one goes, and who was
    below it is below it again.
    """

    def __init__(self, image: ImageDir, root: pb.core_entry, options: RestoreOptions) -> None:
        self._mode, self._roots = options.manage_cgroups, options.cgroup_roots
        self._log = options.log
        self._sets: dict[int, dict[str, str]] = {}
        self._directories: dict[Place, pb.cgroup_dir_entry] = {}
        self._made: list[str] = []
        self._read(image)
        self._of_root = self._of(root)

    def _read(self, image: ImageDir) -> None:
        self._sets[image.read("inventory").root_cg_set] = dict(_places("self"))
        if not image.exists("cgroup"):
            return
        entry = image.read("cgroup")
        for group in entry.sets:
            saved = {member.name: member.path for member in group.ctls}
            self._sets.setdefault(group.id, saved)
        for controller in entry.controllers:
            name = ",".join(controller.cnames)
            for directory in controller.dirs:
                self._directories[Place(name, f"/{directory.dir_name}")] = directory

    def _of(self, core: pb.core_entry) -> dict[str, str]:
        """Return the paths that a process has by hierarchy; nothing if that is not known."""
        return self._sets.get(core.thread_core.cg_set or core.tc.cg_set, {})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while kind and self._made:
            with suppress(OSError):  # somebody else is in it by now
                os.rmdir(self._made.pop())

    def join(self, pid: int, core: pb.core_entry) -> None:
        """Move a process, which has no threads yet, from those of who has forked it."""
        if self._mode == "ignore":
            return
        now, saved = dict(_places(pid)), self._of(core)
        for hierarchy in saved or now:
            was = saved.get(hierarchy, "")
            wanted = self._rooted(hierarchy, was)
            if wanted and wanted != now.get(hierarchy):
                self._join(Place(hierarchy, wanted), was, pid)

    def _rooted(self, hierarchy: str, path: str) -> str:
        """Return where --cgroup-root puts who was at a path of a hierarchy."""
        root = _root(hierarchy, self._roots)
        base = self._of_root.get(hierarchy, path).rstrip("/")
        if root is None or not (path == base or path.startswith(f"{base}/")):
            return path
        return f"{root.rstrip('/')}{path[len(base) :]}".rstrip("/") or "/"

    def _join(self, place: Place, was: str, pid: int) -> None:
        made_before = len(self._made)
        directory = self._directories.get(Place(place.hierarchy, was)) or pb.cgroup_dir_entry()
        if len(directory.properties) > _MOST:
            raise ImageError(f"cgroup.img: {len(directory.properties)} control files of one cgroup")
        values = {entry.name: entry.value for entry in directory.properties}
        with self._open(place, values) as group:
            made = len(self._made) > made_before
            if self._mode in ("props", "full") or made:
                self._restore_controls(group, place.hierarchy, values)
            if made and directory.HasField("dir_perms"):
                _restore_perms(group, directory.dir_perms)
            _check_thawed(group)
            group.join(pid)

    def _restore_controls(self, group: Cgroup, hierarchy: str, values: Mapping[str, str]) -> None:
        """Have the control files say what they said; only those that a dump would look at."""
        for name in _controls(hierarchy):
            now = group.read(name)
            if name not in values or values[name] == now:
                continue
            if now is None:
                self._log.warning("cgroups", f"{group.name} has no {name}: {values[name]} is lost")
            elif name == "devices.list":
                _restore_devices(group, values[name])
            else:
                group.write(name, values[name])

    def _open(self, place: Place, values: Mapping[str, str]) -> Cgroup:
        """Open a cgroup, made as far as it is not there, and as far as the mode allows."""
        try:
            names = components(place.path)
        except ValueError:
            raise ImageError(f"cgroup.img: a process cannot be in {place.path!r}") from None
        if self._mode in ("none", "props"):
            return Cgroup.open(*place)
        group, made = Cgroup.root(place.hierarchy), False
        try:
            for name in names:
                made = group.make(name)
                if made:
                    self._made.append(f"{group.name}/{name}")
                    if not place.hierarchy:
                        _enable(group, {control.partition(".")[0] for control in values})
                group.enter(name)
            if names and not made and self._mode == "strict":
                raise CkptError(
                    f"{group.name} is there already",
                    hint="--manage-cgroups=soft uses what is there",
                )
        except BaseException:
            group.close()
            raise
        return group


def _root(hierarchy: str, roots: Mapping[str, str]) -> str | None:
    """Return the --cgroup-root of a hierarchy, if there is one."""
    for controller in hierarchy.split(","):
        if controller and controller in roots:
            return roots[controller]
    return roots.get("")


def _enable(group: Cgroup, controllers: set[str]) -> None:
    """Have the cgroups below have these controllers, as far as there are any (version 2)."""
    there = set((group.read("cgroup.controllers") or "").split())
    enabled = set((group.read("cgroup.subtree_control") or "").split())
    for controller in sorted(controllers & there - enabled):
        group.write("cgroup.subtree_control", f"+{controller}")


def _restore_perms(group: Cgroup, perms: pb.cgroup_perms) -> None:
    os.fchown(group.fd, perms.uid, perms.gid)
    os.fchmod(group.fd, perms.mode & 0o777)


def _restore_devices(group: Cgroup, allowed: str) -> None:
    group.write("devices.deny", "a")
    for line in allowed.splitlines():
        group.write("devices.allow", line)


def _check_thawed(group: Cgroup) -> None:
    """Raise CkptError if who joins would stand still, and nothing could be asked of it."""
    for name, thawed in _FROZEN.items():
        if (group.read(name) or thawed) != thawed:
            raise CkptError(f"{group.name} is frozen ({name})", hint="thaw it first")
