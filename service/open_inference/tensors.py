"""Tensors of the Open Inference Protocol: data types, and elements from and to bytes, values and shared memory.

Errors name fields as the protocol does.
"""

import math
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.open_inference.shared_memory import MemoryRange

BYTES = "BYTES"
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"), "UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2"), "UINT32": np.dtype("<u4"), "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"), "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
}  # fmt: skip
DATATYPES = {dtype: datatype for datatype, dtype in DTYPES.items()}

MAX_INT64 = 2**63 - 1
MAX_DIMENSIONS = 64
"""numpy's limit. Error messages repeat the shape, and must fit into a trailer."""

_LENGTH = struct.Struct("<I")

Elements = NDArray[Any] | list[bytes]
"""A tensor's elements: an array of its shape, or of a BYTES tensor a flat list of its elements."""


class InputTensor(NamedTuple):
    """The input of a request."""

    name: str
    datatype: str
    shape: Sequence[int]
    elements: Elements


class OutputTensor(NamedTuple):
    """An output of an answer; with `memory`, it is written there and not into the response."""

    name: str
    datatype: str
    shape: Sequence[int]
    elements: Elements
    memory: MemoryRange | None = None


def elements_from_bytes(datatype: str, shape: Sequence[int], data: bytes) -> Elements:
    """The elements of a tensor from its bytes.

    Numbers are in C order, little-endian, without padding; each BYTES element follows its length in 4 bytes. Raises
    InvalidRequest for an unknown data type, or if the bytes are not of that shape.
    """
    dtype = DTYPES.get(datatype)
    if dtype is None:
        count = _bytes_count(datatype, shape)
        return _split_bytes(data, count)
    try:
        array = np.frombuffer(data, dtype).reshape(shape)
    except (ValueError, OverflowError, TypeError):
        array = None
    # For numpy -1 stands for any size.
    if array is None or array.shape != tuple(shape) or not array.shape:
        raise _wrong_bytes(len(data), datatype, shape, _count(shape) * dtype.itemsize)
    return array


def elements_from_values(datatype: str, shape: Sequence[int], values: Sequence[Any] | NDArray[Any], field: str) -> Elements:
    """The elements of a tensor from its values: numbers, bools or bytes, flat or nested row by row, or an array of numbers.

    `field` is their field.

    Raises InvalidRequest for an unknown data type, a value of another type, or if their number is not that of the shape.
    """
    dtype = DTYPES.get(datatype)
    if dtype is None:
        count = _bytes_count(datatype, shape)
        if len(values) != count:
            raise InvalidRequest(f"the input has {len(values)} elements; shape {list(shape)} has {count}", field)
        return list(values)
    count = _count(shape)
    # A list may be nested and of any type. protobuf's sequences are flat and of numbers, and copying them costs more than len().
    flat, kinds = _flat(values) if isinstance(values, list) else (values, _NUMBERS)
    if len(flat) != count:
        raise InvalidRequest(f"the input has {len(flat)} elements; shape {list(shape)} has {count}", field)
    try:
        if not kinds <= _NUMBERS:  # numpy would make all strings as long as the longest
            raise TypeError
        found = np.asarray(values if isinstance(values, list | np.ndarray) else list(values))
        fits = not found.size or found.dtype.kind in _KINDS[dtype.kind]
        if not fits and dtype.kind in "iu":  # numpy makes floats of integers if some are beyond int64 and others are not
            found = np.asarray(values, object)
            fits = all(type(value) is int for value in found.flat)
        array = _cast(found, dtype) if fits else None
    except (ValueError, OverflowError, TypeError):
        array = None
    if array is None or (dtype.kind in "iu" and array is not found and not np.array_equal(array, found)):
        raise InvalidRequest(f"not every element of the input can be {datatype}", field)
    if array.ndim > 1 and array.shape != tuple(shape):
        raise InvalidRequest(f"the input's elements are of shape {list(array.shape)}, its shape is {list(shape)}", field)
    try:
        return array.reshape(shape)
    except ValueError:
        raise InvalidRequest(
            f"shape {list(shape)} is not accepted: it exceeds the size limit of an array", "inputs[0].shape"
        ) from None


