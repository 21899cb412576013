"""The Open Inference Protocol's tensors and parameters, to the domain and back: what gRPC and REST share.

Nothing here knows how a message is written. A surface reads a request's input into an `Input` and its requested outputs into
`Wanted`s, asks the classifier with the `query` of these, and writes the `outputs` of the answer. Errors name fields as the protocol
does, on both surfaces.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.engine.answer import Answer
from service.engine.query import Item, Query
from service.engine.served_model import ServedModel
from service.engine.top_k import best_labels
from service.errors import InvalidRequest, RequestError, Unimplemented
from service.model.signature import TensorSpec
from service.observability.trace_context import TraceContext
from service.open_inference.shared_memory import MAX_READ_BYTES, Region, SharedMemory
from service.policy import MAX_TIMEOUT_SECONDS

BYTES = "BYTES"
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"), "UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2"), "UINT32": np.dtype("<u4"), "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"), "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
}  # fmt: skip
DATATYPES = {dtype: datatype for datatype, dtype in DTYPES.items()}

MAX_PARAMETER = 2**63 - 1
FINAL_RESPONSE_ASKED = "triton_enable_empty_final_response"
MAX_DIMENSIONS = 64
"""Numpy has no more; and a shape is repeated in messages, which must fit into a trailer."""

MAX_OUTPUTS = 1024
"""That a request may ask for; which of them the model has is not known yet."""

_LENGTH = struct.Struct("<I")
_FIELDS = {"priority": "parameters[priority]", "timeout_seconds": "parameters[timeout]"}
# What clients send along for REST's binary extension, over gRPC too.
_ABOUT_BINARY = ("binary_data", "binary_data_size", "binary_data_output")

Elements = NDArray[Any] | list[bytes]
"""A tensor's elements: an array of its shape, or of a BYTES tensor the elements in a row."""


class Place(NamedTuple):
    """Bytes of a region of shared memory, where a tensor is or is to go."""

    region: Region
    offset: int
    size: int


class Input(NamedTuple):
    """The tensor of a request."""

    name: str
    datatype: str
    shape: Sequence[int]
    elements: Elements


class Wanted(NamedTuple):
    """An output that a request asks for; with `classes`, that many best labels of it instead of its elements."""

    name: str
    classes: int = 0
    place: Place | None = None


class Output(NamedTuple):
    """A tensor of an answer."""

    name: str
    datatype: str
    shape: Sequence[int]
    elements: Elements
    place: Place | None = None


def query(
    model: str,
    version: str,
    given: Input,
    wanted: Sequence[Wanted],
    parameters: Mapping[str, Any],
    deadline: float = math.inf,
    trace: TraceContext | None = None,
    request_id: str = "",
) -> Query:
    """The classifier's query for a request; `deadline` is in `time.monotonic` seconds, `trace` and `request_id` are the client's.

    Raises InvalidRequest or Unimplemented for a parameter that is not accepted. Names, data types and shapes are held against the
    model by the query itself, once it has got to one.
    """
    priority, timeout_seconds = _schedule(parameters) if parameters else (0, 0.0)
    elements = given.elements
    examine = partial(_examine, given, wanted)
    if isinstance(elements, list):
        items = [Item(element, True) for element in elements]
        return Query(model, items, version, 1, priority, timeout_seconds, deadline, None, examine, trace, request_id)
    return Query(model, (), version, 1, priority, timeout_seconds, deadline, elements, examine, trace, request_id)


def outputs(answer: Answer, wanted: Sequence[Wanted]) -> list[Output]:
    """The outputs that were asked for, in that order; all of them, in the model's order, if none was."""
    given = answer.outputs
    if not wanted:
        return [Output(name, DATATYPES[array.dtype], array.shape, array) for name, array in given.items()]
    labels = answer.served.model.labels
    found = []
    for name, classes, place in wanted:
        array = given[name]
        if classes:
            scores = array.reshape(len(array), -1)
            texts = [
                [f"{score:f}:{index}:{labels[index]}".encode() for index, score in row]
                for row in best_labels(scores, min(classes, len(labels)))
            ]
            found.append(Output(name, BYTES, (len(texts), len(texts[0])), [text for row in texts for text in row], place))
        else:
            found.append(Output(name, DATATYPES[array.dtype], array.shape, array, place))
    return found


