# SPDX-License-Identifier: Apache-2.0
"""redis-server under load, dumped live: the copy is the master as of one command of its stream.

The oracle is exact. A replica of ours keeps the RDB that the master gives it and every byte of the
stream after it. The restored copy tells how far in that stream it is; another redis-server that
loads the RDB and is fed the stream up to there must have the same data, by its DEBUG DIGEST. What
a dump costs the master is printed, beside what its own BGSAVE does.
"""

import contextlib
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from target import DEADLINE, Ckpt, wait_until
from test_real import Lines, Redis, resp

from ckpt.image.directory import ImageDir
from tests.peers import peer

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

FILLED = 100_000
CLIENTS = 4
ENOUGH = 50_000  # commands, to know a pace
LISTS = """
redis.call('LPUSH', KEYS[1], ARGV[1])
redis.call('LTRIM', KEYS[1], 0, 99)
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('INCR', KEYS[3])
redis.call('SETRANGE', KEYS[4], 20000, ARGV[1])
if redis.call('SCARD', KEYS[2]) > 100 then redis.call('SPOP', KEYS[2], 50) end
"""
RANDOM = "__rand_int__"
LOADS = (
    ("SET", f"string:{RANDOM}", f"{'value' * 20} {RANDOM}"),
    ("HSET", f"hash:{RANDOM}", f"field {RANDOM}", RANDOM),
    ("ZADD", f"zset:{RANDOM}", RANDOM, f"member {RANDOM}"),
    # Not `*`, which is the time of day: what the copy has begun to do at the instant of the dump
    # it must end as the master does.
    ("XADD", f"stream:{RANDOM}", "MAXLEN", "50", "1-*", "field", RANDOM),
    ("EVAL", LISTS, "4", *(f"{name}:{RANDOM}" for name in ("list", "set", "sum", "big")), RANDOM),
)


def reset(connection: socket.socket) -> None:
    """Have it closed without a goodbye: nothing of it waits for a minute, in the way of a copy."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Asking(Lines):
    """A client that stays: a connection that is being closed is refused by a dump."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        reset(self.socket)

    def ask(self, *words: str) -> str:
        self.send(resp(words))
        reply = self.line()
        assert reply[:1] != b"-", reply
        return (self.block(int(reply[1:])) if reply[:1] == b"$" else reply[1:]).decode()

    def info(self, section: str, name: str) -> str:
        found = dict(line.split(":", 1) for line in self.ask("INFO", section).splitlines()[1:])
        return found[name]

    def offset(self) -> int:
        return int(self.info("replication", "master_repl_offset"))

    def commands(self) -> int:
        return int(self.info("stats", "total_commands_processed"))


class Master(Redis):
    """With one replica, to which it says nothing that is not a change of its data."""

    options = ("--tcp-established",)
    more = (
        "repl-diskless-sync-delay 0\nrepl-ping-replica-period 3600\nrepl-timeout 7200\n"
        "client-output-buffer-limit replica 0 0 0\n"
    )

    def command(self) -> list[str]:
        argv = super().command()
        with (self.place / "redis.conf").open("a") as config:
            config.write(self.more)
        return argv

    def fill(self) -> None:
        self.ask("DEBUG", "POPULATE", str(FILLED), "base", "100")


class Replay(Redis):
    """A server that has loaded the RDB, and is fed the stream."""

    def fill(self) -> None:
        pass


class Replica:
    """Whoever asks a master for all it has and does: the RDB, and the stream from `start` on."""

    def __init__(self, port: int, *capabilities: str) -> None:
        self.lines = Lines(port)
        reset(self.lines.socket)
        for name in capabilities:
            self._say("REPLCONF", "capa", name)
            assert self.lines.line() == b"+OK"
        self._say("PSYNC", "?", "-1")
        words = self.lines.line().split()
        assert words[0] == b"+FULLRESYNC", words
        self.start = int(words[2])
        self.rdb = self._rdb()
        self.stream = bytearray()
        self.longest_gap = 0.0
        self._say("REPLCONF", "ACK", str(self.start))  # what begins the stream after a mark
        self._thread = threading.Thread(target=self._listen)

    def _say(self, *words: str) -> None:
        self.lines.send(resp(words))

    def _rdb(self) -> bytes:
        """Read it: so many bytes, or with `$EOF:` up to a mark."""
        while not (header := self.lines.line()):
            pass  # an empty line says that it is still being made
        if not header.startswith(b"$EOF:"):
            return self.lines.file.read(int(header[1:]))
        mark, found = header[5:], b""
        while not found.endswith(mark):
            found += self.lines.file.read1()
        return found[: -len(mark)]

    def __enter__(self) -> "Replica":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.lines.socket.shutdown(socket.SHUT_RD)  # wakes the thread
        self._thread.join()
        self.lines.__exit__()

    def _listen(self) -> None:
        last = time.monotonic()
        while data := self.lines.file.read1():
            self.stream += data
            now = time.monotonic()
            self.longest_gap, last = max(self.longest_gap, now - last), now

    @property
    def end(self) -> int:
        return self.start + len(self.stream)

    def part(self, begin: int, end: int) -> bytes:
        """Return what takes a master from one offset to another."""
        assert self.start <= begin <= end <= self.end
        return bytes(self.stream[begin - self.start : end - self.start])


