"""Messages counted by their tags and lengths, compared with what protobuf makes of them."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import InvalidRequest
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.pb.inference import open_inference_pb2 as oip
from service.rpc.message_cost import MAX_FIELDS, count, layout_of

CLASSIFY = layout_of(pb.ClassifyRequest.DESCRIPTOR)
STREAM = layout_of(pb.ClassifyStreamRequest.DESCRIPTOR)
INFER = layout_of(oip.ModelInferRequest.DESCRIPTOR)


def infer(**contents: object) -> bytes:
    tensor = oip.ModelInferRequest.InferInputTensor(name="x", datatype="X", contents=oip.InferTensorContents(**contents))  # type: ignore[arg-type]
    return oip.ModelInferRequest(model_name="m", inputs=[tensor]).SerializeToString()


def test_fields_are_counted_and_contents_skipped() -> None:
    request = pb.ClassifyRequest(model="m", version="1", top_k=3, timeout_seconds=1.5, items=[pb.Item(pixels=bytes(1000))] * 7)
    assert count(request.SerializeToString(), CLASSIFY, 100) == (4 + 2 * 7, 0)
    assert count(pb.ClassifyStreamRequest(request=request).SerializeToString(), STREAM, 100) == (1 + 4 + 2 * 7, 0)


@pytest.mark.parametrize(
    ("contents", "elements"),
    [
        ({"fp32_contents": [0.5] * 1000}, 1000),
        ({"fp64_contents": [0.5] * 1000}, 1000),
        ({"uint_contents": [7] * 1000}, 1000),
        ({"int64_contents": [-1] * 1000}, 10 * 1000),  # of ten bytes each: counted as if they had one
        ({"bool_contents": [True] * 1000}, 1000),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_elements_of_packed_lists_are_counted(contents: dict[str, list[float]], elements: int) -> None:
    assert count(infer(**contents), INFER, 100).elements == elements


@pytest.mark.parametrize(
    ("message", "layout"),
    [
        (b"\x1a\x00" * 8_000_000, CLASSIFY),  # items
        (b"\x0a\x80\x80\x80\x08" + b"\x1a\x00" * 8 * 1024 * 1024, STREAM),
        (b"\x2a\x00" * 8_000_000, INFER),  # inputs
        (b"\x32\x00" * 8_000_000, INFER),  # outputs
        (b"\x22\x00" * 8_000_000, INFER),  # parameters
        (b"\x3a\x00" * 8_000_000, INFER),  # raw_input_contents
        (b"\x2a\x80\x80\x80\x08" + b"\x22\x00" * 8 * 1024 * 1024, INFER),  # parameters of an input
        (b"\x18\x01" * 8_000_000, CLASSIFY),  # a scalar again and again
        (b"\x98\x01\x01" * 5_000_000, CLASSIFY),  # an unknown field
    ],
    ids=range(9),
)
def test_a_message_of_many_fields_is_refused_before_its_end(message: bytes, layout: dict[int, object]) -> None:
    with pytest.raises(InvalidRequest, match="more fields than any request"):
        count(message, layout, 1000)  # type: ignore[arg-type]


@pytest.mark.parametrize("parameters", [1, 3, 36])
def test_fields_of_small_submessages_are_counted(parameters: int) -> None:
    named = {f"{number:x}": oip.InferParameter(bool_param=True) for number in range(parameters)}
    output = oip.ModelInferRequest.InferRequestedOutputTensor(parameters=named)
    message = oip.ModelInferRequest(outputs=[output] * 100).SerializeToString()
    # An output, and of each of its parameters the entry, its key, its value and what is in that.
    assert count(message, INFER, MAX_FIELDS) == (100 * (1 + 4 * parameters), 0)
    with pytest.raises(InvalidRequest, match="more fields than any request"):
        count(message * (MAX_FIELDS // 500 + 1), INFER, MAX_FIELDS)


def test_unpacked_elements_are_fields() -> None:
    element = b"\x35\x00\x00\x00\x3f"  # InferTensorContents.fp32_contents, not packed
    contents = element * 1000
    tensor = b"\x2a" + bytes([len(contents) & 127 | 128, len(contents) >> 7]) + contents
    message = b"\x2a" + bytes([len(tensor) & 127 | 128, len(tensor) >> 7]) + tensor
    assert len(oip.ModelInferRequest.FromString(message).inputs[0].contents.fp32_contents) == 1000
    assert count(message, INFER, 2000).fields == 1002
    with pytest.raises(InvalidRequest):
        count(message, INFER, 1000)


@pytest.mark.parametrize(
    "message",
    [
        b"\x0a",
        b"\x0a\x05abc",
        b"\x08" + b"\xff" * 11,
        b"\x0b\x0c",
        b"\x0f",
        b"\x0d\x00",
        b"\x09\x00\x00",
        b"\x1a\xff\xff\xff\xff\x7f",
    ],
)
def test_a_malformed_message_is_refused_as_protobuf_does(message: bytes) -> None:
    with pytest.raises(DecodeError):
        count(message, CLASSIFY, 1000)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=768))
def test_any_bytes_end_in_a_count_or_a_refusal(message: bytes) -> None:
    for layout in (CLASSIFY, STREAM, INFER):
        try:
            assert count(message, layout, 100).fields <= 100
        except (DecodeError, InvalidRequest):
            continue


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=600), max_size=40), st.text(max_size=300), st.floats(allow_nan=False))
def test_what_protobuf_writes_is_never_called_malformed(items: list[bytes], text: str, seconds: float) -> None:
    request = pb.ClassifyRequest(
        model=text, version=text, timeout_seconds=seconds, priority=2**32 - 1, items=[pb.Item(encoded=item) for item in items]
    )
    assert count(request.SerializeToString(), CLASSIFY, 1000).fields <= 4 + 2 * len(items)
