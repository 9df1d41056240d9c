# SPDX-License-Identifier: Apache-2.0
"""Ids of the kernel objects that tasks have or share, and the inventory that names the first.

An id stands for an object within one image: tasks with equal ids share it. Those of the root's
namespaces are in the inventory; a task whose namespaces have the same ids has them from us.
"""

from collections.abc import Iterable

from ckpt.image import pb
from ckpt.image.directory import VERSION

_NAMESPACES = {
    "pid_ns_id": 1,
    "net_ns_id": 2,
    "ipc_ns_id": 3,
    "uts_ns_id": 4,
    "time_ns_id": 5,
    "mnt_ns_id": 6,
    "user_ns_id": 7,
    "cgroup_ns_id": 8,
}
_FIRST = 2  # 1 is the dumper's own


def namespace(kind: str, *, own: bool) -> int:
    """Return the id of a namespace ("ipc" ...): the task's own, or ours."""
    return _NAMESPACES[f"{kind}_ns_id"] + (len(_NAMESPACES) if own else 0)


def task_ids(
    files: int = 0, fs: int = 0, vm: int = 0, sighand: int = 0, own: Iterable[str] = ()
) -> pb.task_kobj_ids_entry:
    """Return the ids of a task of a tree, which has our namespaces but for its own kinds.

    The others are the numbers of the tasks whose descriptors, directories, memory and signal
    handlers it has: its own, of what it shares with nobody.
    """
    spaces = _NAMESPACES | {f"{kind}_ns_id": namespace(kind, own=True) for kind in own}
    return pb.task_kobj_ids_entry(
        vm_id=_FIRST + vm,
        files_id=_FIRST + files,
        fs_id=_FIRST + fs,
        sighand_id=_FIRST + sighand,
        **spaces,
    )


def inventory() -> pb.inventory_entry:
    """Return what makes an image of the directory it is written to, last."""
    root = pb.task_kobj_ids_entry(vm_id=1, files_id=1, fs_id=1, sighand_id=1, **_NAMESPACES)
    return pb.inventory_entry(
        img_version=VERSION,
        fdinfo_per_id=True,
        root_ids=root,
        ns_per_id=True,
        root_cg_set=1,
        lsmtype=pb.LSM_NONE,
        network_lock_method=0,
        plugins_entry=pb.plugins_entry(),
        dump_criu_run_id=_random_uuid(),
    )


def _random_uuid() -> str:
    """The kernel's: the uuid module asks for the platform first, which takes 4 ms."""
    with open("/proc/sys/kernel/random/uuid") as file:
        return file.read().strip()
