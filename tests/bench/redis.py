# SPDX-License-Identifier: Apache-2.0
"""`make bench-redis`: what a live dump costs redis-server under load, beside its own BGSAVE.

redis-benchmark sets keys as fast as it can, and a client of ours asks for one each ms and takes
down how long the answer takes. Each disturbance is compared with the undisturbed time just before
it; they take turns, medians of the rounds are told. The table goes to docs/bench-redis.md.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.bench.bench import PEERS, REPO, wait_until
from tests.bench.live_report import machine

MIB = 1 << 20
VALUE = 1000  # bytes
CLIENTS = 8
CALM = 2.0  # s
PAUSE = 0.001
REPORT = REPO / "docs/bench-redis.md"


class Line:
    """A connection that asks one thing after the other."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def ask(self, *words: str) -> bytes:
        blocks = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
        self._socket.sendall(f"*{len(words)}\r\n{blocks}".encode())
        reply = self._file.readline()
        if reply[:1] != b"$":
            assert reply[:1] != b"-", reply
            return reply
        size = int(reply[1:])
        return self._file.read(size + 2)[:-2] if size >= 0 else b""

    def info(self, name: str) -> str:
        found = dict(one.split(":", 1) for one in self.ask("INFO").decode().split() if ":" in one)
        return found[name]

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class Witness(threading.Thread):
    """Asks for a key each ms, and takes down when, and how long that took, in s."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._line, self._ending = Line(port), threading.Event()
        self.took: list[tuple[float, float]] = []

    def run(self) -> None:
        while not self._ending.is_set():
            since = time.monotonic()
            self._line.ask("GET", "key:1")
            self.took.append((since, time.monotonic() - since))
            time.sleep(PAUSE)

    def end(self) -> None:
        self._ending.set()
        self.join()
        self._line.close()

    def p99(self, begin: float, end: float) -> float:
        took = sorted(took for since, took in self.took if begin <= since < end)
        return took[len(took) * 99 // 100] if took else float("nan")


class Cost(NamedTuple):
    """How it did for a while: commands a second, and the 99th of 100 answers in s."""

    pace: float
    p99: float


class Server:
    """redis-server with so much in it, under load, and with a witness."""

    def __init__(self, place: Path, mib: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.keys = mib * MIB // VALUE
        more = ("--save", "", "--dir", str(place), "--enable-debug-command", "yes")
        self._server = self._run("redis-server", "--port", str(self.port), *more)
        self.pid = self._server.pid
        wait_until(self._is_up, "redis-server")
        self.line = Line(self.port)
        self.line.ask("DEBUG", "POPULATE", str(self.keys), "key", str(VALUE))
        options = ("-t", "set", "-d", str(VALUE), "-r", str(self.keys), "-c", str(CLIENTS), "-q")
        self._load = self._run("redis-benchmark", "-p", str(self.port), "-n", str(10**9), *options)
        self.witness = Witness(self.port)
        self.witness.start()

    @staticmethod
    def _run(name: str, *args: str) -> "subprocess.Popen[bytes]":
        program = shutil.which(name, path=f"{PEERS}/bin:{os.environ.get('PATH', '')}")
        assert program, f"no {name}: run `make peers`"
        null = subprocess.DEVNULL
        return subprocess.Popen([program, *args], stdin=null, stdout=null, start_new_session=True)

    def _is_up(self) -> bool:
        try:
            Line(self.port).close()
        except ConnectionRefusedError:
            return False
        return True

    def close(self) -> None:
        self.witness.end()
        self.line.close()
        for process in (self._load, self._server):
            process.kill()
            process.wait()

    def cost(self, do: Callable[[], object]) -> Cost:
        """Measure how it does while something is done to it."""
        begin, before = time.monotonic(), int(self.line.info("total_commands_processed"))
        do()
        done, end = int(self.line.info("total_commands_processed")), time.monotonic()
        return Cost((done - before) / (end - begin), self.witness.p99(begin, end))


def calm() -> None:
    time.sleep(CALM)


def bgsave(server: Server) -> None:
    server.line.ask("BGSAVE")
    wait_until(lambda: server.line.info("rdb_bgsave_in_progress") == "0", "end of BGSAVE")


def dump(server: Server, images: Path, *options: str) -> None:
    words = ("dump", "-t", str(server.pid), "-D", str(images), "-R", "--tcp-established")
    argv = [str(REPO / ".venv/bin/ckpt"), *words, "--engine", "live", *options]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    shutil.rmtree(images)


def disk_rate(place: Path, size: int = 512 * MIB) -> float:
    """Return what the disk takes, in bytes a second, until it is there."""
    piece, since = os.urandom(MIB), time.monotonic()
    with (place / "rate").open("wb") as file:
        for _ in range(size // MIB):
            file.write(piece)
        os.fsync(file.fileno())
    (place / "rate").unlink()
    return size / (time.monotonic() - since)


@contextmanager
def served(mib: int) -> Iterator[tuple[Server, Path]]:
    place = Path(tempfile.mkdtemp(prefix="ckpt-bench-", dir="/var/tmp"))
    try:
        server = Server(place, mib)
        try:
            yield server, place
        finally:
            server.close()
    finally:
        shutil.rmtree(place)


class Demand(NamedTuple):
    """What is kept of the undisturbed pace, at least, and by what p99 may grow, at most."""

    name: str
    pace: float
    p99: float


DEMANDS = (
    Demand("live dump", 0.7, 3),
    Demand("live dump, a quarter of the disk's rate", 0.9, 2),
    Demand("BGSAVE", 0, 0),
)


def measure(mib: int, rounds: int) -> dict[str, list[tuple[Cost, Cost]]]:
    """Return for each disturbance the costs before and during it."""
    found = defaultdict(list)
    with served(mib) as (server, place):
        slow = ("--max-rate", str(int(disk_rate(place) / 4)))
        images = place / "images"
        work: tuple[Callable[[], object], ...] = (
            lambda: dump(server, images),
            lambda: dump(server, images, *slow),
            lambda: bgsave(server),
        )
        calm()
        for _ in range(rounds):
            for demand, do in zip(DEMANDS, work, strict=True):
                before = server.cost(calm)
                found[demand.name].append((before, server.cost(do)))
                print(f"{demand.name}: {before} {found[demand.name][-1][1]}", file=sys.stderr)
    return found


def table(found: dict[str, list[tuple[Cost, Cost]]]) -> Iterator[str]:
    yield "| | undisturbed /s | meanwhile /s | kept | p99 before | p99 | times | met |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for demand in DEMANDS:
        costs = found[demand.name]
        kept = median(during.pace / before.pace for before, during in costs)
        grown = median(during.p99 / before.p99 for before, during in costs)
        paces = (median(cost.pace for cost in one) for one in zip(*costs, strict=True))
        p99s = (median(cost.p99 for cost in one) for one in zip(*costs, strict=True))
        pace = " | ".join(f"{pace:,.0f}" for pace in paces)
        p99 = " | ".join(f"{p99 * 1e3:.2f} ms" for p99 in p99s)
        met = "yes" if kept >= demand.pace and grown <= demand.p99 else "no"
        asked = f"{met} ({demand.pace:.0%}, {demand.p99} times)" if demand.pace else ""
        yield f"| {demand.name} | {pace} | {kept:.0%} | {p99} | {grown:.1f} | {asked} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="of values in redis")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    lines = [*table(measure(args.mib, args.rounds))]
    print("\n".join(lines))
    REPORT.write_text(
        f"""<!-- SPDX-License-Identifier: Apache-2.0 -->
# What a live dump costs redis under load

Made by `make bench-redis`, not by hand: medians of {args.rounds} rounds, {args.mib} MiB of values.
{machine()}

redis-benchmark sets keys with {CLIENTS} clients as fast as it can; a witness asks for one each
ms. Each disturbance is compared with the undisturbed {CALM:.0f} s before it.

"""
        + "\n".join(lines)
        + "\n"
    )


if __name__ == "__main__":
    main()
