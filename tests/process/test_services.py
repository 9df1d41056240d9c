# SPDX-License-Identifier: Apache-2.0
"""Services that are trees of processes, under load while they are dumped: their data is sound."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from service import Service
from target import DEADLINE, Ckpt, wait_until
from test_real import free_port

from tests.peers import missing

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

_SUMS = """select sum(abalance) from pgbench_accounts union select sum(tbalance) from
 pgbench_tellers union select sum(bbalance) from pgbench_branches union
 select coalesce(sum(delta), 0) from pgbench_history"""


class Postgres(Service):
    """A postmaster and its processes, of another user, with shared memory and semaphores."""

    name = "postgres"
    options = ("--tcp-close",)
    criu_dump = "needs CAP_SYS_RESOURCE for another user's limits"

    def command(self) -> list[str]:
        self.port = free_port()
        self.bin = postgres()
        user = pwd.getpwnam("nobody")
        self.place.chmod(0o755)
        self.data = self.place / "data"
        self.data.mkdir()
        os.chown(self.data, user.pw_uid, user.pw_gid)
        become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        initdb = [*become, self.bin / "initdb", "-A", "trust", "-U", "postgres", "-D", self.data]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, env={"LC_ALL": "C"})
        with (self.data / "postgresql.conf").open("a") as config:
            config.write(f"port = {self.port}\nunix_socket_directories = ''\nfsync = off\n")
            config.write("listen_addresses = '127.0.0.1'\nmax_connections = 20\n")
        return list(map(str, [*become, self.bin / "postgres", "-D", self.data]))

    def tool(self, name: str, *words: object, **how: object) -> subprocess.CompletedProcess[str]:
        where = ["-h", "127.0.0.1", "-p", self.port, "-U", "postgres"]
        argv = [str(word) for word in (self.bin / name, *where, *words)]
        return subprocess.run(argv, check=True, capture_output=True, text=True, **how)

    def ask(self, query: str) -> str:
        return self.tool("psql", "-Atc", query, "postgres").stdout.strip()

    def is_up(self) -> bool:
        with suppress(subprocess.CalledProcessError):
            return self.ask("select 1") == "1"
        return False

    def fill(self) -> None:
        self.tool("pgbench", "-i", "-q", "-s", 2, "postgres")
        self.ask("create extension amcheck")

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Have clients transfer money all the time; they may be cut off."""
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres"]
        argv = [str(self.bin / "pgbench"), *where, "-n", "-c", "4", "-T", "60", "postgres"]
        null = subprocess.DEVNULL
        with subprocess.Popen(argv, stdout=null, stderr=null) as clients:
            before = self.transfers()
            wait_until(lambda: self.transfers() > before + 50, "transfers")
            yield
            clients.kill()

    def transfers(self) -> int:
        return int(self.ask("select count(*) from pgbench_history"))

    def digest(self) -> str:
        return self.ask("select count(*), sum(abalance) from pgbench_accounts")

    def use(self) -> None:
        assert len(self.ask(_SUMS).split()) == 1
        self.tool("pg_amcheck", "--heapallindexed", "postgres")
        self.tool("pgbench", "-n", "-c", 2, "-t", 20, "postgres")
        assert len(self.ask(_SUMS).split()) == 1


def postgres() -> Path:
    """Where its programs are; Debian has them out of the PATH."""
    found = shutil.which("postgres")
    places = (
        [Path(found).resolve().parent]
        if found
        else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    )
    return places[-1] if places else missing("no postgres")


@pytest.mark.parametrize("engine", ["stop", "live"])
def test_postgres(engine: str, place: Path) -> None:
    """Dumped while clients transfer money; the copy has all of each transfer, or none of it.

    It does not run on: its files would, too, and be no longer what its memory is about.
    """
    images = place / "images"
    with Postgres(place) as service:
        with service.busy():
            service.note()
            Ckpt().dump(service, images, "--engine", engine)
        Ckpt().restore(service, images)
        wait_until(service.is_up, "answer of the copy", DEADLINE)
        service.use()


@pytest.mark.parametrize("engine", ["stop", "live", "fork"])
def test_postgres_runs_on(engine: str, place: Path) -> None:
    """Dumped while clients transfer money, who notice nothing."""
    with Postgres(place) as service:
        with service.busy():
            for number in range(3):
                before = service.transfers()
                Ckpt().dump(service, place / f"images{number}", "-R", "--engine", engine)
                more = partial(lambda at: service.transfers() > at, before + 50)
                wait_until(more, "transfers after the dump")
        service.use()


def test_postgres_that_is_away(place: Path) -> None:
    """Dumped, killed and restored with nobody connected: nothing has changed."""
    images = place / "images"
    with Postgres(place) as service:
        service.use()
        before = service.digest()
        service.note()
        Ckpt().dump(service, images)
        Ckpt().restore(service, images, "--lazy-pages")
        assert service.digest() == before
        service.use()
