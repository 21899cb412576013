"""Requests that are refused before anything is made of their items."""

import tracemalloc
from unittest.mock import Mock, call

import pytest

from service.engine.classifier import Classifier
from service.engine.served_version import ServedVersion
from service.errors import InvalidRequest
from service.observability.metrics import Metrics
from service.open_inference.shared_memory import SharedMemory
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.pb.inference import open_inference_pb2 as oip
from service.rpc.classify import query_of
from service.rpc.open_inference import InferServicer
from tests.served import served_version
from tests.unit.rpc.test_message_parsing import ACall


def classifier_of(served: ServedVersion) -> tuple[Classifier, Mock]:
    """A classifier that has one version, and its repository."""
    repository = Mock(splits={})
    repository.acquire.return_value = served
    return Classifier(repository, Mock(spec=Metrics), cpus=1), repository


def test_many_items_are_counted_before_anything_is_made_of_them() -> None:
    classifier, repository = classifier_of(served_version(max_request_items=64))
    many = pb.ClassifyRequest(model="m", version="2", items=[pb.Item(pixels=b"1")] * 100_000)
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[100_000])
    lengths = oip.ModelInferRequest(model_name="m", model_version="2", inputs=[tensor], raw_input_contents=[bytes(400_000)])
    servicer = InferServicer(classifier, SharedMemory())
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="100000 items; at most 64 are accepted"):
            query_of(many, classifier, ACall())
        with pytest.raises(InvalidRequest, match="100000 items; at most 64 are accepted"):
            servicer.start(lengths, ACall(), Mock(), Mock())
        assert tracemalloc.get_traced_memory()[1] < 500_000  # the bytes themselves are copied, once
    finally:
        tracemalloc.stop()
    assert repository.acquire.call_args_list == [call("m", "2"), call("m", "2")]


def test_very_many_outputs_are_refused() -> None:
    classifier, _ = classifier_of(served_version())
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[1])
    request = oip.ModelInferRequest(inputs=[tensor], raw_input_contents=[b"1"])
    request.outputs.extend([oip.ModelInferRequest.InferRequestedOutputTensor()] * 1025)
    with pytest.raises(InvalidRequest, match="1025 outputs; at most 1024 are accepted"):
        InferServicer(classifier, SharedMemory()).start(request, ACall(), Mock(), Mock())
