"""Parameters of requests of the Open Inference Protocol."""

from typing import Any

import numpy as np
import pytest

from service.errors import InvalidRequest, NotFound, RequestError, Unimplemented
from service.open_inference.conversion import make_query
from service.open_inference.parameters import parse_input_memory, parse_requested_output
from service.open_inference.shared_memory import SharedMemory
from service.open_inference.tensors import InputTensor

IMAGE = InputTensor("image", "UINT8", [1, 1], np.zeros((1, 1), np.uint8))


def test_priority_and_timeout_are_read() -> None:
    asked = make_query("m", "2", IMAGE, (), {"priority": 1, "timeout": 1_500_000, "triton_enable_empty_final_response": True})
    assert (asked.model, asked.version, asked.priority, asked.timeout_seconds) == ("m", "2", 1, 1.5)
    assert make_query("m", "", IMAGE, (), {"timeout": 2**63 - 1}).timeout_seconds == 1e9
    assert make_query("m", "", IMAGE, (), {"binary_data_output": True}).priority == 0


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"priorty": 1}, InvalidRequest, "unknown parameter 'priorty'; accepted are priority"),
        ({"priority": -1}, InvalidRequest, "an integer, 0 or more"),
        ({"priority": True}, InvalidRequest, "is True"),
        ({"priority": "1"}, InvalidRequest, "is 1"),
        ({"timeout": 0.5}, InvalidRequest, "is 0.5"),
        ({"timeout": 2**64}, InvalidRequest, "an integer"),
        ({"sequence_id": 3}, Unimplemented, "sequences are not offered"),
    ],
)
def test_parameters_that_are_not_accepted(parameters: dict[str, Any], error: type[RequestError], message: str) -> None:
    with pytest.raises(error, match=message):
        make_query("m", "", IMAGE, (), parameters)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"shared_memory_offset": 1}, "shared_memory_offset is given without shared_memory_region"),
        ({"shared_memory_region": 1}, "shared_memory_region is 1; it must be a string"),
        ({"classification": -1}, "an integer, 0 or more"),
        ({"colour": "red"}, "unknown parameter 'colour'"),
        ({"c" * 1000: "red"}, f"unknown parameter '{'c' * 64}'"),
    ],
)
def test_output_parameters_that_are_not_accepted(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        parse_requested_output(0, "logits", parameters, SharedMemory())
    with pytest.raises(NotFound, match="no shared memory region 'x'"):
        parse_input_memory({"shared_memory_region": "x"}, SharedMemory())


def test_hints_are_ignored_and_unknown_parameters_if_asked_for() -> None:
    hints: dict[str, Any] = {"content_type": "np", "headers": {"x": "y"}}
    unknown = hints | {"colour": "red"}
    assert make_query("m", "", IMAGE, (), hints | {"priority": 2}).priority == 2
    assert parse_requested_output(0, "logits", hints | {"classification": 3}, SharedMemory()).classes == 3
    assert parse_input_memory(hints, SharedMemory()) is None
    assert make_query("m", "", IMAGE, (), unknown | {"priority": 2}, ignore_unknown=True).priority == 2
    assert parse_requested_output(0, "logits", unknown | {"classification": 3}, SharedMemory(), True).classes == 3
    assert parse_input_memory(unknown, SharedMemory(), True) is None
    for invalid in ({"priority": "high"}, {"sequence_id": 3}):
        with pytest.raises(RequestError):
            make_query("m", "", IMAGE, (), invalid, ignore_unknown=True)
