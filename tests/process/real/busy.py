# SPDX-License-Identifier: Apache-2.0
"""A Python program at work: threads, locks, a queue, timers, sqlite in memory, an epoll loop.

busy.py PORT-FILE: answers /digest (what must stay as it is), /check (whether what moves fits
together) and /progress (a number that grows) on the loopback, at a port it leaves in PORT-FILE.
"""

import hashlib
import os
import queue
import random
import selectors
import socket
import sqlite3
import sys
import threading
import time
from pathlib import Path

BALLAST = 64 << 20
ACCOUNTS = 1000


class Ledger:
    """Accounts in sqlite: whatever is moved between them, the sum stays."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.base = sqlite3.connect(":memory:", check_same_thread=False)
        self.base.execute("create table account (id integer primary key, sum integer)")
        self.base.execute("create table fixed (id integer primary key, text text)")
        rows = [(number,) for number in range(ACCOUNTS)]
        self.base.executemany("insert into account values (?, 100)", rows)
        rows = [(number, f"row {number * number}") for number in range(20000)]
        self.base.executemany("insert into fixed values (?, ?)", rows)
        self.base.commit()
        self.moves = 0

    def move(self, dice: random.Random) -> None:
        sender, receiver = dice.sample(range(ACCOUNTS), 2)
        with self.lock, self.base:
            self.base.execute("update account set sum = sum - 1 where id = ?", (sender,))
            self.base.execute("update account set sum = sum + 1 where id = ?", (receiver,))
            self.moves += 1

    def fits(self) -> bool:
        with self.lock:
            (total,) = self.base.execute("select sum(sum) from account").fetchone()
            return total == 100 * ACCOUNTS

    def fixed(self) -> bytes:
        with self.lock:
            return repr(self.base.execute("select * from fixed order by id").fetchall()).encode()


class Work:
    """Threads that never end, and what they share."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.ballast = random.Random(1).randbytes(BALLAST)
        self.tasks: queue.Queue[int] = queue.Queue(100)
        self.lock = threading.Condition()
        self.produced = self.consumed = self.rings = 0
        for number, work in enumerate([self.move, self.move, self.produce, self.consume]):
            threading.Thread(target=work, args=(random.Random(number),), daemon=True).start()
        self.ring()

    def move(self, dice: random.Random) -> None:
        while True:
            self.ledger.move(dice)
            time.sleep(0.001)

    def produce(self, dice: random.Random) -> None:
        while True:
            number = dice.randrange(100)
            self.tasks.put(number)
            with self.lock:
                self.produced += number
                self.lock.notify_all()

    def consume(self, dice: random.Random) -> None:
        while True:
            number = self.tasks.get()
            with self.lock:
                self.consumed += number
            if dice.random() < 0.1:
                time.sleep(0.001)

    def ring(self) -> None:
        """Each timer is a thread that ends: one more comes up, one goes."""
        self.rings += 1
        self.timer = threading.Timer(0.02, self.ring)
        self.timer.daemon = True
        self.timer.start()

    def answer(self, question: str) -> str:
        if question == "/digest":
            return hashlib.sha256(self.ballast + self.ledger.fixed()).hexdigest()
        if question == "/progress":
            return str(min(self.ledger.moves, self.consumed, self.rings))
        # At most a full queue, and one number in the hands of each side, is between the two.
        behind = self.produced - self.consumed
        return "ok" if self.ledger.fits() and -100 <= behind <= 102 * 100 else f"behind by {behind}"


def serve(work: Work, listener: socket.socket) -> None:
    with selectors.EpollSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select(0.5):
                if key.fileobj is listener:
                    selector.register(listener.accept()[0], selectors.EVENT_READ)
                    continue
                client = key.fileobj
                assert isinstance(client, socket.socket)
                selector.unregister(client)
                with client:
                    text = work.answer(client.recv(4096).split()[1].decode())
                    client.sendall(f"HTTP/1.0 200 OK\r\n\r\n{text}".encode())


def main() -> None:
    work = Work()
    listener = socket.create_server(("127.0.0.1", 0))
    port_file = Path(sys.argv[1])
    draft = port_file.with_suffix(".new")
    draft.write_text(str(listener.getsockname()[1]))
    os.replace(draft, port_file)
    serve(work, listener)


main()
