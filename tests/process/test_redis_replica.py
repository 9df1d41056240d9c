# SPDX-License-Identifier: Apache-2.0
"""A redis master, its replica and their clients, as two trees dumped one after the other.

The replica follows again after both were killed and restored, and has what the master has.
"""

from pathlib import Path

import pytest
from target import Ckpt, wait_until
from test_real import Redis
from test_redis_load import FILLED, Asking, Master, load, undisturbed

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]


class Follower(Redis):
    """A replica of the master at a port."""

    options = ("--tcp-established",)

    def __init__(self, place: Path, port: int) -> None:
        super().__init__(place)
        self.masters_port = port

    def command(self) -> list[str]:
        argv = super().command()
        with (self.place / "redis.conf").open("a") as config:
            config.write(f"replicaof 127.0.0.1 {self.masters_port}\nreplica-read-only yes\n")
        return argv

    def fill(self) -> None:
        wait_until(lambda: self.ask("DBSIZE") == b"%d" % FILLED, "all keys")


def test_follows_still(place: Path) -> None:
    """Dumped live under load; then killed, while clients and the other end are connected."""
    (place / "replica").mkdir()
    with Master(place) as master, Follower(place / "replica", master.port) as replica:
        with Asking(master.port) as asking:
            with load(master.port, asking):
                Ckpt().dump(master, place / "master1", "-R")
                Ckpt().dump(replica, place / "replica1", "-R")
                undisturbed(asking)
            same(master, replica)
            Ckpt().dump(replica, place / "replica2")
            Ckpt().dump(master, place / "master2")
            Ckpt().restore(master, place / "master2")
            Ckpt().restore(replica, place / "replica2")
            assert replica.ask("DEBUG", "DIGEST") == master.ask("DEBUG", "DIGEST")
            with load(master.port, asking):
                undisturbed(asking)
            same(master, replica)
        assert b"master_link_status:up" in replica.ask("INFO", "replication")


def same(master: Redis, replica: Redis) -> None:
    """See that the replica gets to where the master is, and has the same data there."""

    def behind() -> bool:
        return offset(replica, "slave_repl_offset") != offset(master, "master_repl_offset")

    wait_until(lambda: not behind(), "the replica to catch up")
    assert replica.ask("DEBUG", "DIGEST") == master.ask("DEBUG", "DIGEST")


def offset(server: Redis, name: str) -> str:
    lines = server.ask("INFO", "replication").decode().splitlines()
    return dict(line.split(":", 1) for line in lines[1:])[name]
