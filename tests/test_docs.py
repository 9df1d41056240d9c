# SPDX-License-Identifier: Apache-2.0
"""What the documents name is there, and what they should name is in them."""

import re
from pathlib import Path

import pytest

from ckpt.image import pb
from ckpt.memory.vmas import Status
from tests.test_layers import LAYERS, ROOT

DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
OURS = 1000
"""Fields of messages from this number on are our own."""


def text(name: str) -> str:
    return (ROOT / name).read_text()


def rows(name: str, *titles: str) -> list[list[str]]:
    """The cells of all rows of the tables that have these titles."""
    head = f"| {' | '.join(titles)} |"
    found = []
    for table in text(name).split("\n\n"):
        if table.partition("\n")[0] == head:
            found += [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert found, f"{name} has no table {head}"
    return found


def quoted(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def test_the_layers_are_those_that_hold() -> None:
    told = [
        quoted(row[-2])
        for row in rows("docs/layers.md", "layer", "modules of `ckpt`", "what it is")
    ]
    assert told == list(reversed(LAYERS))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", document.read_text())
    broken = [link for link in links if not (document.parent / link).exists()]
    assert not broken


def test_modules_of_the_notes_are_there() -> None:
    words = ("fact", "where it bites", "source")
    named = {name for row in rows("docs/kernel-notes.md", *words) for name in quoted(row[1])}
    places = {name: name if "/" in name else f"{name.replace('.', '/')}.py" for name in named}
    for name, place in places.items():
        assert [*ROOT.glob(f"ckpt/{place}"), *ROOT.glob(f"ckpt/kernel/{place}")], name


def test_fields_of_ours_are_described() -> None:
    words = ("message", "field", "what it says")
    told = {cell for row in rows("docs/image-format.md", *words) for cell in row}
    for message in pb.FILE.message_types_by_name.values():
        for field in message.fields:
            if field.number >= OURS:
                assert f"`{field.name}` {field.number}" in told, f"{message.name}.{field.name}"


def test_bits_of_mappings_are_described() -> None:
    told = {}
    for bits, names, _ in rows("docs/image-format.md", "bit", "name", "meaning"):
        told |= dict(zip(map(str.strip, names.split(",")), map(int, bits.split(",")), strict=True))
    assert told == {status.name: status.value.bit_length() - 1 for status in Status}