@contextlib.contextmanager
def load(port: int, asking: Asking) -> Iterator[None]:
    """Keep it busy with changes of every type of value, pipelined; all clients are there."""
    idle = int(asking.info("clients", "connected_clients"))
    many = ("-r", "500", "-n", str(10**9), "-P", "16", "-c", str(CLIENTS), "-q")
    with contextlib.ExitStack() as stack:
        for words in LOADS:
            argv = [peer("redis-benchmark"), "-p", str(port), *many, *words]
            null = subprocess.DEVNULL
            process = stack.enter_context(
                subprocess.Popen(argv, stdin=null, stdout=null, stderr=null)
            )
            stack.callback(process.kill)
        _await_clients(asking, idle + CLIENTS * len(LOADS))
        yield
    _await_clients(asking, idle)


def _await_clients(asking: Asking, count: int) -> None:
    wait_until(
        lambda: int(asking.info("clients", "connected_clients")) == count, f"{count} clients"
    )


class Cost(NamedTuple):
    """How a master did meanwhile."""

    pace: float  # commands a second
    longest_gap: float  # seconds in which its replica heard nothing

    def __str__(self) -> str:
        return f"{self.pace:,.0f} commands/s, longest silence {self.longest_gap * 1e3:.1f} ms"


def cost(asking: Asking, replica: Replica, work: Callable[[], None]) -> Cost:
    """Measure how a master does while something is done to it."""
    replica.longest_gap, before, since = 0.0, asking.commands(), time.monotonic()
    work()
    return Cost((asking.commands() - before) / (time.monotonic() - since), replica.longest_gap)


def undisturbed(asking: Asking) -> None:
    enough = asking.commands() + ENOUGH
    wait_until(lambda: asking.commands() > enough, f"{ENOUGH} commands")


def bgsave(asking: Asking) -> None:
    asking.ask("BGSAVE")
    wait_until(lambda: asking.info("persistence", "rdb_bgsave_in_progress") == "0", "its end")
    assert asking.info("persistence", "rdb_last_bgsave_status") == "ok"


def dump(master: Master, images: Path) -> None:
    Ckpt().dump(master, images, "-R", "--engine", "live")


def forget_unread(images: Path) -> None:
    """Take away what clients had sent and the master had not read.

    The copy would go on with it, in another order than the master did. What it has read already it
    goes on with in the same order: its stream ends somewhere in the master's.
    """
    with ImageDir.open(images) as image:
        for file in images.glob("tcp-stream-*.img"):
            inode = int(file.stem.rpartition("-")[2], 16)
            [(stream, data)] = image.records("tcp-stream", inode)
            unread, stream.inq_len = stream.inq_len, 0
            file.unlink()
            with image.writer("tcp-stream", inode) as writer:
                writer.append(stream, data[unread:])


class Found(NamedTuple):
    """What a copy says of itself."""

    offset: int
    digest: str


def look(master: Master, images: Path) -> Found:
    """Restore the copy, ask it where it is and what it has, and end it."""
    forget_unread(images)
    Ckpt().restore(master, images)
    with Asking(master.port) as asking:
        offset = asking.offset()
        digest = asking.ask("DEBUG", "DIGEST")
        assert asking.offset() == offset
    master.kill()
    return Found(offset, digest)


def replay(replica: Replica, offsets: list[int], place: Path) -> Iterator[str]:
    """Tell the digest that a server has at each of these offsets, in turn."""
    place.mkdir()
    (place / "dump.rdb").write_bytes(replica.rdb)
    with Replay(place) as server, Lines(server.port) as feeding:
        feeding.send(resp(["CLIENT", "REPLY", "OFF"]))
        for begin, end in zip([replica.start, *offsets], offsets, strict=False):
            feeding.send(replica.part(begin, end))
            feeding.send(resp(["CLIENT", "REPLY", "ON"]))
            assert feeding.line() == b"+OK"
            yield server.ask("DEBUG", "DIGEST").decode()
            feeding.send(resp(["CLIENT", "REPLY", "OFF"]))


def dump_under_load(master: Master, replica: Replica, asking: Asking, images: Path) -> range:
    """Dump it; return the offsets that it can have had at that instant."""
    with load(master.port, asking):
        calm = cost(asking, replica, lambda: undisturbed(asking))
        saving = cost(asking, replica, lambda: bgsave(asking))
        forked = int(asking.info("stats", "latest_fork_usec"))
        first = asking.offset()
        dumping = cost(asking, replica, lambda: dump(master, images))
        last = asking.offset()
        undisturbed(asking)  # it goes on for a while
        assert asking.info("stats", "total_error_replies") == "0"
    with ImageDir.open(images) as image:
        stats = image.read("stats-dump").dump
    print(f"\nundisturbed  {calm}")
    print(f"BGSAVE       {saving}; fork {forked / 1e3:.1f} ms")
    print(f"live dump    {dumping}; frozen {stats.frozen_time / 1e3:.1f} ms")
    return range(first, last + 1)


# A master gives its RDB as it makes it only to who can do with a mark at its end.
@pytest.mark.parametrize(
    ("dumps", "capabilities"), [(1, ()), (3, ("eof",))], ids=["disk", "diskless"]
)
def test_instant(dumps: int, capabilities: tuple[str, ...], place: Path) -> None:
    images = [place / f"images-{number}" for number in range(dumps)]
    with Master(place) as master:
        with Replica(master.port, *capabilities) as replica, Asking(master.port) as asking:
            possible = [dump_under_load(master, replica, asking, where) for where in images]
            end = asking.offset()
            wait_until(lambda: replica.end >= end, "the whole stream", 2 * DEADLINE)
        master.kill()
        found = [look(master, where) for where in images]
    offsets = [one.offset for one in found]
    for offset, instants in zip(offsets, possible, strict=True):
        assert offset in instants
    assert [one.digest for one in found] == list(replay(replica, offsets, place / "replay"))
