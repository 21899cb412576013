"""Numbers of a protobuf list as an array, from the bytes that they have in a message.

Taken one by one from the list, each number becomes a Python object: a large list would hold the interpreter's lock for seconds.
"""

from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from numpy.typing import NDArray

MANY_VALUES = 128
"""From so many values on this is faster than to take them one by one."""

_FIXED: dict[int, np.dtype[Any]] = {FieldDescriptor.TYPE_FLOAT: np.dtype("<f4"), FieldDescriptor.TYPE_DOUBLE: np.dtype("<f8")}
_VARINTS: dict[int, np.dtype[Any]] = {
    FieldDescriptor.TYPE_BOOL: np.dtype("?"),
    FieldDescriptor.TYPE_INT32: np.dtype("<i4"), FieldDescriptor.TYPE_UINT32: np.dtype("<u4"),
    FieldDescriptor.TYPE_INT64: np.dtype("<i8"), FieldDescriptor.TYPE_UINT64: np.dtype("<u8"),
}  # fmt: skip


def array_of(message: Message, name: str) -> NDArray[Any]:
    """The numbers of a packed field that is not empty, in their own type."""
    if len(message.ListFields()) > 1:
        alone = type(message)()
        alone.CopyFrom(message)
        for other, _ in message.ListFields():
            if other.name != name:
                alone.ClearField(other.name)
        message = alone
    field = message.DESCRIPTOR.fields_by_name[name]
    data = np.frombuffer(message.SerializeToString(), np.uint8)
    # A tag of one byte or two, and the length of all numbers; both end at the first byte that has no successor.
    ends = np.flatnonzero(data[:20] < 128)
    data = data[ends[1] + 1 :]
    fixed = _FIXED.get(field.type)
    return data.view(fixed) if fixed is not None else _varints(data).astype(_VARINTS[field.type])


def _varints(data: NDArray[np.uint8]) -> NDArray[np.unsignedinteger[Any]]:
    """The numbers that protobuf wrote with seven bits a byte, the lowest first: as few bits each as hold them, of 8, 16 and 64."""
    is_last = data < 128
    if is_last.all():
        return data
    ends = np.flatnonzero(is_last)
    lengths = np.empty_like(ends)
    lengths[0], lengths[1:] = ends[0] + 1, ends[1:] - ends[:-1]
    longest = lengths.max()
    if longest == 2:
        last = data[ends].astype(np.uint16)
        return np.where(lengths == 2, last << 7 | data[ends - 1] & np.uint8(127), last)
    starts = ends - lengths + 1
    numbers = np.zeros(len(ends), np.uint64)
    for place in range(longest):
        longer = np.flatnonzero(lengths > place)
        numbers[longer] |= (data[starts[longer] + place] & np.uint8(127)).astype(np.uint64) << np.uint64(7 * place)
    return numbers