def put(output: Output) -> int:
    """Writes an output's elements to its place in shared memory and returns their size in bytes.

    Raises InvalidRequest if they do not fit.
    """
    data = raw(output.elements)
    place = output.place
    if place is None or len(data) > place.size:
        size = place.size if place else 0
        raise InvalidRequest(f"output {output.name!r} has {len(data)} bytes; its place in shared memory has {size}", "outputs")
    place.region.write(place.offset, data)
    return len(data)


def in_request(error: RequestError) -> RequestError:
    """The error with its field named as the protocol does; the classifier names items."""
    if isinstance(error, InvalidRequest):
        error.field = "inputs[0]" if error.field.startswith("items") else _FIELDS.get(error.field, error.field)
    return error


def elements_of_raw(datatype: str, shape: Sequence[int], data: bytes) -> Elements:
    """A tensor from its bytes: row by row, little-endian, without padding; of BYTES each with its length before it in 4 bytes.

    Raises InvalidRequest if there is no such data type, or the bytes are not of that shape.
    """
    dtype = DTYPES.get(datatype)
    if dtype is None:
        count = _encoded_count(datatype, shape)
        return _split(data, count)
    try:
        array = np.frombuffer(data, dtype).reshape(shape)
    except (ValueError, OverflowError, TypeError):
        array = None
    # To numpy a size of -1 is whatever fits.
    if array is None or array.shape != tuple(shape) or not array.shape:
        raise _wrong_bytes(len(data), datatype, shape, _count(shape) * dtype.itemsize)
    return array


def elements_of_values(datatype: str, shape: Sequence[int], values: Sequence[Any], field: str) -> Elements:
    """A tensor from its values, flat or nested row by row: numbers, bools, or bytes. `field` is where they were found.

    Raises InvalidRequest if there is no such data type, a value cannot be of it, or they are not as many as the shape says.
    """
    dtype = DTYPES.get(datatype)
    if dtype is None:
        count = _encoded_count(datatype, shape)
        if len(values) != count:
            raise InvalidRequest(f"the input has {len(values)} elements; shape {list(shape)} has {count}", field)
        return list(values)
    count = _count(shape)
    # A list may be nested and of anything; protobuf's own sequences are neither, and to copy them costs more than their length.
    flat, kinds = _flat(values) if isinstance(values, list) else (values, _NUMBERS)
    if len(flat) != count:
        raise InvalidRequest(f"the input has {len(flat)} elements; shape {list(shape)} has {count}", field)
    try:
        if not kinds <= _NUMBERS:  # to numpy any number of texts are as long as the longest
            raise TypeError
        found = np.asarray(values if isinstance(values, list) else list(values))
        fits = not found.size or found.dtype.kind in _KINDS[dtype.kind]
        if not fits and dtype.kind in "iu":  # numpy takes integers for floats if some are beyond int64 and others are not
            found = np.asarray(values, object)
            fits = all(type(value) is int for value in found.flat)
        with np.errstate(over="ignore"):  # too large for the data type is infinite in it
            array = found.astype(dtype) if fits else None
    except (ValueError, OverflowError, TypeError):
        array = None
    if array is None or (dtype.kind in "iu" and not np.array_equal(array, found)):
        raise InvalidRequest(f"not every element of the input can be {datatype}", field)
    if array.ndim > 1 and array.shape != tuple(shape):
        raise InvalidRequest(f"the input's elements are of shape {list(array.shape)}, its shape is {list(shape)}", field)
    try:
        return array.reshape(shape)
    except ValueError:
        raise InvalidRequest(f"shape {list(shape)} is not accepted: it is too large, even for nothing", "inputs[0].shape") from None


def _flat(values: list[Any]) -> tuple[list[Any], set[type]]:
    """The elements of a list that is nested row by row, and their types; lists are among them if it is not nested so."""
    while (kinds := set(map(type, values))) == {list}:
        values = list(chain.from_iterable(values))
    return values, kinds


_NUMBERS: set[type] = {bool, int, float}
_KINDS = {"b": "b", "u": "iu", "i": "iu", "f": "fiu"}
"""By the kind of a dtype, the kinds of values that are taken for it."""


def raw(elements: Elements) -> bytes:
    """The bytes of a tensor's elements; see `elements_of_raw`."""
    if isinstance(elements, list):
        return b"".join(_LENGTH.pack(len(element)) + element for element in elements)
    return elements.tobytes()


def check_outputs(count: int) -> None:
    """Raises InvalidRequest if a request asks for more outputs than any may."""
    if count > MAX_OUTPUTS:
        raise InvalidRequest(f"the request asks for {count} outputs; at most {MAX_OUTPUTS} are accepted", "outputs")


