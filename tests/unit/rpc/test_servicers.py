"""Requests that are refused before anything is made of their items."""

import tracemalloc
from unittest.mock import Mock

import pytest

from service.engine.classifier import Classifier
from service.errors import InvalidRequest
from service.open_inference.shared_memory import SharedMemory
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.pb.inference import open_inference_pb2 as oip
from service.rpc.classify import query_of
from service.rpc.open_inference import InferServicer


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
            query_of(many, classifier, Mock())
        with pytest.raises(InvalidRequest, match="too many"):
            servicer.start(lengths, Mock(), Mock(), Mock())
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
        InferServicer(Mock(spec=Classifier), SharedMemory()).start(request, Mock(), Mock(), Mock())
