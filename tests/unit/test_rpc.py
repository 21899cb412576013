"""The gRPC edge's own arithmetic, against protobuf's."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from service.metrics import Phases
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.rpc.classify import ResponseWriter

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