def wanted_output(index: int, name: str, parameters: Mapping[str, Any], memory: SharedMemory) -> Wanted:
    """One of a request's `outputs`. Raises InvalidRequest for a parameter that is not accepted, NotFound for an unknown region."""
    field = f"outputs[{index}].parameters"
    for key in parameters:
        if key != "classification" and key not in _ABOUT_BINARY and key not in _PLACE:
            message = f"unknown parameter {key[:64]!r}; accepted are classification, {', '.join(_PLACE)}"
            raise InvalidRequest(message, f"{field}[{key[:64]}]")
    classes = _whole(parameters.get("classification", 0), f"{field}[classification]")
    return Wanted(name, classes, place(parameters, field, memory))


def input_place(parameters: Mapping[str, Any], memory: SharedMemory) -> Place | None:
    """Where the input is, if it is in shared memory. Raises as `wanted_output` does."""
    field = "inputs[0].parameters"
    for key in parameters:
        if key not in _ABOUT_BINARY and key not in _PLACE:
            message = f"unknown parameter {key[:64]!r}; accepted are {', '.join(_PLACE)}"
            raise InvalidRequest(message, f"{field}[{key[:64]}]")
    return place(parameters, field, memory)


def read(where: Place, datatype: str, shape: Sequence[int]) -> bytes:
    """The bytes of an input in shared memory. Raises InvalidRequest before it reads any, if they are not of that shape."""
    dtype = DTYPES.get(datatype)
    if dtype is None:
        _encoded_count(datatype, shape)
    elif where.size != (size := _count(shape) * dtype.itemsize):
        raise _wrong_bytes(where.size, datatype, shape, size)
    if where.size > MAX_READ_BYTES:
        raise InvalidRequest(
            f"the input has {where.size} bytes in shared memory; at most {MAX_READ_BYTES} are accepted", "inputs[0]"
        )
    return where.region.read(where.offset, where.size)


_PLACE = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")


def place(parameters: Mapping[str, Any], field: str, memory: SharedMemory) -> Place | None:
    """Where a tensor is in shared memory, if its parameters say so. Raises InvalidRequest, and NotFound for an unknown region."""
    name = parameters.get("shared_memory_region")
    if name is None:
        stray = next((key for key in _PLACE if key in parameters), None)
        if stray is not None:
            raise InvalidRequest(f"{stray} is given without shared_memory_region", f"{field}[{stray}]")
        return None
    if not isinstance(name, str):
        raise InvalidRequest(f"shared_memory_region is {name!r}; a text is accepted", f"{field}[shared_memory_region]")
    region = memory.region(name)
    offset = _whole(parameters.get("shared_memory_offset", 0), f"{field}[shared_memory_offset]")
    size = _whole(parameters.get("shared_memory_byte_size", region.byte_size - offset), f"{field}[shared_memory_byte_size]")
    if offset + size > region.byte_size:
        raise InvalidRequest(
            f"{size} bytes at {offset} are not inside shared memory region {name!r}, which has {region.byte_size}",
            f"{field}[shared_memory_byte_size]",
        )
    return Place(region, offset, size)


def described(datatype: str, shape: Sequence[int]) -> str:
    """A data type and a shape, for messages."""
    return f"{datatype} [{', '.join(map(str, shape))}]"


def _schedule(parameters: Mapping[str, Any]) -> tuple[int, float]:
    """Priority and timeout in seconds."""
    priority, timeout_seconds = 0, 0.0
    for name, value in parameters.items():
        if name == "priority":
            priority = _whole(value, "parameters[priority]")
        elif name == "timeout":
            # Longer than anything can take is as good as none.
            timeout_seconds = min(_whole(value, "parameters[timeout]") / 1e6, MAX_TIMEOUT_SECONDS)
        elif name.startswith("sequence_"):
            raise Unimplemented(f"parameter {name!r}: sequences are not offered, no model here keeps state between requests")
        elif name != FINAL_RESPONSE_ASKED and name not in _ABOUT_BINARY:
            message = f"unknown parameter {name[:64]!r}; accepted are priority (1 is first) and timeout (microseconds)"
            raise InvalidRequest(message, f"parameters[{name[:64]}]")
    return priority, timeout_seconds


