# SPDX-License-Identifier: Apache-2.0
"""Services that are trees of processes, and clients that keep them busy and check each answer."""

import http.client
import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import psutil
from bystander import children
from target import DEADLINE, wait_until
from test_real import Real

Check = Callable[[bytes], bool]


class Service(Real):
    """A Real that is a tree: all of it ends before its copy begins."""

    tree: tuple[int, ...] = ()
    others: frozenset[int] = frozenset()

    def note(self) -> None:
        """Take note of who belongs to it, before it is dumped to be killed."""
        self.tree = tuple(one.pid for one in psutil.Process(self.pid).children(recursive=True))
        self.others = frozenset(children())

    def ended(self) -> None:
        gone(self.tree)
        super().ended()
        gone(self._orphans())

    def _orphans(self) -> tuple[int, ...]:
        """Return who was born since note(): ours by now."""
        return tuple(children() - self.others) if self.others else ()

    def kill(self) -> None:
        self.note()
        for pid in (self.pid, *self.tree):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.ended()

    def __exit__(self, *exc: object) -> None:
        if self.task and self.task.status is None:
            with suppress(psutil.NoSuchProcess):
                self.kill()
        super().__exit__(*exc)


def gone(pids: tuple[int, ...]) -> None:
    """See that killed processes have ended, and free their pids, which are orphans' of ours."""

    def ended(pid: int) -> bool:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        return not psutil.pid_exists(pid)

    for pid in reversed(pids):
        wait_until(partial(ended, pid), f"end of {pid}")


class Clients:
    """Threads that ask over http all the time; each notes what was wrong, and how long it took.

    Every other one makes a connection for each question, the others keep theirs. They reset them
    rather than to leave them waiting for a minute, in the way of a copy.
    """

    def __init__(self, port: int, questions: dict[str, Check], count: int = 6) -> None:
        self.port, self.questions = port, list(questions.items())
        self.answered, self.longest = 0, 0.0
        self.wrong: list[str] = []
        self.lost: list[str] = []
        self._stop = threading.Event()
        self._sockets: dict[int, socket.socket] = {}
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(count)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        self.more(50)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int) -> None:
        """Wait for so many answers more."""
        enough = self.answered + count
        wait_until(lambda: self.answered >= enough or self._trouble(), f"{count} answers")
        assert not self._trouble(), self._trouble()[:5]

    def _trouble(self) -> list[str]:
        return self.wrong + self.lost

    def cut_off(self) -> None:
        """The server was killed: that answers stay away is no wonder, but none was wrong."""
        self._stop.set()
        wait_until(self._hung_up, "the end of all clients")
        assert not self.wrong, self.wrong[:5]

    def _hung_up(self) -> bool:
        for one in [*self._sockets.values()]:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        return not any(thread.is_alive() for thread in self._threads)

    def _ask(self, number: int) -> None:
        try:
            with ExitStack() as opened:
                while not self._stop.is_set():
                    self._sockets[number] = made = socket.socket()
                    connection = opened.enter_context(connected(self.port, made))
                    self._talk(connection, 1 if number % 2 else 1 << 30)
                    opened.close()
        except (OSError, http.client.HTTPException) as error:
            self.lost.append(repr(error))

    def _talk(self, connection: http.client.HTTPConnection, questions: int) -> None:
        for _ in range(questions):
            if self._stop.is_set() or not connection.sock:  # the server does not keep it
                return
            path, check = random.choice(self.questions)
            begun = time.monotonic()
            self._one(connection, path, check)
            self.longest = max(self.longest, time.monotonic() - begun)
            self.answered += 1

    def _one(self, connection: http.client.HTTPConnection, path: str, check: Check) -> None:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200 or not check(body):
            self.wrong.append(f"{path}: {answer.status}, {len(body)} bytes, {body[:60]!r}")


@contextmanager
def connected(port: int, made: socket.socket | None = None) -> Iterator[http.client.HTTPConnection]:
    """Yield a connection that is reset in the end."""
    with made or socket.socket() as sock:
        sock.settimeout(DEADLINE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.connect(("127.0.0.1", port))
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.sock, connection.auto_open = sock, 0
        yield connection
