# SPDX-License-Identifier: Apache-2.0
"""Real programs, started as their packages start them: what they hold is the same afterwards.

redis and memcached are filled over their protocols. The programs in real/ load themselves: threads,
timers, garbage; they answer what must not change, whether what moves fits together, and a number
that grows.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from programs import OTHER_USER, Program
from target import DEADLINE, REPO, Ckpt, Criu, Task, Tool, wait_until

from tests.peers import peer

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

REAL = REPO / "tests/process/real"
KEYS = 200_000
ROUNDS = 3  # what is saved while it runs may be wrong once in a while


class Real:
    """A real program as a Target for Tool.dump and restore: a pid, and what it holds."""

    name: str
    options: tuple[str, ...] = ()
    criu_dump = ""  # why real criu cannot dump it

    def __init__(self, place: Path) -> None:
        self.place = place
        self.program = Program(self.name, self.name, options=self.options)
        self.terminal = None
        self.task: Task | None = None

    def __enter__(self) -> "Real":
        argv = self.command()
        with (self.place / "output").open("wb") as output:
            process = subprocess.Popen(
                argv,
                cwd=self.place,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        process.returncode = 0  # a Task reaps it, by pid: Popen must not
        self.task = Task(process.pid)
        try:
            wait_until(self._is_up, f"{self.name} at work", 4 * DEADLINE)
            self.fill()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if self.task:
            self.task.close()

    @property
    def pid(self) -> int:
        assert self.task is not None
        return self.task.pid

    def _is_up(self) -> bool:
        output = self.place / "output"
        assert not self.task.ended(), f"{self.name} ended: {output.read_text()[-2000:]}"
        with contextlib.suppress(OSError, ValueError):
            return self.is_up()
        return False

    def ended(self) -> None:
        """The dump has killed it."""
        self.task.reap()

    def kill(self) -> None:
        """End it, and free its pid."""
        os.kill(self.pid, signal.SIGKILL)
        self.ended()

    def restored(self, pid: int) -> None:
        """A copy was restored."""
        self.task.close()
        self.task = Task(pid)

    def command(self) -> list[str]:
        """What starts it."""
        raise NotImplementedError

    def is_up(self) -> bool:
        """Whether it answers; may raise OSError while it does not."""
        raise NotImplementedError

    def fill(self) -> None:
        """Give it what is to be kept."""

    def digest(self) -> str:
        """All that must not change, and no more."""
        raise NotImplementedError

    def use(self) -> None:
        """Have it do what it is for; what digest() says may change."""
        raise NotImplementedError


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Lines:
    """A connection that is spoken in lines."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), DEADLINE)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *exc: object) -> None:
        self.file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> bytes:
        return self.file.readline().rstrip(b"\r\n")

    def block(self, size: int) -> bytes:
        return self.file.read(size + 2)[:-2]


class Redis(Real):
    """Every type of value, by its own DEBUG DIGEST."""

    name = "redis-server"

    def command(self) -> list[str]:
        self.port = free_port()
        config = self.place / "redis.conf"
        config.write_text(
            f"bind 127.0.0.1\nport {self.port}\nunixsocket {self.place}/redis.sock\n"
            f"pidfile {self.place}/redis.pid\nlogfile {self.place}/redis.log\ndir {self.place}\n"
            "daemonize no\nenable-debug-command yes\nsave 3600 1\nset-proc-title yes\n"
        )
        return [peer(self.name), str(config)]

    def is_up(self) -> bool:
        return self.ask("PING") == b"PONG"

    def ask(self, *words: str) -> bytes:
        """Return the reply to a command: a line, or a block."""
        with Lines(self.port) as lines:
            lines.send(resp(words))
            reply = lines.line()
            return lines.block(int(reply[1:])) if reply[:1] == b"$" else reply[1:]

    def fill(self) -> None:
        with Lines(self.port) as lines:
            for batch in redis_batches():
                lines.send(b"".join(map(resp, [*batch, ("PING",)])))
                for reply in iter(lines.line, b"+PONG"):
                    assert reply[:1] != b"-", reply
        assert int(self.ask("DBSIZE")) == KEYS

    def digest(self) -> str:
        keys, digest = self.ask("DBSIZE"), self.ask("DEBUG", "DIGEST")
        return f"{keys.decode()} keys, {digest.decode()}"

    def use(self) -> None:
        before = int(self.ask("INCR", "uses"))
        assert int(self.ask("INCR", "uses")) == before + 1
        assert self.ask("GET", "string 0") == b"value 0"
        assert self.ask("SAVE") == b"OK"  # its files, too


def resp(words: Iterable[str]) -> bytes:
    """A command in redis's own protocol."""
    blocks = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
    return f"*{len(blocks)}\r\n{''.join(blocks)}".encode()


def redis_batches() -> Iterator[list[tuple[str, ...]]]:
    """Commands that make KEYS keys: strings, and in every thousand ten of each other type."""
    dice = random.Random(1)
    for begin in range(0, KEYS, 1000):
        batch = [("SET", f"string {begin + i}", f"value {begin + i}") for i in range(940)]
        for key in range(begin, begin + 10):
            batch.append(("SETEX", f"expiring {key}", "86400", f"value {key}"))
            for member in range(dice.randrange(1, 40)):
                text = "x" * dice.randrange(200)
                batch.append(("HSET", f"hash {key}", f"field {member}", text))
                batch.append(("RPUSH", f"list {key}", text, f"{member}"))
                batch.append(("SADD", f"set {key}", f"{dice.randrange(10**6)}"))
                batch.append(("ZADD", f"zset {key}", f"{dice.random()}", f"member {member}"))
                batch.append(("XADD", f"stream {key}", f"{member + 1}-1", "field", text))
        yield batch