def _whole(value: Any, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_PARAMETER:
        raise InvalidRequest(f"{field} is {str(value)[:64]}; a whole number, 0 or more, is accepted", field)
    return value


def _wrong_bytes(given: int, datatype: str, shape: Sequence[int], size: int) -> InvalidRequest:
    return InvalidRequest(f"the input has {given} bytes; {datatype} of shape {list(shape)} has {size}", "inputs[0].shape")


def _count(shape: Sequence[int]) -> int:
    check_dimensions(shape)
    if not shape or any(isinstance(size, bool) or not isinstance(size, int) or size < 0 for size in shape):
        raise InvalidRequest(
            f"shape {list(shape)} is not accepted: one number a dimension, 0 or more, the items first", "inputs[0].shape"
        )
    return math.prod(shape)


def check_dimensions(shape: Sequence[int]) -> None:
    """Raises InvalidRequest if a shape has more of them than any may, or one beyond 64 bits."""
    if len(shape) > MAX_DIMENSIONS:
        raise InvalidRequest(f"the shape has {len(shape)} dimensions; at most {MAX_DIMENSIONS} are accepted", "inputs[0].shape")
    # Their product would have too many digits for a message.
    if any(isinstance(size, int) and abs(size) > MAX_PARAMETER for size in shape):
        raise InvalidRequest(f"the shape has a dimension beyond {MAX_PARAMETER}", "inputs[0].shape")


def _encoded_count(datatype: str, shape: Sequence[int]) -> int:
    if datatype != BYTES:
        raise InvalidRequest(f"datatype {datatype[:64]!r} is none of {', '.join((*DTYPES, BYTES))}", "inputs[0].datatype")
    check_dimensions(shape)
    if len(shape) not in (1, 2) or shape[1:] not in ((), [], (1,), [1]):
        raise InvalidRequest(f"BYTES {list(shape)}: encoded images have the shape [n] or [n, 1]", "inputs[0].shape")
    return _count(shape)


def _split(data: bytes, count: int) -> list[bytes]:
    elements: list[bytes] = []
    at = 0 if count * _LENGTH.size <= len(data) else len(data) + 1  # more than there can be: none is looked for
    while at < len(data) and len(elements) <= count:
        start = at + _LENGTH.size
        at = start + _LENGTH.unpack_from(data, at)[0] if start <= len(data) else len(data) + 1
        elements.append(data[start:at])
    if at != len(data) or len(elements) != count:
        raise InvalidRequest(
            f"the input's bytes are not {count} elements of BYTES, each with its length before it in 4 bytes", "inputs[0]"
        )
    return elements


def _examine(given: Input, wanted: Sequence[Wanted], served: ServedModel) -> None:
    """Holds a request against the model that is to answer it."""
    model = served.model
    spec = model.input
    if given.name != spec.name:
        raise InvalidRequest(f"model {served.name!r} has no input {given.name[:64]!r}; it takes {spec.name!r}", "inputs[0].name")
    elements = given.elements
    if isinstance(elements, list):
        if not model.has_contract:
            raise _not_taken(served, given)
    elif elements.dtype != spec.dtype or elements.shape[1:] != spec.shape:
        raise _not_taken(served, given)
    if wanted:
        _examine_wanted(served, wanted, given.shape[0])


def _not_taken(served: ServedModel, given: Input) -> InvalidRequest:
    spec = served.model.input
    takes = described(DATATYPES[spec.dtype], (-1, *spec.shape))
    if served.model.has_contract:
        takes += " or BYTES [-1] of encoded images"
    field = "shape" if given.datatype == DATATYPES[spec.dtype] else "datatype"
    message = f"input {spec.name!r} is {described(given.datatype, given.shape)}; model {served.name!r} takes {takes}"
    return InvalidRequest(message, f"inputs[0].{field}")


def _examine_wanted(served: ServedModel, wanted: Sequence[Wanted], items: int) -> None:
    specs: dict[str, TensorSpec] = {spec.name: spec for spec in served.model.outputs}
    names = set()
    for index, (name, classes, where) in enumerate(wanted):
        spec = specs.get(name)
        field = f"outputs[{index}]"
        if spec is None:
            raise InvalidRequest(f"model {served.name!r} has no output {name[:64]!r}; it gives {', '.join(specs)}", f"{field}.name")
        if name in names:
            raise InvalidRequest(f"output {name!r} is asked for twice", f"{field}.name")
        names.add(name)
        if classes and math.prod(spec.shape) != len(served.model.labels):
            raise InvalidRequest(f"output {name!r} has no score for each class: classification is not offered on it", field)
        if where is not None and not classes and where.size < items * spec.size_bytes:
            raise InvalidRequest(
                f"output {name!r} has {items * spec.size_bytes} bytes; its place in shared memory has {where.size}",
                f"{field}.parameters[shared_memory_byte_size]",
            )
