# SPDX-License-Identifier: Apache-2.0
"""Programs that share their work among processes: Python's multiprocessing, node's cluster."""

import sys
from pathlib import Path

import pytest
from service import Clients, Service
from target import Ckpt
from test_real import REAL, Busy

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]


class Pool(Service, Busy):
    """Pipes, semaphores and shared memory by name, a manager behind a unix socket."""

    name = "python"
    argv = (sys.executable, str(REAL / "pool.py"))
    options = ("--tcp-established", "--skip-in-flight")

    def __exit__(self, *exc: object) -> None:
        pid = self.pid
        super().__exit__(*exc)
        Path(f"/dev/shm/ckpt-test-{pid}").unlink(missing_ok=True)


class Cluster(Service, Busy):
    """A primary that hands its workers connections over unix sockets."""

    name = "node"
    argv = ("node", str(REAL / "cluster.js"))
    options = ("--tcp-established", "--skip-in-flight")


QUESTIONS = {"/check": b"ok".__eq__, "/progress": bytes.isdigit}


@pytest.mark.parametrize("engine", ["stop", "live"])
@pytest.mark.parametrize("real", [Pool, Cluster], ids=["pool", "cluster"])
def test_runs_on_and_comes_back(real: type[Service], engine: str, place: Path) -> None:
    with real(place) as service:
        before = service.digest()
        with Clients(service.port, QUESTIONS) as clients:
            Ckpt().dump(service, place / "first", "-R", "--engine", engine)
            clients.more(100)
            service.note()
            Ckpt().dump(service, place / "second", "--engine", engine)
            clients.cut_off()
        Ckpt().restore(service, place / "second")
        assert service.digest() == before
        service.use()