class Memcached(Real):
    """Threads and slabs; it gives up root, as its package has it do."""

    name = "memcached"
    criu_dump = OTHER_USER

    def command(self) -> list[str]:
        self.port = free_port()
        port = str(self.port)
        return [peer(self.name), "-m", "64", "-p", port, "-u", "nobody", "-l", "127.0.0.1"]

    def is_up(self) -> bool:
        with Lines(self.port) as lines:
            lines.send(b"version\r\n")
            return lines.line().startswith(b"VERSION")

    def fill(self) -> None:
        self.values = {f"key{number}": "v" * (number % 700) for number in range(20000)}
        with Lines(self.port) as lines:
            for key, value in self.values.items():
                lines.send(f"set {key} 7 0 {len(value)} noreply\r\n{value}\r\n".encode())
            lines.send(b"version\r\n")
            assert lines.line().startswith(b"VERSION")
        assert self.digest() == "all 20000 there"

    def digest(self) -> str:
        good = 0
        with Lines(self.port) as lines:
            for key, value in self.values.items():
                lines.send(f"get {key}\r\n".encode())
                header = lines.line()
                if header == f"VALUE {key} 7 {len(value)}".encode():
                    good += lines.block(len(value)) == value.encode()
                    assert lines.line() == b"END"
        return f"all {good} there"

    def use(self) -> None:
        for number in range(8):  # each to another of its threads
            with Lines(self.port) as lines:
                lines.send(f"set use{number} 0 0 3\r\nyes\r\nget use{number}\r\n".encode())
                assert [lines.line() for _ in range(4)][0::2] == [b"STORED", b"yes"]


class Busy(Real):
    """A program in real/."""

    argv: tuple[str, ...]

    def command(self) -> list[str]:
        return [peer(self.argv[0]), *self.argv[1:], str(self.place / "port")]

    def is_up(self) -> bool:
        self.port = int((self.place / "port").read_text())
        return self.ask("check") == "ok"

    def fill(self) -> None:
        self.use()

    def ask(self, question: str) -> str:
        url = f"http://127.0.0.1:{self.port}/{question}"
        with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
            return answer.read().decode()

    def digest(self) -> str:
        return self.ask("digest")

    def use(self) -> None:
        for _ in range(3):
            assert self.ask("check") == "ok"
            before = int(self.ask("progress"))
            wait_until(lambda before=before: int(self.ask("progress")) > before, "progress")


class Python(Busy):
    name = "python"
    argv = (sys.executable, str(REAL / "busy.py"))


class Node(Busy):
    name = "node"
    argv = ("node", str(REAL / "busy.js"))


class Java(Busy):
    name = "java"
    argv = ("java", "-Xmx256m", str(REAL / "Busy.java"))


REALS = (Redis, Memcached, Python, Node, Java)


WAYS = ((Ckpt, Ckpt), (Ckpt, Criu), (Criu, Ckpt))
CASES = [
    pytest.param(real, dumper, restorer, id=f"{real.name}-{dumper.name}-{restorer.name}")
    for real in REALS
    for dumper, restorer in WAYS
    if dumper is not Criu or not real.criu_dump
]


@pytest.mark.parametrize(("real", "dumper", "restorer"), CASES)
def test_goes_and_comes_back(
    real: type[Real], dumper: type[Tool], restorer: type[Tool], place: Path
) -> None:
    dump, restore = dumper().dump, restorer().restore
    with real(place) as target:
        before = target.digest()
        dump(target, place / "images")
        restore(target, place / "images")
        assert target.digest() == before
        target.use()


@pytest.mark.parametrize("real", REALS, ids=lambda real: real.name)
def test_runs_on_and_lives_twice(real: type[Real], place: Path) -> None:
    with real(place) as target:
        for round in range(ROUNDS):
            images = place / f"images-{round}"
            before = target.digest()
            Ckpt().dump(target, images, "-R")
            assert target.digest() == before
            target.use()
            target.kill()
            Ckpt().restore(target, images)
            assert target.digest() == before
            target.use()


class RedisWithClients(Redis):
    """Its clients' connections go with it, while the clients stay."""

    options = ("--tcp-established",)


def test_clients_keep_their_connections(place: Path) -> None:
    with RedisWithClients(place) as target, contextlib.ExitStack() as stack:
        talking, waiting, blocked = (stack.enter_context(Lines(target.port)) for _ in range(3))
        talking.send(resp(["MULTI"]) + resp(["SET", "queued", "in a transaction"]))
        assert [talking.line(), talking.line()] == [b"+OK", b"+QUEUED"]
        waiting.send(resp(["SUBSCRIBE", "news"]))
        assert [waiting.line() for _ in range(6)][-1] == b":1"
        blocked.send(resp(["BLPOP", "empty list", "0"]))
        wait_until(
            lambda: b"blocked_clients:1" in target.ask("INFO", "clients"), "a client to block"
        )
        before = target.digest()
        Ckpt().dump(target, place / "images")
        Ckpt().restore(target, place / "images")
        assert target.digest() == before
        talking.send(resp(["EXEC"]))
        assert [talking.line(), talking.line()] == [b"*1", b"+OK"]
        assert target.ask("PUBLISH", "news", "we are back") == b"1"
        assert [waiting.line() for _ in range(7)][-1] == b"we are back"
        assert target.ask("RPUSH", "empty list", "no more") == b"1"
        assert [blocked.line() for _ in range(5)][-1] == b"no more"
