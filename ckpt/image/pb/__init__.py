# SPDX-License-Identifier: Apache-2.0
"""Every message and enum of `protos/`, in one flat namespace: `pb.core_entry(...)`, `pb.FD_REG`.

A dump should start in no time, so this is not what protoc would generate. The schemas come as one
serialized file in a pool of our own (no clash with pycriu in one process), a class is made when it
is first asked for, and only the C core of the protobuf runtime is imported: its public modules
would take five times as long. `__init__.pyi`, generated too, has the types.
"""

from typing import Any

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

from ckpt.image.pb.descriptor import SERIALIZED

try:
    from google._upb._message import DescriptorPool, MessageMeta
except ImportError:  # a runtime without the C core
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.internal.python_message import (
        GeneratedProtocolMessageType as MessageMeta,
    )

_pool = DescriptorPool()
_pool.AddSerializedFile(SERIALIZED)

FILE = _pool.FindFileByName("ckpt.proto")
"""The descriptor of it all, to go through every message and enum."""


def _message_class(descriptor: Any) -> Any:
    """Make the class, and those of its fields: the runtime wants them made beforehand."""
    name = descriptor.name
    if name not in globals():
        attributes = {"DESCRIPTOR": descriptor, "__module__": __name__}
        globals()[name] = MessageMeta(name, (Message,), attributes)
        for field in descriptor.fields:
            if field.message_type is not None:
                _message_class(field.message_type)
    return globals()[name]


def __getattr__(name: str) -> Any:
    if name in FILE.message_types_by_name:
        return _message_class(FILE.message_types_by_name[name])
    if name in FILE.enum_types_by_name:
        globals()[name] = EnumTypeWrapper(FILE.enum_types_by_name[name])
        return globals()[name]
    for enum in FILE.enum_types_by_name.values():
        if name in enum.values_by_name:
            globals()[name] = enum.values_by_name[name].number
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
