# SPDX-License-Identifier: Apache-2.0
"""The schemas are the wire: a number or a type that changes by accident makes images unreadable."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from ckpt.image import pb
from ckpt.image.pb.descriptor import SERIALIZED
from ckpt.image.text import get_text, set_text
from tests.peers import missing
from tests.unit.image.samples import fill

ROOT = Path(__file__).parents[3]
FROZEN = Path(__file__).with_name("wire.txt")
MESSAGES = sorted(pb.FILE.message_types_by_name)
LABELS = {1: "", 2: "!", 3: "*"}
OURS = 1000
"""Fields from this number on are our own; other readers pass over them."""


def wire_of(message: DescriptorProto) -> str:
    """One line: name, then number + label (! required, * repeated) + type : field of each."""
    fields = []
    for field in sorted(message.field, key=lambda field: field.number):
        if field.number >= OURS:
            continue
        kind = field.type_name or FieldDescriptorProto.Type.Name(field.type)
        kind = kind.removeprefix(".ckpt.").removeprefix("TYPE_")
        default = f"={field.default_value}" if field.HasField("default_value") else ""
        packed = "[packed]" if field.options.packed else ""
        kind = kind if field.type_name else kind.lower()
        fields.append(f"{field.number}{LABELS[field.label]}{kind}:{field.name}{default}{packed}")
    return " ".join([message.name, *fields])


def wire() -> list[str]:
    file = FileDescriptorProto.FromString(SERIALIZED)
    enums = [(enum.name, enum) for enum in file.enum_type]
    enums += [(f"{m.name}.{e.name}", e) for m in file.message_type for e in m.enum_type]
    lines = [wire_of(message) for message in file.message_type]
    for name, enum in enums:
        values = " ".join(f"{value.number}:{value.name}" for value in enum.value)
        lines.append(f"enum {name} {values}")
    return sorted(lines)


def test_the_wire_has_not_changed():
    """If it was meant to: python -m tests.unit.image.test_pb > tests/unit/image/wire.txt."""
    assert wire() == FROZEN.read_text().splitlines()


def test_generated_files_are_fresh():
    generator = runpy.run_path(str(ROOT / "protos" / "generate.py"))
    if generator["protoc"]() is None:
        missing("no protoc: pip install grpcio-tools")
    for name, text in generator["generate"]().items():
        assert (ROOT / "ckpt/image/pb" / name).read_text() == text, "run `make protos`"


@pytest.mark.parametrize("name", MESSAGES)
def test_a_full_message_comes_back(name):
    message = fill(getattr(pb, name)())
    assert getattr(pb, name).FromString(message.SerializeToString()) == message


def test_names_are_flat():
    assert pb.FD_REG == 1
    assert pb.fd_types.Name(pb.FD_PIPE) == "FD_PIPE"
    assert pb.core_entry.X86_64 == 1
    with pytest.raises(AttributeError, match="no_such"):
        _ = pb.no_such


def test_text_may_be_any_bytes():
    entry = fill(pb.reg_file_entry())
    for name in ("/plain", "/\udcff\udc80/" + "x" * 300, "/日本"):
        set_text(entry, "name", name)
        back = pb.reg_file_entry.FromString(entry.SerializeToString())
        assert get_text(back, "name") == name


def test_importing_does_not_pull_in_the_slow_part_of_the_runtime():
    code = (
        "import sys; from ckpt.image import directory, pages, pb; pb.core_entry;"
        "slow = {'google.protobuf.descriptor_pool', 'google.protobuf.text_format'};"
        "from google.protobuf.internal import api_implementation;"
        "sys.exit(bool(slow & set(sys.modules)) and api_implementation.Type() == 'upb')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


if __name__ == "__main__":
    print("\n".join(wire()))
