# SPDX-License-Identifier: Apache-2.0
import fcntl
import os
import pty
import random
import select
import struct
import termios
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckpt.errors import CkptError, ImageError, KernelError, Unsupported
from ckpt.files import ttydata
from ckpt.files.kind import NotNow
from ckpt.files.tty import Tty
from ckpt.image import pb
from ckpt.options import DumpOptions
from tests.unit.files.roundtrip import Trip


class Terminals:
    """Makes pseudo terminals that the test need not close, and takes them through an image."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.open: set[int] = set()

    def pair(self) -> tuple[int, int]:
        master, slave = pty.openpty()
        self.open |= {master, slave}
        return master, slave

    def close(self, *fds: int) -> None:
        for fd in fds:
            os.close(fd)
            self.open.discard(fd)

    def restore(self, *ids: int) -> list[int]:
        made = self.trip.restore(Tty, *ids)
        self.open |= set(made)
        self.trip.make.close(ok=True)
        return made

    def through(self, *fds: int, **options: object) -> list[int]:
        self.trip = Trip(self.place, **options)
        ids = self.trip.dump(Tty, *fds)
        self.close(*fds)
        return self.restore(*ids)


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    made = Terminals(tmp_path)
    yield made
    made.close(*list(made.open))


def quiet(fd: int) -> list[object]:
    """Set a mode to be recognised by; returns it."""
    mode = termios.tcgetattr(fd)
    mode[3] &= ~(termios.ECHO | termios.ICANON)
    mode[6][termios.VINTR] = b"\x07"
    termios.tcsetattr(fd, termios.TCSANOW, mode)
    return termios.tcgetattr(fd)


def size(fd: int) -> tuple[int, ...]:
    return struct.unpack("4H", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))


def test_pair(terminals: Terminals) -> None:
    master, slave = terminals.pair()
    mode, path = quiet(slave), os.ttyname(slave)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", 33, 99, 0, 0))
    slave, master = terminals.through(slave, master)
    assert os.ttyname(slave) == path
    assert termios.tcgetattr(slave) == mode
    assert size(slave) == size(master) == (33, 99, 0, 0)
    os.write(master, b"in")
    assert os.read(slave, 9) == b"in"
    os.write(slave, b"out")
    assert os.read(master, 9) == b"out"


def test_lone_master_in_packet_mode(terminals: Terminals) -> None:
    master, slave = terminals.pair()
    terminals.close(slave)
    fcntl.ioctl(master, termios.TIOCPKT, struct.pack("i", 1))
    index = os.ptsname(master) if hasattr(os, "ptsname") else None
    [master] = terminals.through(master)
    assert any(fcntl.ioctl(master, 0x80045438, bytes(4)))
    assert index is None or os.ptsname(master) == index


def test_locked_master(terminals: Terminals) -> None:
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    terminals.open.add(master)
    [master] = terminals.through(master)
    assert any(fcntl.ioctl(master, 0x80045439, bytes(4)))


def test_records_are_as_criu_writes_them(terminals: Terminals) -> None:
    master, slave = terminals.pair()
    index = os.minor(os.fstat(slave).st_rdev)
    terminals.trip = Trip(terminals.place)
    terminals.trip.dump(Tty, master, slave)
    infos = [info for info, _ in terminals.trip.image.records("tty-info")]
    assert [info.id for info in infos] == [2 * index + 1, 2 * index]
    assert [info.rdev for info in infos] == [1282, (136 << 8) + index]
    assert list(infos[0].termios.c_cc)[:5] == [0x157F1C03, 0x00010004, 0x001A1311, 0x16170F12, 0]
    assert len(infos[0].termios.c_cc) == 19
    [path] = [
        e.reg.name
        for e in terminals.trip.entries.values()
        if e.tty.tty_info_id == 0 and e.reg.name.startswith("/dev/pts/")
    ]
    assert path == os.ttyname(slave)


def test_output_whose_terminal_is_closed(terminals: Terminals) -> None:
    master, slave = terminals.pair()
    os.write(slave, b"output")
    terminals.close(slave)
    terminals.trip = Trip(terminals.place)
    ids = terminals.trip.dump(Tty, master)
    check_last_words(master)
    terminals.close(master)
    check_last_words(*terminals.restore(*ids))


def check_last_words(master: int) -> None:
    assert os.read(master, 99) == b"output"
    with pytest.raises(OSError, match="Input/output error"):
        os.read(master, 99)


def test_output_whose_terminal_is_outside(terminals: Terminals) -> None:
    master, slave = terminals.pair()
    os.write(slave, b"output")
    select.select([master], [], [])
    with pytest.raises(NotNow, match="other end is outside"):
        terminals.through(master)


def test_output_of_one_that_is_stopped(terminals: Terminals) -> None:
    """It takes nothing back: so nothing is read."""
    master, slave = terminals.pair()
    os.write(slave, b"output")
    select.select([master], [], [])
    os.write(master, b"\x13")
    poll = select.poll()
    poll.register(slave, select.POLLOUT)
    while poll.poll(1):
        pass
    with pytest.raises(Unsupported, match="stopped"):
        terminals.through(master, slave)
    assert os.read(master, 99) == b"output"


def test_more_than_fits_in_again(terminals: Terminals) -> None:
    master, slave = terminals.pair()
    quiet(slave)
    os.write(slave, b"x" * 5000)
    select.select([master], [], [])
    terminals.trip = Trip(terminals.place)
    with pytest.raises(NotNow, match="more unread data"):
        terminals.trip.dump(Tty, master, slave)
    got = b""
    while len(got) < 5000:
        got += os.read(master, 5000)


def test_one_that_signals(terminals: Terminals) -> None:
    master, slave = terminals.pair()
    quiet(slave)
    os.write(master, b"x")
    select.select([slave], [], [])
    fcntl.fcntl(slave, fcntl.F_SETFL, os.O_RDWR | os.O_ASYNC)
    terminals.trip = Trip(terminals.place)
    terminals.trip.dump(Tty)
    of_master, of_slave = terminals.trip.files(master, slave)
    Tty.check(of_master, DumpOptions(pid=os.getpid()))
    with pytest.raises(NotNow, match="O_ASYNC"):
        Tty.check(of_slave, DumpOptions(pid=os.getpid()))
    with pytest.raises(NotNow, match="O_ASYNC"):
        Tty.dump(of_master, terminals.trip.out)


def test_a_master_that_has_not_read_a_change(terminals: Terminals) -> None:
    master, slave = terminals.pair()
    fcntl.ioctl(master, termios.TIOCPKT, struct.pack("i", 1))
    termios.tcflush(slave, termios.TCIFLUSH)
    with pytest.raises(NotNow, match="has not read"):
        terminals.through(master, slave)
    assert os.read(master, 9) == b"\x01"  # TIOCPKT_FLUSHREAD


def test_one_whose_mode_is_locked(terminals: Terminals) -> None:
    """What cannot be made quiet is not read; as long as nothing is unread that is no hindrance."""
    master, slave = terminals.pair()
    os.write(master, b"line\n")
    select.select([slave], [], [])
    locked = bytearray(36)
    locked[12:16] = termios.ECHO.to_bytes(4, "little")
    fcntl.ioctl(slave, 0x5457, bytes(locked))  # TIOCSLCKTRMIOS
    mode = termios.tcgetattr(slave)
    with pytest.raises(NotNow, match="locked"):
        terminals.through(master, slave)
    assert termios.tcgetattr(slave) == mode
    assert (os.read(slave, 99), os.read(master, 99)) == (b"line\n", b"line\r\n")
    terminals.place /= "again"
    terminals.place.mkdir()
    terminals.through(master, slave)


KEYS = [
    *(b"\n", b"\x04", b"\r", b"a", b";", b"\x00", b"\xff", b"\x7f", b"\x15", b"\x17", b"x" * 63),
    *(b"\x16" + key for key in (b"\n", b"\x04", b"\x16", b";", b"\x13", b"\x11")),
]
"""Keys that end a line, edit it, or would, but for the ^V before them."""


@pytest.mark.parametrize("seed", range(8))
def test_what_is_typed_is_read_as_it_would_have_been(terminals: Terminals, seed: int) -> None:
    """By reads of all sizes, whatever was typed."""
    chance = random.Random(seed)
    keys = [chance.choice(KEYS) for _ in range(20)]
    sizes = [chance.choice((1, 3, 62, 63, 64, 65, 4096)) for _ in range(60)]
    read, pairs = [], [terminals.pair(), terminals.pair()]
    for master, slave in pairs:
        mode = termios.tcgetattr(slave)
        mode[3] &= ~termios.ECHO
        mode[6][termios.VEOL] = b";"
        termios.tcsetattr(slave, termios.TCSANOW, mode)
        os.set_blocking(slave, False)
        ttydata.type_keys(master, slave, b"".join(keys))
    assert ttydata.hindrance(*pairs[0]) == ""
    found = ttydata.take(*pairs[0])
    for master, slave in pairs:
        ttydata.type_keys(master, slave, b"!\n")
        read.append(list(reads(slave, sizes)))
    assert read[0] == read[1], found
    assert ttydata.Unread.unpack(found.pack()) == found


def reads(fd: int, sizes: list[int]) -> Iterator[bytes | None]:
    for size in sizes:
        try:
            yield os.read(fd, size)
        except BlockingIOError:
            yield None


def test_damaged_ends(terminals: Terminals) -> None:
    master, slave = terminals.pair()
    terminals.trip = Trip(terminals.place)
    ids = terminals.trip.dump(Tty, master, slave)
    number = os.minor(os.fstat(slave).st_rdev) * 2
    entry = pb.tty_data_entry(tty_id=number, data=b"typed\n", ends=[3, 1, 99])
    terminals.trip.image.write("tty-data", entry)
    terminals.close(master, slave)
    with pytest.raises(ImageError, match="cannot have been"):
        terminals.restore(*ids)


def test_half_a_line_is_typed_still(terminals: Terminals) -> None:
    """Here, where it runs on, and in the copy: it can be mended, and is not entered yet."""
    master, slave = terminals.pair()
    os.set_blocking(slave, False)
    os.write(master, b"hap")
    assert os.read(master, 99) == b"hap"  # has arrived
    mode = termios.tcgetattr(slave)
    terminals.trip = Trip(terminals.place)
    ids = terminals.trip.dump(Tty, master, slave)
    assert termios.tcgetattr(slave) == mode
    check_half_a_line(master, slave)
    terminals.close(master, slave)
    check_half_a_line(*terminals.restore(*ids))


def check_half_a_line(master: int, slave: int) -> None:
    with pytest.raises(BlockingIOError):
        os.read(slave, 99)
    os.write(master, b"\x7flf\n")
    assert os.read(master, 99) == b"\b \blf\r\n"
    assert os.read(slave, 99) == b"half\n"


def test_data_of_criu_is_put_back(terminals: Terminals) -> None:
    master, slave = terminals.pair()
    quiet(slave)
    terminals.trip = Trip(terminals.place)
    ids = terminals.trip.dump(Tty, master, slave)
    number = os.minor(os.fstat(slave).st_rdev) * 2
    data = [(number, b"typed\n"), (number + 1, b"shown\n")]
    terminals.trip.image.write(
        "tty-data", *(pb.tty_data_entry(tty_id=tty, data=bytes_) for tty, bytes_ in data)
    )
    terminals.close(master, slave)
    master, slave = terminals.restore(*ids)
    assert os.read(master, 99) == b"shown\n"
    assert os.read(slave, 99) == b"typed\n"


def test_number_in_use(terminals: Terminals) -> None:
    terminals.trip = Trip(terminals.place)
    ids = terminals.trip.dump(Tty, *terminals.pair())
    with pytest.raises(KernelError, match="pseudo terminal"):
        terminals.restore(*ids)


def test_other_end_outside(terminals: Terminals) -> None:
    _, slave = terminals.pair()
    with pytest.raises(Unsupported, match="outside the dump") as refused:
        terminals.through(slave)
    assert "--shell-job" in refused.value.hint


def test_hung_up(terminals: Terminals) -> None:
    master, slave = terminals.pair()
    terminals.close(master)
    with pytest.raises(Unsupported, match="hung up"):
        terminals.through(slave)


def on_a_terminal(do: Callable[[], None]) -> None:
    """Run do() in a child that leads a session on a terminal of its own."""
    pid, master = pty.fork()
    if not pid:
        try:
            do()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    shown = b""
    try:
        while part := os.read(master, 4096):
            shown += part
    except OSError:  # the terminal hung up
        pass
    os.close(master)
    assert os.waitpid(pid, 0)[1] == 0, shown.decode()


def test_shell_job(terminals: Terminals) -> None:
    def job() -> None:
        current = os.open("/dev/tty", os.O_RDWR)
        mode = quiet(0)
        trip = Trip(terminals.place, shell_job=True)
        ids = trip.dump(Tty, 0, current)
        info = next(info for info, _ in trip.image.records("tty-info"))
        assert (info.sid, info.pgrp) == (os.getsid(0), os.tcgetpgrp(0)) == (os.getpid(),) * 2
        mode_now = termios.tcgetattr(0)
        mode_now[3] |= termios.ECHO
        termios.tcsetattr(0, termios.TCSANOW, mode_now)
        one, other = trip.restore(Tty, *ids)
        assert termios.tcgetattr(0) == mode
        assert os.fstat(one).st_rdev == os.fstat(0).st_rdev
        assert os.readlink(f"/proc/self/fd/{one}") == os.ttyname(0)
        assert os.readlink(f"/proc/self/fd/{other}") == "/dev/tty"

    on_a_terminal(job)


def test_shell_job_restored_without_leave(terminals: Terminals) -> None:
    def job() -> None:
        trip = Trip(terminals.place, shell_job=True)
        ids = trip.dump(Tty, 0)
        trip.options = {}
        with pytest.raises(CkptError, match="was the shell's"):
            trip.restore(Tty, *ids)

    on_a_terminal(job)