def _cast(found: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if found.dtype == dtype:
        return found
    if dtype.kind != "f":
        return found.astype(dtype)
    with np.errstate(over="ignore"):  # values too large for the data type become infinite
        return found.astype(dtype)


def _flat(values: list[Any]) -> tuple[list[Any], set[type]]:
    """The elements of a nested list, and their types; list is among these if the nesting is ragged."""
    while (kinds := set(map(type, values))) == {list}:
        values = list(chain.from_iterable(values))
    return values, kinds


_NUMBERS: set[type] = {bool, int, float}
_KINDS = {"b": "b", "u": "iu", "i": "iu", "f": "fiu"}
"""By the kind of a dtype, the kinds of values that are taken for it."""


def count_items(datatype: str, shape: Sequence[int]) -> int:
    """The items of a tensor of this shape. Raises InvalidRequest for an unknown data type or a shape that it cannot have."""
    if datatype not in DTYPES:
        return _bytes_count(datatype, shape)
    _count(shape)
    return shape[0]


def elements_from_memory(datatype: str, shape: Sequence[int], memory: MemoryRange) -> Elements:
    """The elements of a tensor in shared memory, as `elements_from_bytes`. Reads nothing if the range is not of that shape."""
    dtype = DTYPES.get(datatype)
    if dtype is None:
        _bytes_count(datatype, shape)
    elif memory.byte_size != (size := _count(shape) * dtype.itemsize):
        raise _wrong_bytes(memory.byte_size, datatype, shape, size)
    return elements_from_bytes(datatype, shape, memory.read())


def elements_to_bytes(elements: Elements) -> bytes:
    """The bytes of a tensor's elements, as `elements_from_bytes` takes them."""
    if isinstance(elements, list):
        return b"".join(_LENGTH.pack(len(element)) + element for element in elements)
    return elements.tobytes()


def write_to_memory(output: OutputTensor) -> int:
    """Writes an output to its place in shared memory; returns its size in bytes. Raises InvalidRequest if it does not fit."""
    data = elements_to_bytes(output.elements)
    memory = output.memory
    if memory is None or len(data) > memory.byte_size:
        byte_size = memory.byte_size if memory else 0
        raise InvalidRequest(f"output {output.name!r} has {len(data)} bytes; its place in shared memory has {byte_size}", "outputs")
    memory.write(data)
    return len(data)


def describe_tensor(datatype: str, shape: Sequence[int]) -> str:
    """A data type and a shape, for messages."""
    return f"{datatype} [{', '.join(map(str, shape))}]"


def check_dimensions(shape: Sequence[object]) -> None:
    """Raises InvalidRequest if a shape has more than MAX_DIMENSIONS, or one beyond 64 bits."""
    if len(shape) > MAX_DIMENSIONS:
        raise InvalidRequest(f"the shape has {len(shape)} dimensions; at most {MAX_DIMENSIONS} are accepted", "inputs[0].shape")
    # Their product would have too many digits for a message.
    if any(isinstance(size, int) and abs(size) > MAX_INT64 for size in shape):
        raise InvalidRequest(f"the shape has a dimension beyond {MAX_INT64}", "inputs[0].shape")


def _wrong_bytes(given: int, datatype: str, shape: Sequence[int], size: int) -> InvalidRequest:
    return InvalidRequest(f"the input has {given} bytes; {datatype} of shape {list(shape)} has {size}", "inputs[0].shape")


def _count(shape: Sequence[Any]) -> int:
    check_dimensions(shape)
    if not shape or any(isinstance(size, bool) or not isinstance(size, int) or size < 0 for size in shape):
        raise InvalidRequest(
            f"shape {list(shape)} is not accepted: dimensions are integers, 0 or more, the batch dimension first",
            "inputs[0].shape",
        )
    return math.prod(shape)


def _bytes_count(datatype: str, shape: Sequence[int]) -> int:
    if datatype != BYTES:
        raise InvalidRequest(f"datatype {datatype[:64]!r} is none of {', '.join((*DTYPES, BYTES))}", "inputs[0].datatype")
    check_dimensions(shape)
    if len(shape) not in (1, 2) or shape[1:] not in ((), [], (1,), [1]):
        raise InvalidRequest(f"BYTES {list(shape)}: encoded images have the shape [n] or [n, 1]", "inputs[0].shape")
    return _count(shape)


def _split_bytes(data: bytes, count: int) -> list[bytes]:
    elements: list[bytes] = []
    at = 0 if count * _LENGTH.size <= len(data) else len(data) + 1  # too many to fit
    while at < len(data) and len(elements) <= count:
        start = at + _LENGTH.size
        at = start + _LENGTH.unpack_from(data, at)[0] if start <= len(data) else len(data) + 1
        elements.append(data[start:at])
    if at != len(data) or len(elements) != count:
        raise InvalidRequest(
            f"the input's bytes are not {count} elements of BYTES, each with its length before it in 4 bytes", "inputs[0]"
        )
    return elements
