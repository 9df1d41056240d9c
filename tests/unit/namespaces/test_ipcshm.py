# SPDX-License-Identifier: Apache-2.0
"""Segments of the namespace that everybody is in: what is still there, and what is gone."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from ckpt.errors import KernelError, Unsupported
from ckpt.kernel import sysvipc
from ckpt.kernel.arch import NR
from ckpt.kernel.ffi import check, syscall
from ckpt.kernel.sysvipc import IPC_CREAT, SHM_DEST, Attachment
from ckpt.namespaces import ipcshm

SIZE = 2 * 4096
Inside = Callable[[Callable[[Any], None]], None]


def segment(key: int = 0, size: int = SIZE) -> int:
    return check(syscall(NR.shmget, key, size, IPC_CREAT | 0o600), "shmget")


def dumped(place: Any, shmid: int, text: bytes, *, removed: bool = False) -> None:
    """Dump a segment with this text at its beginning, as attached by a task; then detach it."""
    with Attachment(shmid) as ours:
        os.pwrite(ours.fd, text, 0)
        if removed:
            sysvipc.remove("shm", shmid)
        ipcshm.dump_attached(place.dump({shmid: f"/proc/self/fd/{ours.fd}"}))


def restored(place: Any, *, ok: bool = True) -> None:
    make = place.restore()
    ipcshm.restore_attached(ipcshm.read(make), make)
    make.close(ok=ok)


def content(shmid: int) -> bytes:
    with Attachment(shmid, readonly=True) as ours:
        return os.pread(ours.fd, SIZE, 0)


def test_one_that_nobody_has_is_put_back(inside: Inside) -> None:
    def body(place: Any) -> None:
        shmid = segment()
        dumped(place, shmid, b"then")
        with Attachment(shmid) as ours:
            os.pwrite(ours.fd, b"later", 4096)
        restored(place)
        assert content(shmid) == b"then" + bytes(SIZE - 4)

    inside(body)


def test_one_that_somebody_has_is_left_alone(inside: Inside) -> None:
    def body(place: Any) -> None:
        shmid = segment()
        dumped(place, shmid, b"then")
        with Attachment(shmid) as ours:
            os.pwrite(ours.fd, b"live", 0)
            restored(place)
            assert content(shmid)[:4] == b"live"

    inside(body)


def test_one_that_is_gone_is_made_again(inside: Inside) -> None:
    def body(place: Any) -> None:
        segment()
        shmid = segment(key=77)
        dumped(place, shmid, b"then")
        sysvipc.remove("shm", shmid)
        restored(place)
        made = next(one for one in sysvipc.shm() if one.shmid == shmid)
        assert (made.key, made.size, made.perms) == (77, SIZE, 0o600)
        assert content(shmid)[:4] == b"then"

    inside(body)


def test_a_removed_one_is_kept_until_the_task_has_it(inside: Inside) -> None:
    def body(place: Any) -> None:
        shmid = segment(key=77)
        dumped(place, shmid, b"then", removed=True)
        make = place.restore()
        ipcshm.restore_attached(ipcshm.read(make), make)
        (made,) = sysvipc.shm()
        assert (made.shmid, made.perms) == (shmid, 0o600 | SHM_DEST)
        assert content(shmid)[:4] == b"then"
        make.close(ok=True)
        assert not sysvipc.shm()

    inside(body)


def test_what_a_failed_restore_made_goes_again(inside: Inside) -> None:
    def body(place: Any) -> None:
        shmid = segment()
        dumped(place, shmid, b"then")
        sysvipc.remove("shm", shmid)
        restored(place, ok=False)
        assert not sysvipc.shm()

    inside(body)


def test_another_one_with_its_id_is_not_taken_for_it(inside: Inside) -> None:
    def body(place: Any) -> None:
        shmid = segment()
        dumped(place, shmid, b"then")
        sysvipc.remove("shm", shmid)
        sysvipc.next_id("shm", shmid)
        assert segment(size=SIZE + 1) == shmid
        with pytest.raises(KernelError, match=f"segment {shmid}"):
            restored(place)

    inside(body)


def test_a_segment_of_another_namespace_is_refused(inside: Inside) -> None:
    def body(place: Any) -> None:
        shmid = segment()
        ipcshm.check(1, {shmid})
        with pytest.raises(Unsupported, match="another IPC namespace"):
            ipcshm.check(1, {shmid, shmid + 1})

    inside(body)
