"""Tensors of the Open Inference Protocol."""

import re
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.errors import InvalidRequest
from service.open_inference.shared_memory import MemoryRange, Region
from service.open_inference.tensors import (
    DTYPES,
    elements_from_bytes,
    elements_from_memory,
    elements_from_values,
    elements_to_bytes,
)
from service.pb.inference import open_inference_pb2 as pb
from service.rpc.open_inference import _typed_elements

ARRAYS = st.sampled_from([*DTYPES.values()]).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(max_dims=4, max_side=5)))


@given(ARRAYS)
def test_raw_bytes_there_and_back(array: np.ndarray) -> None:
    datatype = next(name for name, dtype in DTYPES.items() if dtype == array.dtype)
    back = elements_from_bytes(datatype, list(array.shape), elements_to_bytes(array))
    assert isinstance(back, np.ndarray)
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


@given(ARRAYS)
@example(np.array([0, 2**63], np.uint64))
def test_values_there_and_back_flat_and_nested(array: np.ndarray) -> None:
    datatype = next(name for name, dtype in DTYPES.items() if dtype == array.dtype)
    for values in (array.ravel().tolist(), array.tolist()):
        back = elements_from_values(datatype, list(array.shape), values, "data")
        assert isinstance(back, np.ndarray)
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=6))
def test_bytes_there_and_back(elements: list[bytes]) -> None:
    assert elements_from_bytes("BYTES", [len(elements)], elements_to_bytes(elements)) == elements


@given(st.binary(max_size=60), st.integers(0, 5))
def test_any_bytes_are_split_or_refused(data: bytes, count: int) -> None:
    try:
        elements = elements_from_bytes("BYTES", [count], data)
    except InvalidRequest:
        return
    assert len(elements) == count
    assert elements_to_bytes(elements) == data


RAW: dict[str, tuple[str, list[Any], bytes, str]] = {
    "unknown data type": ("BF16", [1], b"12", "'BF16' is none of BOOL, UINT8"),
    "too few bytes": ("FP32", [2, 2], bytes(15), "the input has 15 bytes; FP32 of shape [2, 2] has 16"),
    "no whole element": ("FP64", [1], bytes(9), "the input has 9 bytes"),
    "whatever fits": ("UINT8", [2, -1], bytes(4), "shape [2, -1] is not accepted"),
    "no dimension": ("UINT8", [], bytes(1), "shape [] is not accepted"),
    "beyond any memory": ("UINT8", [2**62, 2**62], bytes(1), "the input has 1 bytes"),
    "a thousand dimensions": ("UINT8", [2**62] * 1000, bytes(1), "the shape has 1000 dimensions; at most 64 are accepted"),
    "a thousand dimensions of images": ("BYTES", [1] * 1000, b"", "the shape has 1000 dimensions; at most 64 are accepted"),
    "beyond 64 bits": ("UINT8", [2**63], bytes(1), f"the shape has a dimension beyond {2**63 - 1}"),
    "below 64 bits": ("UINT8", [-(10**5000)], bytes(1), "the shape has a dimension beyond"),
    "thousands of digits": ("UINT8", [10**3000, 10**3000], bytes(1), "the shape has a dimension beyond"),
    "thousands of digits of images": ("BYTES", [10**5000], b"", "the shape has a dimension beyond"),
    "not a number": ("UINT8", ["a"], bytes(1), "shape ['a'] is not accepted"),
    "half a number": ("UINT8", [1.0], bytes(1), "shape [1.0] is not accepted"),
    "an element cut short": ("BYTES", [1], struct.pack("<I", 5) + b"1234", "not 1 elements of BYTES"),
    "a length cut short": ("BYTES", [1], b"123", "not 1 elements of BYTES"),
    "an element too many": ("BYTES", [1], struct.pack("<I", 0) * 2, "not 1 elements of BYTES"),
    "images in three dimensions": ("BYTES", [1, 1, 1], struct.pack("<I", 0), "the shape [n] or [n, 1]"),
}


@pytest.mark.parametrize("name", RAW)
def test_raw_bytes_that_are_not_the_tensor_are_refused(name: str) -> None:
    datatype, shape, data, message = RAW[name]
    with pytest.raises(InvalidRequest) as caught:
        elements_from_bytes(datatype, shape, data)
    assert message in str(caught.value)
    assert caught.value.field.startswith("inputs[0]")


