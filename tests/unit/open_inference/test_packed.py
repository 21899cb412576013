"""Packed numbers as arrays, compared with what protobuf gives one by one."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.open_inference.packed import array_of
from service.pb.inference.open_inference_pb2 import InferTensorContents

FIELDS = {
    "bool_contents": st.booleans(),
    "int_contents": st.integers(-(2**31), 2**31 - 1),
    "int64_contents": st.integers(-(2**63), 2**63 - 1),
    "uint_contents": st.integers(0, 2**32 - 1),
    "uint64_contents": st.integers(0, 2**64 - 1),
    "fp32_contents": st.floats(width=32),
    "fp64_contents": st.floats(),
}


@pytest.mark.parametrize("field", FIELDS)
@settings(deadline=None, max_examples=50)
@given(st.data())
def test_the_array_has_the_values_of_the_list(field: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(FIELDS[field], min_size=1, max_size=400))
    check(field, values)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=400))
def test_the_array_has_the_values_of_pixels(values: list[int]) -> None:
    check("uint_contents", values)


def check(field: str, values: list[Any]) -> None:
    contents = InferTensorContents(**{field: values})
    for beside in ({}, {"bytes_contents": [b"x" * 300]}, {"int_contents": [1], "fp32_contents": [2.0]}):
        for name, other in beside.items():
            if name != field:
                getattr(contents, name)[:] = other
        array = array_of(contents, field)
        assert array.dtype.kind in "?b" if field == "bool_contents" else array.dtype.kind in "iuf"
        assert np.array_equal(array, np.array(list(getattr(contents, field)), array.dtype), equal_nan=field.startswith("fp"))
