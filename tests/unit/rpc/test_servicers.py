"""The gRPC edge's own arithmetic, against protobuf's."""

import math
import tracemalloc
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.classifier import Classifier
from service.errors import InvalidRequest
from service.open_inference.shared_memory import SharedMemory
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.pb.inference import open_inference_pb2 as oip
from service.phases import Phases
from service.rpc.classify import ResponseWriter, _query
from service.rpc.open_inference import InferServicer

seconds = st.floats(0, 1e6)


@given(
    labels=st.lists(st.text(min_size=1, max_size=300), min_size=2, max_size=40),
    items=st.lists(st.lists(st.floats(0, 1, width=32), max_size=40), max_size=8),
    request_id=st.text(max_size=60),
    decode=st.none() | seconds,
    queue=seconds,
    inference=seconds,
)
@settings(deadline=None)
def test_responses_put_together_from_bytes_are_those_that_protobuf_writes(
    labels: list[str], items: list[list[float]], request_id: str, decode: float | None, queue: float, inference: float
) -> None:
    results = [list(enumerate(probabilities[: len(labels)])) for probabilities in items]
    written = ResponseWriter("model", "12", labels).write(request_id, Phases(decode, queue, inference), results)
    expected = pb.ClassifyResponse(
        model="model",
        version="12",
        id=request_id,
        results=[
            pb.ItemResult(predictions=[pb.Prediction(label=labels[i], index=i, probability=p) for i, p in result])
            for result in results
        ],
        phases=pb.Phases(decode_seconds=decode, queue_seconds=queue, inference_seconds=inference),
    )
    parsed = pb.ClassifyResponse.FromString(written)
    assert parsed == expected
    assert math.copysign(1, parsed.phases.queue_seconds) == 1


def test_many_items_are_counted_before_anything_is_made_of_them() -> None:
    classifier = Mock(spec=Classifier)
    classifier.check_count.side_effect = InvalidRequest("too many", "items")
    many = pb.ClassifyRequest(model="m", version="2", items=[pb.Item(pixels=b"1")] * 100_000)
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[100_000])
    lengths = oip.ModelInferRequest(model_name="m", model_version="2", inputs=[tensor], raw_input_contents=[bytes(400_000)])
    servicer = InferServicer(classifier, SharedMemory())
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="too many"):
            _query(many, classifier, math.inf, None)
        with pytest.raises(InvalidRequest, match="too many"):
            servicer.begin(lengths, Mock(), Mock(), Mock())
        assert tracemalloc.get_traced_memory()[1] < 500_000  # the bytes themselves are copied, once
    finally:
        tracemalloc.stop()
    classifier.check_count.assert_called_with("m", "2", 100_000)
    classifier.classify.assert_not_called()


def test_very_many_outputs_are_refused() -> None:
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[1])
    request = oip.ModelInferRequest(inputs=[tensor], raw_input_contents=[b"1"])
    request.outputs.extend([oip.ModelInferRequest.InferRequestedOutputTensor()] * 1025)
    with pytest.raises(InvalidRequest, match="1025 outputs; at most 1024 are accepted"):
        InferServicer(Mock(spec=Classifier), SharedMemory()).begin(request, Mock(), Mock(), Mock())