VALUES: dict[str, tuple[str, list[Any], list[Any], str]] = {
    "too large": ("UINT8", [1], [256], "not every element of the input can be UINT8"),
    "negative": ("UINT32", [1], [-1], "can be UINT32"),
    "a fraction": ("INT8", [1], [0.5], "can be INT8"),
    "a text": ("FP32", [1], ["1"], "can be FP32"),
    "a bool": ("FP32", [1], [True], "can be FP32"),
    "a number for a bool": ("BOOL", [1], [1], "can be BOOL"),
    "ragged": ("FP32", [3], [[1, 2], [3]], "can be FP32"),
    "nothing": ("FP32", [1], [None], "can be FP32"),
    "beyond any integer": ("INT64", [1], [2**70], "can be INT64"),
    "too few": ("FP32", [2], [1.0], "the input has 1 elements; shape [2] has 2"),
    "a text in a row": ("FP32", [2], [[1.0], ["1"]], "can be FP32"),
    "a row among numbers": ("FP32", [2], [1.0, [1.0]], "can be FP32"),
    "a row in a row of numbers": ("FP32", [2], [[1.0, [1.0]]], "can be FP32"),
    "an object": ("FP32", [1], [{}], "can be FP32"),
    "too many in rows": ("FP32", [2], [[1.0, 2.0], [3.0, 4.0]], "the input has 4 elements; shape [2] has 2"),
    "nested otherwise": ("FP32", [2, 2], [[1.0, 2.0, 3.0, 4.0]], "elements are of shape [1, 4], its shape is [2, 2]"),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_that_are_not_the_tensor_are_refused(name: str) -> None:
    datatype, shape, values, message = VALUES[name]
    with pytest.raises(InvalidRequest) as caught:
        elements_from_values(datatype, shape, values, "here")
    assert message in str(caught.value)
    assert caught.value.field == "here"


@pytest.mark.parametrize("shape", [[2**63 - 1, 2**63 - 1, 0], [0, 2**63 - 1], [2**70, 0]])
def test_a_shape_beyond_any_memory_is_refused_for_nothing_too(shape: list[int]) -> None:
    with pytest.raises(InvalidRequest, match="shape"):
        elements_from_values("FP32", shape, [], "here")
    with pytest.raises(InvalidRequest, match="shape"):
        elements_from_bytes("FP32", shape, b"")


def peak_bytes(job: Callable[[], object]) -> int:
    """The most memory that a job, which is refused, holds at a time."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest):
            job()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_long_text_among_many_does_not_make_all_of_them_long() -> None:
    values = ["x" * 10_000] + [""] * 1000
    assert peak_bytes(lambda: elements_from_values("UINT8", [1001], values, "here")) < 1_000_000
    assert peak_bytes(lambda: elements_from_values("UINT8", [1001, 1], [[value] for value in values], "here")) < 1_000_000


def test_what_is_more_than_the_shape_says_is_not_copied_to_be_refused() -> None:
    contents = pb.InferTensorContents(uint_contents=[1] * 1_000_000, bytes_contents=[b""] * 1_000_000)
    assert peak_bytes(lambda: _typed_elements("UINT8", [1], contents)) < 100_000
    assert peak_bytes(lambda: _typed_elements("BYTES", [1], contents)) < 100_000
    lengths = bytes(4_000_000)
    assert peak_bytes(lambda: elements_from_bytes("BYTES", [1_000_001], lengths)) < 100_000


def test_shared_memory_is_read_only_if_it_is_of_the_shape() -> None:
    region = Mock(spec=Region)
    for datatype, shape, message in (
        ("UINT8", [1, 28], "the input has 1073741824 bytes; UINT8 of shape [1, 28] has 28"),
        ("BF16", [1], "datatype 'BF16' is none of"),
        ("BYTES", [1, 1, 1], "the shape [n] or [n, 1]"),
    ):
        with pytest.raises(InvalidRequest, match=re.escape(message)):
            elements_from_memory(datatype, shape, MemoryRange(region, 0, 1 << 30))
    region.read.assert_not_called()
    region.read.return_value = bytes(28)
    elements = elements_from_memory("UINT8", [1, 28], MemoryRange(region, 8, 28))
    assert isinstance(elements, np.ndarray)
    assert elements.shape == (1, 28)
    region.read.assert_called_once_with(8, 28)
