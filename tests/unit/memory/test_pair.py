# SPDX-License-Identifier: Apache-2.0
"""How pages are shared out between two threads."""

import pytest

from ckpt.image.pages import PAGE, PE_PRESENT, PageRun
from ckpt.memory.pair import _halved


def run(page: int, count: int, offset: int = 0) -> PageRun:
    return PageRun(page * PAGE, count, PE_PRESENT, 5, offset * PAGE)


@pytest.mark.parametrize(
    ("runs", "halves"),
    [
        ([], ([], [])),
        ([run(0, 1)], ([], [run(0, 1)])),
        ([run(0, 8)], ([run(0, 4)], [run(4, 4, 4)])),
        ([run(0, 2), run(4, 2, 2)], ([run(0, 2)], [run(4, 2, 2)])),
        ([run(0, 1), run(4, 5, 1)], ([run(0, 1), run(4, 2, 1)], [run(6, 3, 3)])),
        ([run(0, 7), run(9, 1, 7)], ([run(0, 4)], [run(4, 3, 4), run(9, 1, 7)])),
    ],
)
def test_halves(runs: list[PageRun], halves: tuple[list[PageRun], list[PageRun]]) -> None:
    assert tuple(_halved(runs)) == halves
