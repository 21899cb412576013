"""The part of ONNX's protobuf messages that is read without ONNX Runtime: metadata, inputs, and tensors wherever they can be.

ONNX's own package is for `export/` alone. A message keeps the fields that are not listed here, and writes them again.

protobuf makes an object of each submessage, of two bytes if it is empty, and does so in one go: 12 MiB of them become 500 MB while
no other thread runs. So the fields of a file are counted, by tags and lengths alone, before it is parsed.
"""

import functools
import re
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from service.errors import InvalidModel

EXTERNAL = 1
"""A tensor's `data_location`: its data are in another file, which `external_data` names."""

MAX_FIELDS = 1_000_000
"""More are refused, of the messages that are listed here. A graph of 10,000 nodes has about 200,000."""

MAX_DEPTH = 100
"""More is refused. Protobuf itself takes no deeper messages."""

_RUN = re.compile(
    rb"(?:[\x08\x10\x18\x20\x28\x30\x38\x40\x48\x50\x58\x60\x68\x70\x78][\x80-\xff]{0,9}[\x00-\x7f]"
    rb"|[\x0d\x15\x1d\x25\x2d\x35\x3d\x45\x4d\x55\x5d\x65\x6d\x75\x7d].{4})++",
    re.DOTALL,
)
"""Integers and floats one after the other: attributes have millions of them, which become nothing where none is listed here."""

_RUN_BYTES = 64 * 1024
"""Passed over at a time: no other thread runs meanwhile."""

_PACKAGE = "convoy.onnx"
_SCALARS = {
    "bytes": FieldDescriptorProto.TYPE_BYTES, "int32": FieldDescriptorProto.TYPE_INT32, "int64": FieldDescriptorProto.TYPE_INT64,
}  # fmt: skip
_MESSAGES = {
    "Model": {"graph": (7, "Graph"), "metadata_props": (14, "*Entry"), "functions": (25, "*Function")},
    "Graph": {
        "node": (1, "*Node"), "initializer": (5, "*Tensor"), "input": (11, "*Value"), "sparse_initializer": (15, "*SparseTensor"),
    },
    "Value": {"name": (1, "bytes"), "type": (2, "Type")},
    "Type": {"tensor_type": (1, "TensorType")},
    "TensorType": {"elem_type": (1, "int32"), "shape": (2, "Shape")},
    "Shape": {"dim": (1, "*Dimension")},
    "Dimension": {"dim_value": (1, "int64")},
    "Function": {"node": (7, "*Node"), "attribute_proto": (11, "*Attribute")},
    "Node": {"attribute": (5, "*Attribute")},
    "Attribute": {
        "t": (5, "Tensor"), "g": (6, "Graph"), "tensors": (10, "*Tensor"), "graphs": (11, "*Graph"),
        "sparse_tensor": (22, "SparseTensor"), "sparse_tensors": (23, "*SparseTensor"),
    },
    "SparseTensor": {"values": (1, "Tensor"), "indices": (2, "Tensor")},
    "Tensor": {
        "dims": (1, "*int64"), "data_type": (2, "int32"), "name": (8, "bytes"), "raw_data": (9, "bytes"),
        "external_data": (13, "*Entry"), "data_location": (14, "int32"),
    },
    "Entry": {"key": (1, "bytes"), "value": (2, "bytes")},
}  # fmt: skip
"""Number and type of each field by message and name, as in onnx.proto; `*` marks a repeated one."""


def _model_class() -> Any:
    file = FileDescriptorProto(name="convoy/onnx.proto", package=_PACKAGE, syntax="proto2")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            label = FieldDescriptorProto.LABEL_REPEATED if kind.startswith("*") else FieldDescriptorProto.LABEL_OPTIONAL
            kind = kind.removeprefix("*")
            added = message.field.add(name=field, number=number, label=label)
            if kind in _SCALARS:
                added.type = _SCALARS[kind]
            else:
                added.type, added.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Model"))


_Model = _model_class()


def parse_model(content: bytes) -> Any:
    """An ONNX file's content as a message `Model`. Raises InvalidModel if it is none. For untrusted content, see `check_fields`."""
    try:
        return _Model.FromString(content)
    except DecodeError:
        raise InvalidModel("not an ONNX file") from None


@functools.cache
def field_kinds(message: str) -> dict[int, tuple[str, str]]:
    """The name and type of each field of a message that is listed here, by number. Types of messages begin with a capital."""
    return {number: (field, kind.removeprefix("*")) for field, (number, kind) in _MESSAGES[message].items()}


def check_fields(content: bytes) -> None:
    """Raises InvalidModel if `parse_model` would make too much of it, or if it is malformed where that can be seen."""
    if len(content) <= MAX_FIELDS:
        return  # a field has a byte at least
    try:
        _count(content, 0, len(content), "Model", 0, 1)
    except IndexError:
        raise InvalidModel("not an ONNX file") from None


def _count(content: bytes, at: int, end: int, message: str, fields: int, depth: int) -> int:
    """Counts the fields of a message in content[at:end], on from `fields`."""
    if depth > MAX_DEPTH:
        raise InvalidModel("not an ONNX file: its messages are nested too deep")
    inside, has_numbers = _inside(message)
    while at < end:
        fields += 1
        if not has_numbers and (run := _RUN.match(content, at, min(end, at + _RUN_BYTES))):
            at = run.end()
            continue
        tag, at = _varint(content, at)
        wire_type = tag & 7
        if wire_type == 2:
            length, at = _varint(content, at)
            kind = inside.get(tag >> 3)
            if at + length > end:
                raise InvalidModel("not an ONNX file: it ends in the middle of a field")
            if kind:
                fields = _count(content, at, at + length, kind, fields, depth + 1)
            elif kind is not None:
                fields += length  # a list of numbers, packed
            at += length
        elif wire_type == 0:
            _, at = _varint(content, at)
        elif wire_type in (1, 5):
            at += 8 if wire_type == 1 else 4
        else:
            raise InvalidModel("not an ONNX file")
        if fields > MAX_FIELDS:
            raise InvalidModel(f"it has more than {MAX_FIELDS:,} fields beside the data of its tensors")
    if at > end:
        raise InvalidModel("not an ONNX file")
    return fields


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place behind it."""
    byte = content[at]
    if byte < 0x80:
        return byte, at + 1
    value = 0
    for shift in range(10):
        byte = content[at + shift]
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    raise InvalidModel("not an ONNX file")


@functools.cache
def _inside(message: str) -> tuple[dict[int, str], bool]:
    """By number: the kind of a submessage, or nothing for a number; and whether there are any numbers."""
    kinds = {number: kind for number, (_, kind) in field_kinds(message).items() if kind != "bytes"}
    inside = {number: kind if kind[0].isupper() else "" for number, kind in kinds.items()}
    return inside, "" in inside.values()


def tensors(message: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Every tensor in a message, at any depth, and the names of the fields that lead to it, such as ("graph", "initializer").

    They are initializers, attributes, and parts of sparse tensors; of the graph, its subgraphs and the functions.
    """
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.name == "Entry":
            continue
        path = (*where, field.name)
        for part in value if field.is_repeated else (value,):
            if field.message_type.name == "Tensor":
                yield part, path
            else:
                yield from tensors(part, path)
