# SPDX-License-Identifier: Apache-2.0
"""Whatever kills a dump, and whenever: the target runs on untouched, and there is no half image."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from attempts import (
    KILLS,
    PROGRAM,
    SEED,
    aftermath,
    as_long_as_it_takes,
    check_restored,
    check_verdict,
    chosen,
    in_memory,
    killing,
    others_gone,
    tried,
)
from bystander import python
from harm import Harm, look, untouched
from programs import Program
from stepping import Command, boundaries, run
from target import REPO, Target, wait_until

from ckpt.errors import ImageError, NoSuchTask, TargetDied
from ckpt.kernel import maps
from ckpt.kernel.arch import NR
from ckpt.kernel.kcmp import Kcmp, kcmp
from ckpt.kernel.procfs import is_ending

pytestmark = pytest.mark.process

ENGINES = {
    "stop": ("-R", "--engine", "stop"),
    "live": ("-R", "--engine", "live"),
    "fork": ("-R", "--engine", "fork"),
    "end": (),
}
each_engine = pytest.mark.parametrize("engine", ENGINES)


@pytest.fixture
def place() -> Iterator[Path]:
    yield from in_memory()


def dump_of(target: Target, place: Path, engine: str) -> Command:
    return Command(place, "dump", "-t", target.pid, "-D", place / "images", *ENGINES[engine])


def calls_of_a_dump(place: Path, engine: str) -> range:
    """The boundaries from the first trace of the target to the last."""
    with Target(PROGRAM, place / "target") as target:
        survey = dump_of(target, place, engine)
        _, tracing = boundaries(survey)
        assert survey.code == 0, survey.said
    shutil.rmtree(place / "images")
    return tracing


@as_long_as_it_takes
@each_engine
def test_a_dump_killed_at_a_system_call(engine, place):
    def attempt(place: Path, number: int) -> Counter[str]:
        with Target(PROGRAM, place / "target") as target:
            before, seen = look(target.pid), Counter()
            visit, calls = killing(number)
            command = dump_of(target, place, engine)
            command.step(visit)
            seen["killed" if command.code == -signal.SIGKILL else "too late"] += 1
            try:
                aftermath(target, before, place / "images", seen, twice=number % 4 == 0)
            except Harm as harm:
                raise Harm(f"{calls[-1]}: {harm}") from None
        return seen

    tried(chosen(calls_of_a_dump(place, engine)), place, attempt)


@as_long_as_it_takes
@each_engine
def test_a_dump_killed_at_a_random_moment(engine, place):
    """Without a tracer of its own it runs as fast as it does."""
    with Target(PROGRAM, place / "target") as target:
        begun = time.monotonic()
        assert run(place, "dump", "-t", target.pid, "-D", place / "i", *ENGINES[engine])[0] == 0
        took = int((time.monotonic() - begun) * 1e6)

    def attempt(place: Path, us: int) -> Counter[str]:
        with Target(PROGRAM, place / "target") as target:
            before, seen = look(target.pid), Counter()
            command = dump_of(target, place, engine)
            command.begin()
            time.sleep(us / 1e6)
            os.kill(command.pid, signal.SIGKILL)
            seen["killed" if command.wait() == -signal.SIGKILL else "too late"] += 1
            aftermath(target, before, place / "images", seen, twice=us % 4 == 0)
        return seen

    count = 500 if KILLS == "all" else 4 * int(KILLS)
    tried(sorted(random.Random(SEED).sample(range(took), count)), place, attempt)


def with_its_memory(target: Target) -> list[int]:
    """Who shares the memory of the target, itself included."""
    family = [target.pid, *(one.pid for one in psutil.Process(target.pid).children(recursive=True))]
    return [pid for pid in family if not is_ending(pid) and not kcmp(Kcmp.VM, target.pid, pid)]


@as_long_as_it_takes
@pytest.mark.parametrize("engine", ["stop", "live"] if KILLS == "3" else ["stop", "live", "fork"])
def test_a_dump_killed_of_who_share_their_memory(engine, place):
    """Each has a segment of ours in it, and a way home of its own."""
    program = Program("tree_vm", "tree_vm")
    with Target(program, place / "target") as target:
        begun = time.monotonic()
        assert run(place, "dump", "-t", target.pid, "-D", place / "i", *ENGINES[engine])[0] == 0
        took = int((time.monotonic() - begun) * 1e6)
        check_verdict(target)  # so that all end

    def attempt(place: Path, us: int) -> Counter[str]:
        with Target(program, place / "target") as target:
            before, seen = {pid: look(pid) for pid in with_its_memory(target)}, Counter()
            command = dump_of(target, place, engine)
            command.begin()
            time.sleep(us / 1e6)
            os.kill(command.pid, signal.SIGKILL)
            seen["killed" if command.wait() == -signal.SIGKILL else "too late"] += 1
            harms = {pid: untouched(before[pid], pid) for pid in before}
            if any(harms.values()):
                raise Harm(str(harms))
            aftermath(target, before[target.pid], place / "images", seen, twice=False)
        return seen

    count = 500 if KILLS == "all" else int(KILLS)
    tried(sorted(random.Random(SEED).sample(range(took // 4, took), count)), place, attempt)


@as_long_as_it_takes
@each_engine
@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM], ids=lambda signo: signo.name)
def test_a_dump_that_is_interrupted(engine, signo, place):
    """It lets go and removes what it has written, if it has not just finished."""

    def attempt(place: Path, number: int) -> Counter[str]:
        with Target(PROGRAM, place / "target") as target:
            before, seen = look(target.pid), Counter()
            command = dump_of(target, place, engine)
            command.step(lambda at, _: at == number and os.kill(command.pid, signo))
            if command.code == 0:
                shutil.rmtree(place / "images")
                seen["too late"] += 1
                return seen
            seen["interrupted"] += 1
            if command.code != 128 + signo or (place / "images").exists():
                raise Harm(f"exit code {command.code}: {command.said}")
            aftermath(target, before, place / "images", seen, twice=False)
        return seen

    tried(chosen(calls_of_a_dump(place, engine))[::2], place, attempt)


@as_long_as_it_takes
@each_engine
def test_a_target_killed_while_it_is_dumped(engine, place):
    """Said so, or dumped as it was when it died; and no image of half of it."""

    def attempt(place: Path, number: int) -> Counter[str]:
        with Target(PROGRAM, place / "target") as target:
            command = dump_of(target, place, engine)
            command.step(lambda at, _: at == number and os.kill(target.pid, signal.SIGKILL))
            images = place / "images"
            if command.code not in (0, NoSuchTask.exit_code, TargetDied.exit_code):
                raise Harm(f"exit code {command.code}: {command.said}")
            if command.code == 0:
                target.ended()
                others_gone()  # the fork engine's child would keep the process group's id taken
                check_restored(target, images)
            elif images.exists():
                raise Harm(f"left: {os.listdir(images)}")
        return Counter([f"exit code {command.code}"])

    tried(chosen(calls_of_a_dump(place, engine)), place, attempt)


@as_long_as_it_takes
@each_engine
def test_a_directory_removed_while_it_is_written_to(engine, place):
    def attempt(place: Path, number: int) -> Counter[str]:
        def remove(at: int, _: int) -> bool:
            if at == number:
                shutil.rmtree(place / "images")
            return False

        with Target(PROGRAM, place / "target") as target:
            before, seen = look(target.pid), Counter()
            command = dump_of(target, place, engine)
            command.step(remove)
            if command.code != ImageError.exit_code:
                raise Harm(f"exit code {command.code}: {command.said}")
            aftermath(target, before, place / "images", seen, twice=False)
        return Counter([command.said.rpartition(": ")[2].strip()])

    tried(chosen(calls_of_a_dump(place, engine))[::2], place, attempt)


SOCKETS = (
    Program("tcp_connected", "tcp_connected", options=("--tcp-established",)),
    Program("tcp_half_closed", "tcp_half_closed", options=("--tcp-established",)),
    Program("unix_pairs", "unix_pairs"),
    Program("unix_scm_senders", "unix_scm", ("senders",)),
    Program("unix_scm_nested", "unix_scm", ("nested",)),
)


@as_long_as_it_takes
@pytest.mark.parametrize("engine", ["stop", "end"])
@pytest.mark.parametrize("program", SOCKETS, ids=lambda program: program.name)
def test_a_dump_killed_while_a_socket_is_not_itself(program, engine, place):
    """In repair, or with an offset for peeking: options of an open file, which outlive us."""
    options = (*ENGINES[engine], *program.options)
    with Target(program, place / "target") as target:
        survey = Command(place, "dump", "-t", target.pid, "-D", place / "images", *options)
        calls, _ = boundaries(survey)
        assert survey.code == 0, survey.said
    shutil.rmtree(place / "images")
    setting = [number for number, call in enumerate(calls) if call == NR.setsockopt]

    def attempt(place: Path, number: int) -> Counter[str]:
        with Target(program, place / "target") as target:
            before, seen = look(target.pid), Counter()
            images = place / "images"
            command = Command(place, "dump", "-t", target.pid, "-D", images, *options)
            command.step(killing(number)[0])
            if not target.task.ended():
                aftermath(target, before, images, seen, twice=False)
        return seen

    tried(chosen(setting), place, attempt)


CLONE, WAIT4 = 56, 61


@as_long_as_it_takes
def test_a_dump_killed_while_a_terminal_is_read(place):
    """What its child has read away by then it types again, and ends."""
    program, options = Program("pty_unread", "pty", ("unread",)), ENGINES["stop"]
    with Target(program, place / "target") as target:
        survey = Command(place, "dump", "-t", target.pid, "-D", place / "images", *options)
        calls, tracing = boundaries(survey)
        assert survey.code == 0, survey.said
    shutil.rmtree(place / "images")
    begun = calls.index(CLONE, tracing.start)
    ended = calls.index(WAIT4, begun)

    def attempt(place: Path, number: int) -> Counter[str]:
        with Target(program, place / "target") as target:
            before, seen = look(target.pid), Counter()
            command = Command(place, "dump", "-t", target.pid, "-D", place / "images", *options)
            command.step(killing(number)[0])
            aftermath(target, before, place / "images", seen, twice=False)
        return seen

    tried(chosen(range(begun, ended + 1)), place, attempt)


_RECEIVING = """
import mmap, threading
memory = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[0] = 1
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
with open(place + "/where", "w") as file:
    file.write(f"{ctypes.addressof(ctypes.c_char.from_buffer(memory))} {server.fileno()}")
