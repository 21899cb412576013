"""Responses put together from bytes, compared with protobuf's own serialisation."""

import math
from typing import NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.pb.convoy.v1 import classifier_pb2 as pb
from service.pb.inference import open_inference_pb2 as oip
from service.requests.phases import Phases
from service.rpc.wire import (
    ClassifyResponseWriter,
    ModelInferResponseWriter,
    classify_stream_response,
    model_stream_infer_response,
    varint,
)

seconds = st.floats(0, 1e6)


@given(
    labels=st.lists(st.text(min_size=1, max_size=300), min_size=2, max_size=40),
    items=st.lists(st.lists(st.floats(0, 1, width=32), max_size=40), max_size=8),
    number=st.sampled_from(["probability", "score"]),
    request_id=st.text(max_size=60),
    decode=st.none() | seconds,
    queue=seconds,
    inference=seconds,
)
@settings(deadline=None)
def test_a_classify_response(
    labels: list[str], items: list[list[float]], number: str, request_id: str, decode: float | None, queue: float, inference: float
) -> None:
    results = [list(enumerate(probabilities[: len(labels)])) for probabilities in items]
    writer = ClassifyResponseWriter("model", "12", labels, probabilities=number == "probability")
    written = writer.write(request_id, Phases(decode, queue, inference), results)
    expected = pb.ClassifyResponse(
        model="model",
        version="12",
        id=request_id,
        results=[
            pb.ItemResult(predictions=[pb.Prediction(label=labels[i], index=i, **{number: p}) for i, p in result])
            for result in results
        ],
        phases=pb.Phases(decode_seconds=decode, queue_seconds=queue, inference_seconds=inference),
    )
    parsed = pb.ClassifyResponse.FromString(written)
    assert parsed == expected
    assert math.copysign(1, parsed.phases.queue_seconds) == 1


class Outputs(NamedTuple):
    items: int
    outputs: dict[str, np.ndarray]

    def content(self, name: str) -> bytes:
        return self.outputs[name].tobytes()


@given(st.text(max_size=5), st.integers(1, 300), st.sampled_from(["", "an id"]))
def test_a_model_infer_response(name: str, items: int, request_id: str) -> None:
    scores, features = np.random.default_rng(0).random((items, 3), np.float32), np.zeros((items, 2, 2), np.int16)
    outputs: dict[str, np.ndarray] = {"scores": scores, "features": features}
    writer = ModelInferResponseWriter(name, "12", list(outputs))
    expected = oip.ModelInferResponse(
        model_name=name,
        model_version="12",
        id=request_id,
        outputs=[
            oip.ModelInferResponse.InferOutputTensor(name="scores", datatype="FP32", shape=[items, 3]),
            oip.ModelInferResponse.InferOutputTensor(name="features", datatype="INT16", shape=[items, 2, 2]),
        ],
        raw_output_contents=[scores.tobytes(), features.tobytes()],
    ).SerializeToString()
    answer = Outputs(items, outputs)
    assert writer.write(request_id, answer, writer.names) == expected
    assert writer.write(request_id, answer, writer.names) == expected


@given(st.text(max_size=60), st.integers(0, 2**31 - 1), st.text(max_size=300))
def test_a_classify_stream_response(request_id: str, index: int, model: str) -> None:
    response = pb.ClassifyResponse(model=model)
    expected = pb.ClassifyStreamResponse(id=request_id, index=index, response=response).SerializeToString()
    assert classify_stream_response(request_id, index, response.SerializeToString()) == expected


@given(st.text(max_size=300))
def test_a_model_stream_infer_response(model: str) -> None:
    response = oip.ModelInferResponse(model_name=model)
    expected = oip.ModelStreamInferResponse(infer_response=response).SerializeToString()
    assert model_stream_infer_response(response.SerializeToString()) == expected


@given(st.integers(0, 2**63 - 1))
def test_a_varint(number: int) -> None:
    assert b"\x10" + varint(number) == oip.InferParameter(int64_param=number).SerializeToString()
