# SPDX-License-Identifier: Apache-2.0
"""Targets and tools: a program that is to be dumped, and what dumps and restores it.

Everything here is reaped by pid and by us: restored processes come to us as their subreaper, since
a zombie that nobody reaps keeps its pid, and the next restore of it fails.
"""

import contextlib
import ctypes
import fcntl
import os
import pty
import select
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from programs import Program

REPO = Path(__file__).resolve().parents[2]
PROGRAMS = REPO / "tests" / "programs"
PEERS = Path(os.environ.get("CKPT_PEERS", REPO / ".cache" / "peers"))

DEADLINE = 60.0  # a disk may stand still for many seconds
LOG_TAIL = 40
POLL_INTERVAL = 0.002
PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Let orphans of our tools, the restored processes, become our children."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


def build(source: str) -> Path:
    """Path of the test program, compiled if it is not fresh."""
    target = f"bin/{source}"
    subprocess.run(["make", "-s", "-C", str(PROGRAMS), target], check=True)
    return PROGRAMS / target


class Task:
    """A process of ours, held by pidfd; it may be our child only after its own parent ended."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.status: int | None = None

    def ended(self, timeout: float = 0.0) -> bool:
        """Whether it ended within so many seconds."""
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        return bool(poller.poll(timeout * 1000))

    def reap(self, timeout: float = DEADLINE) -> int:
        """Wait for its end and free the pid; returns the wait status."""
        if self.status is None:
            assert self.ended(timeout), f"pid {self.pid} still runs after {timeout:.0f} s"
            self.status = os.waitpid(self.pid, 0)[1]
        return self.status

    def close(self) -> None:
        """Kill and reap it, whatever it does."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            self.reap()
        os.close(self.pidfd)


class Terminal:
    """A pseudo terminal with a shell as its session leader, for programs that need one.

    Commands are typed at the shell, as --shell-job means it: target and restored target live in
    a session that began before them and goes on after them.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.output = b""
        self.master, slave = pty.openpty()
        os.set_blocking(self.master, False)
        self.name = os.ttyname(slave)
        self.shell = subprocess.Popen(
            ["/bin/sh"],
            cwd=REPO,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=self._own_session,
        )
        os.close(slave)
        self._type("set +m; echo 0")  # a job in the background may set the terminal

    @staticmethod
    def _own_session() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def _type(self, line: str) -> int:
        """Type a line that leaves a number in the file `answer`; returns the number."""
        answer = self.directory / "answer"
        answer.unlink(missing_ok=True)
        os.write(self.master, f"{line} > {answer}.new; mv {answer}.new {answer}\n".encode())
        wait_until(lambda: self._drained() and answer.exists(), f"an answer to: {line}")
        return int(answer.read_text())

    def _drained(self) -> bool:
        """Read what is on the screen: when nobody does, those who write stand still."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.master, 65536):
                self.output += data
        return True

    def start(self, argv: Sequence[str]) -> int:
        """Start it in the background, on the terminal; returns its pid, an orphan's: we reap it."""
        return self._type(f"({shlex.join(argv)} < {self.name} > {self.name} & echo $!)")

    def run(self, argv: Sequence[str]) -> int:
        """Run it in the foreground; returns its exit status."""
        return self._type(f"{shlex.join(argv)}; echo $?")

    def close(self) -> None:
        """Hang up."""
        self.shell.kill()
        self.shell.wait()
        os.close(self.master)


def wait_until(condition: Callable[[], bool], what: str, timeout: float = DEADLINE) -> None:
    """Poll a condition until it is true or the time is up."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {timeout:.0f} s"
        time.sleep(POLL_INTERVAL)


@contextlib.contextmanager
def huge_pages(count: int) -> Iterator[None]:
    """So many huge pages more, as far as there are, for a while."""
    knob = Path("/proc/sys/vm/nr_hugepages")
    knob.write_text(str(int(knob.read_text()) + count))
    try:
        yield
    finally:
        knob.write_text(str(max(0, int(knob.read_text()) - count)))


class Target:
    """A running test program, and later its restored copy: same pid, same directory."""

    def __init__(self, program: Program, directory: Path) -> None:
        self.program = program
        self.directory = directory
        self.terminal: Terminal | None = None
        self.task: Task | None = None
        self.cleanup = contextlib.ExitStack()

    def __enter__(self) -> "Target":
        # Programs give up their rights: whoever they become must still get at ready and verdict.
        self.directory.mkdir()
        self.directory.chmod(0o777)
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if self.task:
            self.task.close()
            self.task = None
        if self.terminal:
            self.terminal.close()
            self.terminal = None
        self.cleanup.close()

    @property
    def pid(self) -> int:
        """Of the program, dumped or restored."""
        assert self.task is not None
        return self.task.pid

    def _start(self) -> None:
        if self.program.huge_pages:
            self.cleanup.enter_context(huge_pages(self.program.huge_pages))
        argv = [str(build(self.program.source)), str(self.directory), *self.program.args]
        if self.program.terminal:
            self.terminal = Terminal(self.directory)
            pid = self.terminal.start(argv)
        else:
            pid = _spawn(argv, self.directory)
        self.task = Task(pid)
        ready = self.directory / "ready"
        wait_until(lambda: ready.exists() or self.task.ended(), "`ready`")
        if not ready.exists():
            text = self._verdict()
            if text.startswith("skip:"):
                _skip(text.removeprefix("skip:").strip())
            pytest.fail(f"{self.program.name} did not get ready: {text}", pytrace=False)

    def ended(self) -> None:
        """The dump has killed it: reap it, so that the pid is free."""
        self.task.reap()

    def restored(self, pid: int) -> None:
        """A copy was restored."""
        self.task.close()
        self.task = Task(pid)

    def judge(self, whom: str, images: Path) -> None:
        """Tell it to check itself, and see that it ends well."""
        (self.directory / "go").touch()
        text = self._verdict() if self.task.ended(DEADLINE) else self._where_it_hangs()
        if text != "ok":
            tails = [_tail(log) for log in sorted(images.glob("*.log"))]
            source = PROGRAMS / f"{self.program.source}.c"
            pytest.fail("\n".join([f"{whom}, {source.name}: {text}", *tails]), pytrace=False)
        for name in ("ready", "go", "verdict"):  # a second copy is told anew
            (self.directory / name).unlink(missing_ok=True)
        return text

    def _verdict(self) -> str:
        status = self.task.reap()
        try:
            return (self.directory / "verdict").read_text()
        except FileNotFoundError:
            if os.WIFSIGNALED(status):
                name = signal.Signals(os.WTERMSIG(status)).name
                return f"died of {name} without a verdict"
            return f"exited with {os.WEXITSTATUS(status)} without a verdict"

    def _where_it_hangs(self) -> str:
        """What its threads are at, with the kernel's word for it."""
        tasks = sorted(Path(f"/proc/{self.pid}/task").iterdir())
        places = [f"{task.name} in {(task / 'syscall').read_text().split()[0]}" for task in tasks]
        return f"still runs after {DEADLINE:.0f} s; threads and their system calls: {places}"