def receive():
    client.sendall(b"x" * 100)
    with open(place + "/received", "w") as file:
        file.write(str(server.recv_into(memory)))
signal.signal(signal.SIGUSR1, lambda *_: threading.Thread(target=receive).start())
"""
_WAITING = """
import os, signal, socket, sys
from ckpt.guard import Guard
from ckpt.infect import fetch_userfaultfd
from ckpt.kernel.pidfd import pidfd_getfd, pidfd_open
from ckpt.kernel.userfaultfd import TRACKING, Mode
from ckpt.kernel.way import way_to
from ckpt.sandbox import Sandbox
pid, start, number = map(int, sys.argv[1:])
way, pidfd, kept = way_to(pid), pidfd_open(pid), []
class Registrar:
    def plan(self, mappings):
        pass
    def register(self, uffd):
        assert uffd.register_all([(start, start + 4096)], Mode.WP)
        kept.append(uffd)
with Guard() as guard, guard.ward(pid) as ward:
    fetch_userfaultfd(way, pidfd, TRACKING, Registrar(), ward, Sandbox(way), [])
    kept[0].protect([(start, 4096)])
    os.kill(pid, signal.SIGUSR1)
    def waits(task):
        return open(f"/proc/{pid}/task/{task}/wchan").read() == "handle_userfault"
    while not any(map(waits, os.listdir(f"/proc/{pid}/task"))):
        pass
    print(flush=True)
    socket.socket(fileno=pidfd_getfd(pidfd, number))
"""


def test_a_dump_killed_while_it_waits_for_a_lock_of_the_target(place):
    """Which waits for us: its recv(2) has faulted. The guard frees both, SIGKILL alone does not."""
    with python(f"place = {str(place)!r}\n{_RECEIVING}") as task:
        where = (place / "where").read_text().split()
        argv = [sys.executable, "-c", _WAITING, str(task.pid), *where]
        with subprocess.Popen(argv, cwd=REPO, stdout=subprocess.PIPE) as ours:
            ours.stdout.readline()
            state = Path(f"/proc/{ours.pid}/status")
            wait_until(lambda: "State:\tD" in state.read_text(), "wait for the lock")
            ours.kill()
            received = place / "received"
            wait_until(lambda: received.exists() and received.read_text(), "end of recv(2)")
        assert received.read_text() == "100"
        others_gone(but=task.pid)
        assert not [one for one in maps.smaps(task.pid) if one.vm_flags & {"um", "uw"}]
