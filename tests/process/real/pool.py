# SPDX-License-Identifier: Apache-2.0
"""A multiprocessing program at work: a pool, a queue, shared memory, a lock, a manager.

pool.py PORT-FILE: answers /digest (what must stay as it is), /check (whether what moves fits
together) and /progress (a number that grows) on the loopback, at a port it leaves in PORT-FILE.
"""

import multiprocessing
import os
import sys
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import shared_memory
from pathlib import Path

SIZE = 8 << 20
ACCOUNTS = 1000


def crc(number: int) -> tuple[int, int]:
    """What a worker of the pool is asked: a part of the shared memory, by name."""
    part = SIZE // 64
    block = shared_memory.SharedMemory("ckpt-test-" + str(os.getppid()))
    found = zlib.crc32(bytes(block.buf[number * part : (number + 1) * part]))
    block.close()
    return number, found


def move(accounts, lock, queue) -> None:
    """Move between accounts that are shared, and tell of each move."""
    for number in range(1 << 62):
        sender, receiver = number * 7919 % ACCOUNTS, number * 104729 % ACCOUNTS
        with lock:
            accounts[sender] -= 1
            accounts[receiver] += 1
        queue.put((number, "x" * (number % 3000)))


class Work:
    """Processes that never end, and what they share."""

    def __init__(self) -> None:
        self.block = shared_memory.SharedMemory("ckpt-test-" + str(os.getpid()), True, SIZE)
        self.block.buf[:] = bytes(range(251)) * (SIZE // 251) + bytes(SIZE % 251)
        self.pool = multiprocessing.Pool(2)
        self.right = dict(self.pool.map(crc, range(64)))
        self.accounts = multiprocessing.Array("q", ACCOUNTS, lock=False)
        self.lock = multiprocessing.Lock()
        self.queue: multiprocessing.Queue = multiprocessing.Queue(50)
        self.manager = multiprocessing.Manager()
        self.kept = self.manager.dict({f"key {number}": number for number in range(100)})
        self.wrong = self.taken = self.asked = 0
        self.mover = multiprocessing.Process(
            target=move, args=(self.accounts, self.lock, self.queue), daemon=True
        )
        self.mover.start()
        for work in (self.take, self.ask):
            threading.Thread(target=work, daemon=True).start()

    def take(self) -> None:
        """Each move has its number, and comes once."""
        while True:
            number, text = self.queue.get()
            self.wrong += number != self.taken or len(text) != number % 3000
            self.taken += 1

    def ask(self) -> None:
        while True:
            answers = self.pool.imap_unordered(crc, range(64))
            self.wrong += dict(answers) != self.right
            self.asked += 1

    def answer(self, question: str) -> str:
        if question == "/digest":
            with_manager = sorted(self.kept.items())
            return f"{zlib.crc32(self.block.buf)} {zlib.crc32(repr(with_manager).encode())}"
        if question == "/progress":
            return str(min(self.taken, self.asked))
        with self.lock:
            total = sum(self.accounts)
        return "ok" if not total and not self.wrong else f"sum {total}, {self.wrong} wrong"


class Handler(BaseHTTPRequestHandler):
    work: Work
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        text = self.work.answer(self.path).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    Handler.work = Work()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    draft = Path(sys.argv[1] + ".new")
    draft.write_text(str(server.server_port))
    os.replace(draft, sys.argv[1])
    server.serve_forever()


if __name__ == "__main__":
    main()
