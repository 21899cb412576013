"""Parameters of a request: priority and timeout, requested outputs, and the places of tensors in shared memory.

Parameters come as a mapping from name to str, int, float or bool. Errors name fields as the protocol does.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from service.errors import InvalidRequest, Unimplemented
from service.open_inference.shared_memory import MemoryRange, SharedMemory
from service.open_inference.tensors import MAX_INT64
from service.policy import MAX_TIMEOUT_SECONDS

WANTS_FINAL_RESPONSE = "triton_enable_empty_final_response"
"""A request with this parameter wants `triton_final_response` in its response."""

MAX_OUTPUTS = 1024
"""The most outputs that a request may name; whether its model has them is checked later."""

# Hints of MLServer's codecs, which KServe's clients and others send too, on the request, its input and its outputs. They describe
# what the datatype, the shape and the model's contract say already.
_HINTS = ("content_type", "headers")

# Clients of REST's binary extension send these over gRPC too.
_BINARY_DATA = ("binary_data", "binary_data_size", "binary_data_output")
REGION = "shared_memory_region"
_SHARED_MEMORY = (REGION, "shared_memory_byte_size", "shared_memory_offset")


class RequestedOutput(NamedTuple):
    """An output that a request names.

    With `classes`, its so many best labels are wanted in place of its elements. With `memory`, it is written there.
    """

    name: str
    classes: int = 0
    memory: MemoryRange | None = None


def parse_schedule(parameters: Mapping[str, Any], ignore_unknown: bool = False) -> tuple[int, float]:
    """Priority, and timeout in seconds, of a request's parameters; 0 for each that is missing.

    Raises InvalidRequest for an invalid value or, unless they are ignored, an unknown parameter; Unimplemented for a parameter of
    sequences.
    """
    priority, timeout_seconds = 0, 0.0
    for name, value in parameters.items():
        if name == "priority":
            priority = _parse_size(value, "parameters[priority]")
        elif name == "timeout":
            # In microseconds. A longer timeout is as good as none.
            timeout_seconds = min(_parse_size(value, "parameters[timeout]") / 1e6, MAX_TIMEOUT_SECONDS)
        elif name.startswith("sequence_"):
            raise Unimplemented(f"parameter {name!r}: sequences are not offered, no model here keeps state between requests")
        elif name != WANTS_FINAL_RESPONSE and name not in _BINARY_DATA and name not in _HINTS and not ignore_unknown:
            message = f"unknown parameter {name[:64]!r}; accepted are priority (1 is first) and timeout (microseconds)"
            raise InvalidRequest(message, f"parameters[{name[:64]}]")
    return priority, timeout_seconds


def check_output_count(count: int) -> None:
    """Raises InvalidRequest if a request names more than MAX_OUTPUTS outputs."""
    if count > MAX_OUTPUTS:
        raise InvalidRequest(f"the request asks for {count} outputs; at most {MAX_OUTPUTS} are accepted", "outputs")


def parse_requested_output(
    index: int, name: str, parameters: Mapping[str, Any], memory: SharedMemory, ignore_unknown: bool = False
) -> RequestedOutput:
    """The output at `index` of a request's `outputs`.

    Raises InvalidRequest for an invalid value or, unless they are ignored, an unknown parameter; NotFound for an unknown region of
    shared memory.
    """
    field = f"outputs[{index}].parameters"
    if not ignore_unknown:
        _check_names(parameters, field, "classification")
    classes = _parse_size(parameters.get("classification", 0), f"{field}[classification]")
    return RequestedOutput(name, classes, _parse_memory_range(parameters, field, memory))


def parse_input_memory(parameters: Mapping[str, Any], memory: SharedMemory, ignore_unknown: bool = False) -> MemoryRange | None:
    """The place of the input in shared memory; None if its parameters name none. Raises as `parse_requested_output`."""
    field = "inputs[0].parameters"
    if not ignore_unknown:
        _check_names(parameters, field)
    return _parse_memory_range(parameters, field, memory)


def _check_names(parameters: Mapping[str, Any], field: str, *known: str) -> None:
    for name in parameters:
        if name not in (*known, *_BINARY_DATA, *_SHARED_MEMORY, *_HINTS):
            message = f"unknown parameter {name[:64]!r}; accepted are {', '.join((*known, *_SHARED_MEMORY))}"
            raise InvalidRequest(message, f"{field}[{name[:64]}]")


def _parse_memory_range(parameters: Mapping[str, Any], field: str, memory: SharedMemory) -> MemoryRange | None:
    name = parameters.get(REGION)
    if name is None:
        alone = next((key for key in _SHARED_MEMORY if key in parameters), None)
        if alone is not None:
            raise InvalidRequest(f"{alone} is given without shared_memory_region", f"{field}[{alone}]")
        return None
    if not isinstance(name, str):
        raise InvalidRequest(f"shared_memory_region is {name!r}; it must be a string", f"{field}[shared_memory_region]")
    region = memory.region(name)
    offset = _parse_size(parameters.get("shared_memory_offset", 0), f"{field}[shared_memory_offset]")
    byte_size = _parse_size(
        parameters.get("shared_memory_byte_size", region.byte_size - offset), f"{field}[shared_memory_byte_size]"
    )
    if offset + byte_size > region.byte_size:
        raise InvalidRequest(
            f"{byte_size} bytes at {offset} are not inside shared memory region {name!r}, which has {region.byte_size}",
            f"{field}[shared_memory_byte_size]",
        )
    return MemoryRange(region, offset, byte_size)


def _parse_size(value: Any, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_INT64:
        raise InvalidRequest(f"{field} is {str(value)[:64]}; it must be an integer, 0 or more", field)
    return value
