# SPDX-License-Identifier: Apache-2.0
"""Which seccomp filters make a dump a danger, should it be killed just when they count again."""

import os
from struct import pack

import pytest

from ckpt.errors import Unsupported
from ckpt.kernel.arch import NR
from ckpt.kernel.seccomp import ALLOW, ERRNO, Chain, Filter
from ckpt.kernel.way import Way
from ckpt.sandbox import Sandbox, _questions

KILL_PROCESS = 0x8000_0000
ASKED = {call.nr: ALLOW for call in _questions(leader=True)} | {NR.restart_syscall: ALLOW}
LOAD_NR, IF_EQUAL, RETURN = (0x20, 0, 0, 0), 0x15, 0x06

OURS = Way(os.getpid(), os.getpid())


def filtered(answers: dict[int, int], otherwise: int) -> Chain:
    """A filter that answers some calls, by their numbers, and all others."""
    code = [LOAD_NR]
    for nr, answer in answers.items():
        code += [(IF_EQUAL, 0, 1, nr), (RETURN, 0, 0, answer)]
    code.append((RETURN, 0, 0, otherwise))
    return (Filter(b"".join(pack("<HBBI", *one) for one in code)),)


@pytest.mark.parametrize(
    "chain",
    [
        filtered({NR.shmat: ERRNO | 1}, ALLOW),
        filtered(ASKED, ERRNO | 38),
        filtered(ASKED, KILL_PROCESS),
        filtered(ASKED | {NR.shmdt: ERRNO | 1}, KILL_PROCESS),
    ],
    ids=["one refused", "others refused", "others kill", "others kill, one refused"],
)
def test_no_danger(chain: Chain) -> None:
    Sandbox(OURS)._check(os.getpid(), chain)


def test_who_can_neither_be_held_nor_go_on() -> None:
    """Killed just when it attaches a segment: what follows the call is in the segment."""
    chain = filtered(ASKED | {NR.shmat: ERRNO | 1}, KILL_PROCESS)
    with pytest.raises(Unsupported, match=r"harmed by its seccomp filter: for shmat\(2\)"):
        Sandbox(OURS)._check(os.getpid(), chain)


def test_a_call_that_kills() -> None:
    with pytest.raises(Unsupported, match=r"for prctl\(2\)"):
        Sandbox(OURS)._check(os.getpid(), filtered(ASKED | {NR.prctl: 0}, ALLOW))


@pytest.mark.parametrize(
    ("answer", "asked"), [(KILL_PROCESS, False), (ERRNO | 1, True)], ids=["killed", "refused"]
)
def test_who_is_killed_for_keyctl_is_not_asked(answer: int, asked: bool) -> None:
    """Such a filter is no reason to refuse a dump: nearly nobody has keyrings of its own."""
    sandbox, chain = Sandbox(OURS), filtered({NR.keyctl: answer}, ALLOW)
    sandbox._chains[os.getpid()] = chain
    sandbox._check(os.getpid(), chain)
    assert sandbox.may_tell_keyrings(os.getpid()) == asked
    assert sandbox.may_tell_keyrings(1)