def _spawn(argv: list[str], directory: Path) -> int:
    """Start it as the leader of its own session, with nothing of ours open."""
    process = subprocess.Popen(
        argv,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    process.returncode = 0  # a Task reaps it, by pid: Popen must not
    return process.pid


def _skip(reason: str) -> None:
    """Skip, unless we are told that this machine can do everything."""
    if os.environ.get("CKPT_STRICT"):
        pytest.fail(f"CKPT_STRICT: {reason}", pytrace=False)
    pytest.skip(reason)


class Tool:
    """Something with CRIU's command line."""

    name: str
    command: tuple[str, ...]

    def more_options(self, program: Program) -> tuple[str, ...]:
        """Options that only this tool needs."""
        return ()

    def dump(self, target: Target, images: Path, *options: str) -> None:
        """Dump the target; it is gone afterwards, unless -R is among the options."""
        images.mkdir(exist_ok=True)
        self._run(target, "dump", images, "-t", str(target.pid), *options)
        if "-R" not in options:
            target.ended()

    def restore(self, target: Target, images: Path, *options: str) -> None:
        """Restore the target from its images."""
        pidfile = images / "restored.pid"
        pidfile.unlink(missing_ok=True)  # criu refuses to write over it
        self._run(target, "restore", images, "-d", "--pidfile", str(pidfile), *options)
        target.restored(int(pidfile.read_text()))

    def _run(self, target: Target, verb: str, images: Path, *options: str) -> None:
        log = f"{verb}.{self.name}.log"
        argv = [*self.command, verb, "-D", str(images), "-v4", "-o", log]
        argv += [*options, *target.program.options, *self.more_options(target.program)]
        with self._stderr(images) as stderr:
            if target.terminal:
                code = target.terminal.run(argv)
            else:
                code = subprocess.run(
                    argv, cwd=REPO, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr,
                    timeout=2 * DEADLINE, start_new_session=True, check=False,
                ).returncode  # fmt: skip
        if code:
            tails = [_tail(images / log), _tail(images / "stderr")]
            if target.terminal:
                tails.append(target.terminal.output.decode(errors="replace"))
            pytest.fail("\n".join([f"exit code {code}: {shlex.join(argv)}", *tails]), pytrace=False)

    @staticmethod
    @contextlib.contextmanager
    def _stderr(images: Path) -> Iterator[int]:
        fd = os.open(images / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            yield fd
        finally:
            os.close(fd)


def pagers() -> list[int]:
    """The pagers of lazy restores that have not left yet."""
    children = psutil.Process().children(recursive=True)
    found = []
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name().startswith("lazy-") and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child.pid)
    return found


def _tail(log: Path) -> str:
    """Its last lines, and before them those that say error: the cause may be far up."""
    if not log.exists():
        return f"--- no {log.name}"
    lines = log.read_text(errors="replace").splitlines()
    errors = [line for line in lines[:-LOG_TAIL] if "rror" in line]
    return "\n".join([f"--- {log.name}", *errors, *lines[-LOG_TAIL:]])


class Ckpt(Tool):
    """Ours, from this tree."""

    name = "ckpt"
    command = (sys.executable, "-m", "ckpt")


class Criu(Tool):
    """The real one, where there is one."""

    name = "criu"

    def __init__(self) -> None:
        beside = PEERS / "bin" / "criu"
        found = str(beside) if beside.exists() else shutil.which("criu")
        if not found:
            _skip(f"no criu: neither {beside} (see CKPT_PEERS) nor in PATH")
        self.command = (str(found),)

    def more_options(self, program: Program) -> tuple[str, ...]:
        return program.criu_options
