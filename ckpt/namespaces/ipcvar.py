# SPDX-License-Identifier: Apache-2.0
"""The sysctls of an IPC namespace: ipcns-var-NS.img. See proc_sys_kernel(5), mq_overview(7)."""

import os
from collections.abc import Sequence

from ckpt.errors import KernelError
from ckpt.image import pb
from ckpt.kernel import procfs

_SEM = "kernel/sem"
_VARS = {
    "msg_ctlmax": "kernel/msgmax",
    "msg_ctlmnb": "kernel/msgmnb",
    "msg_ctlmni": "kernel/msgmni",
    "shm_ctlmax": "kernel/shmmax",
    "shm_ctlall": "kernel/shmall",
    "shm_ctlmni": "kernel/shmmni",
    "shm_rmid_forced": "kernel/shm_rmid_forced",
    "mq_queues_max": "fs/mqueue/queues_max",
    "mq_msg_max": "fs/mqueue/msg_max",
    "mq_msgsize_max": "fs/mqueue/msgsize_max",
    "mq_msg_default": "fs/mqueue/msg_default",
    "mq_msgsize_default": "fs/mqueue/msgsize_default",
}
_NEXT = {f"{kind}_next_id": f"kernel/{kind}_next_id" for kind in ("msg", "sem", "shm")}
_PAGE = 4096


def dump() -> pb.ipc_var_entry:
    """Return the sysctls of the namespace that we are in."""
    # auto_msgmni has no effect any more (Linux 3.19), but CRIU wants the field.
    values = {field: (_read(path) or ["0"])[0] for field, path in _VARS.items()}
    following = {field: int((_read(path) or ["-1"])[0]) for field, path in _NEXT.items()}
    return pb.ipc_var_entry(
        sem_ctls=map(int, _read(_SEM)),
        auto_msgmni=0,
        **{field: int(value) for field, value in values.items()},
        **{field: value for field, value in following.items() if value >= 0},
    )


def restore(wanted: pb.ipc_var_entry) -> None:
    """Set those that differ: /proc/sys may well be read-only where all have their default."""
    _write(_SEM, *wanted.sem_ctls)
    for field, path in (_VARS | _NEXT).items():
        if wanted.HasField(field):
            _write(path, getattr(wanted, field))


def roomy(
    wanted: pb.ipc_var_entry,
    *,
    segments: Sequence[int],
    queues: Sequence[int],
    messages: Sequence[int],
    sets: Sequence[int],
) -> pb.ipc_var_entry:
    """Return sysctls that leave room to make objects: a limit may have been lowered since.

    segments, queues and messages are sizes in bytes, sets numbers of semaphores.
    """
    room = pb.ipc_var_entry()
    room.CopyFrom(wanted)
    for field in (*_NEXT, "shm_rmid_forced"):  # would change what is made, or destroy it
        room.ClearField(field)
    needs = {
        "shm_ctlmax": max(segments, default=0),
        "shm_ctlall": sum(-(-size // _PAGE) for size in segments),
        "shm_ctlmni": len(segments),
        "msg_ctlmni": len(queues),
        "msg_ctlmnb": max(queues, default=0),
        "msg_ctlmax": max(messages, default=0),
    }
    for field, need in needs.items():
        setattr(room, field, max(getattr(wanted, field), need))
    # SEMMSL, SEMMNS, SEMOPM, SEMMNI
    room.sem_ctls[:] = map(max, wanted.sem_ctls, (max(sets, default=0), sum(sets), 0, len(sets)))
    return room


def rmid_forced() -> bool:
    """Say whether segments are destroyed as soon as nobody has them attached."""
    return _read(_VARS["shm_rmid_forced"]) == ["1"]


def _read(path: str) -> list[str]:
    """The words of a sysctl; none if this kernel was built without it."""
    name = f"/proc/sys/{path}"
    return procfs.read_path(name).decode().split() if os.path.exists(name) else []


def _write(path: str, *values: int) -> None:
    words = [str(value) for value in values]
    if _read(path) in (words, []):
        return
    try:
        with open(f"/proc/sys/{path}", "w") as file:
            file.write(" ".join(words))
    except OSError as error:
        raise KernelError(error.errno or 0, f"writing {words} to /proc/sys/{path}") from error
