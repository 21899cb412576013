"""Messages of streams that differ from earlier ones in their content alone are not parsed, and mean what parsed ones mean."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from google.protobuf.message import Message

from service.engine.classifier import Classifier
from service.engine.observer import RequestObserver
from service.engine.query import Query
from service.engine.served_version import ServedVersion
from service.errors import InvalidRequest
from service.model.signature import TensorSpec
from service.observability.metrics import Metrics
from service.open_inference.shared_memory import SharedMemory
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.pb.inference import open_inference_pb2 as oip
from service.rpc.call import Receiver, Stream
from service.rpc.classify import ClassifyServicer
from service.rpc.dispatch import deliver_small
from service.rpc.open_inference import InferServicer
from tests.served import served_version
from tests.unit.rpc.recorded_stream import RecordedStream

SHAPE = (1, 28, 28, 1)


class Queries(RequestObserver):
    """Notes what a classifier is asked, but for models of the name `refused`."""

    def __init__(self) -> None:
        super().__init__(0.0, None)
        self.asked: list[Query] = []

    def begin(self, query: Query) -> None:
        if query.model != "refused":
            self.asked.append(query)


def classifier_of(queries: Queries) -> Classifier:
    """A classifier whose queries all wait: their model has no instance. Those of the model `refused` are."""
    served = served_version()
    served.model.input = TensorSpec("image", np.dtype(np.uint8), SHAPE[1:])

    def acquire(model: str, version: str) -> ServedVersion:
        if model == "refused":
            raise InvalidRequest("no", "model")
        return served

    return Classifier(Mock(splits={}, acquire=acquire), Mock(spec=Metrics), cpus=1, observer=queries)


def fail_to_parse(_: bytes) -> Message:
    raise AssertionError("a message was parsed")


UNPARSED: Any = SimpleNamespace(FromString=fail_to_parse)
"""In place of a message's class."""


def classify_message(pixels: bytes, model: str = "m") -> bytes:
    request = pb.ClassifyRequest(model=model, items=[pb.Item(pixels=pixels)], top_k=3)
    return pb.ClassifyStreamRequest(request=request).SerializeToString()


def infer_message(pixels: bytes, model: str = "m") -> bytes:
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=SHAPE)
    return oip.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[pixels]).SerializeToString()


Write = Callable[..., bytes]
Opened = tuple[Queries, Stream, Receiver, RecordedStream, Write]


@pytest.fixture(params=["ClassifyStream", "ModelStreamInfer"])
def opened(request: pytest.FixtureRequest) -> Opened:
    queries = Queries()
    classifier = classifier_of(queries)
    classify = request.param == "ClassifyStream"
    servicer = ClassifyServicer(classifier) if classify else InferServicer(classifier, SharedMemory())
    method = servicer.methods()[1]
    assert isinstance(method, Stream)
    call = RecordedStream(method)
    return queries, method, method.open(call), call, classify_message if classify else infer_message


def pixels(seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(784)


def content_of(query: Query) -> bytes:
    return query.items[0].data if query.tensor is None else query.tensor.tobytes()


def test_the_third_message_is_not_parsed_and_asks_what_it_says(opened: Opened) -> None:
    queries, method, receiver, call, write = opened
    for seed in range(2):
        deliver_small(method, write(pixels(seed)), receiver, call)
    deliver_small(replace(method, request=UNPARSED), write(pixels(2)), receiver, call)
    assert [content_of(query) for query in queries.asked] == [pixels(seed) for seed in range(3)]
    first, last = (query._replace(items=(), tensor=None, validate=None) for query in (queries.asked[0], queries.asked[2]))
    assert first == last
    assert not call.sent


def test_nothing_is_learned_from_what_is_refused(opened: Opened) -> None:
    queries, method, receiver, call, write = opened
    for seed in range(4):
        deliver_small(method, write(pixels(seed), "refused"), receiver, call)
    assert len(call.sent) == 4
    assert method.shortcut is not None
    assert method.shortcut.read(write(pixels(4), "refused"), call) is None
    assert not queries.asked


def test_bytes_of_known_messages_are_held_until_they_are_answered(opened: Opened) -> None:
    _, method, receiver, call, write = opened
    payload = write(pixels(0))
    before = call.budget.in_flight_bytes
    for count in range(1, 5):
        deliver_small(method, payload, receiver, call)
        assert call.budget.in_flight_bytes - before == count * len(payload)
    call.cancelled_by_client()
    assert call.budget.in_flight_bytes == before
