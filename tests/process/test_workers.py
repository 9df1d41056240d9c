# SPDX-License-Identifier: Apache-2.0
"""Servers that share their work: Python's multiprocessing, node's cluster, a JVM's threads."""

import sys
from pathlib import Path
from typing import ClassVar

import pytest
from service import Check, Clients, Service
from target import Ckpt
from test_real import REAL, Busy, Java

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]


class Server(Service, Busy):
    """Asked all the time, by clients that come and go, and clients that stay."""

    options = ("--tcp-established", "--skip-in-flight")
    questions: ClassVar[dict[str, Check]] = {"/check": b"ok".__eq__, "/progress": bytes.isdigit}


class Pool(Server):
    """Pipes, semaphores and shared memory by name, a manager behind a unix socket."""

    name = "python"
    argv = (sys.executable, str(REAL / "pool.py"))

    def __exit__(self, *exc: object) -> None:
        pid = self.pid
        super().__exit__(*exc)
        Path(f"/dev/shm/ckpt-test-{pid}").unlink(missing_ok=True)


class Cluster(Server):
    """A primary that hands its workers connections over unix sockets."""

    name = "node"
    argv = ("node", str(REAL / "cluster.js"))


class Jvm(Server, Java):
    """Threads that leave garbage behind all the time, and hardly let go of a lock."""

    questions: ClassVar[dict[str, Check]] = {"/progress": bytes.isdigit}


@pytest.mark.parametrize("real", [Pool, Cluster, Jvm], ids=["pool", "cluster", "jvm"])
def test_runs_on_and_comes_back(real: type[Server], place: Path) -> None:
    with real(place) as service:
        before = service.digest()
        with Clients(service.port, service.questions) as clients:
            Ckpt().dump(service, place / "first", "-R", "--engine", "live")
            clients.more(100)
            service.note()
            Ckpt().dump(service, place / "second", "--engine", "stop")
            clients.cut_off()
        Ckpt().restore(service, place / "second")
        assert service.digest() == before
        service.use()
