"""The part of ONNX's protobuf messages that is read without ONNX Runtime: metadata, inputs, and tensors wherever they can be.

ONNX's own package is for `export/` alone. A message keeps the fields that are not listed here, and writes them again.
"""

import functools
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from service.errors import InvalidModel

EXTERNAL = 1
"""A tensor's `data_location`: its data are in another file, which `external_data` names."""

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
    """An ONNX file's content as a message `Model`. Raises InvalidModel if it is none."""
    try:
        return _Model.FromString(content)
    except DecodeError:
        raise InvalidModel("not an ONNX file") from None


@functools.cache
def field_kinds(message: str) -> dict[int, tuple[str, str]]:
    """The name and type of each field of a message that is listed here, by number. Types of messages begin with a capital."""
    return {number: (field, kind.removeprefix("*")) for field, (number, kind) in _MESSAGES[message].items()}


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
