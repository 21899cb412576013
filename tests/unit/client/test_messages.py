"""Requests are built, and statuses become CallFailed."""

import copy
import pickle
from array import array
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status

from service.client import CallFailed, RequestTooLarge, messages
from service.client.messages import call_failed, classification, classify_request, explanations, filled
from service.errors import UserError
from service.pb.convoy.v1 import classifier_pb2 as pb


def error(code: str, details: str, **trailing: Any) -> grpc.aio.AioRpcError:
    metadata = grpc.aio.Metadata(*((name.replace("_", "-"), value) for name, value in trailing.items()))
    return grpc.aio.AioRpcError(grpc.StatusCode[code], grpc.aio.Metadata(), metadata, details=details)


def test_a_status_is_an_error_with_its_field_and_when_to_retry() -> None:
    detail = AnyMessage()
    detail.Pack(BadRequest(field_violations=[BadRequest.FieldViolation(field="items[3].encoded")]))
    status = Status(code=3, details=[detail]).SerializeToString()
    refused = call_failed(error("INVALID_ARGUMENT", "item 3: not an image", grpc_status_details_bin=status))
    assert (refused.code, refused.message, refused.field) == ("INVALID_ARGUMENT", "item 3: not an image", "items[3].encoded")
    full = call_failed(error("RESOURCE_EXHAUSTED", "queue full", grpc_retry_pushback_ms="1500"))
    assert (type(full), full.retry_after_seconds) == (CallFailed, 1.5)
    assert str(call_failed(error("UNAVAILABLE", "... backend unhealthy"))).startswith("UNAVAILABLE: no server is ready")
    assert str(call_failed(grpc.RpcError("odd"))) == "UNKNOWN: odd"


def test_an_answer_can_be_pickled_and_copied_and_an_explanation_is_hashable() -> None:
    prediction = pb.Prediction(label="cat", index=3, probability=0.5, score=7)
    heat = array("f", [1, -2, 3, 4, 5, 6]).tobytes()
    sent = pb.ExplainResponse(explanations=[{"prediction": prediction, "height": 2, "width": 3, "heat": heat, "overlay": b"png"}])
    (explanation,) = explanations(sent)
    result = pb.ItemResult(
        predictions=[prediction], embedding=[1, 2], heads=[pb.HeadResult(name="other", predictions=[prediction])]
    )
    for answer in (explanation, classification(pb.ClassifyResponse(results=[result]))):
        for again in (pickle.loads(pickle.dumps(answer)), copy.copy(answer), copy.deepcopy(answer)):
            assert again == answer
    assert len({explanation, copy.copy(explanation)}) == 1
    assert np.asarray(explanation.heat).tolist() == [[1, -2, 3], [4, 5, 6]]


def test_a_request_that_is_too_large_is_an_error_of_its_own() -> None:
    failed = call_failed(error("RESOURCE_EXHAUSTED", "Received message larger than max (2000 vs. 1000)"))
    assert isinstance(failed, RequestTooLarge)
    assert (failed.size_bytes, failed.limit_bytes, failed.code) == (2000, 1000, "RESOURCE_EXHAUSTED")


@pytest.mark.parametrize("failed", [CallFailed("INTERNAL", "a defect", "items[0]", 1.5), RequestTooLarge(2000, 1000)])
def test_errors_can_be_pickled(failed: CallFailed) -> None:
    again = pickle.loads(pickle.dumps(failed))
    assert (type(again), str(again), vars(again)) == (type(failed), str(failed), vars(failed))


def test_a_request_too_large_for_any_message_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_MESSAGE_BYTES", 1000)
    with pytest.raises(UserError, match="the request is too large: a request holds at most 1000 bytes"):
        classify_request([bytes(1000)], model="digits")
    assert classify_request([bytes(900)], model="digits").ByteSize() <= 1000


def test_an_invalid_value_is_named() -> None:
    for name, value in (("version", 1), ("top_k", -1), ("top_k", 1 << 40), ("timeout_seconds", "1"), ("version", "\udcff")):
        with pytest.raises(UserError) as caught:
            filled(pb.ClassifyRequest(), **{name: value})
        assert str(caught.value) == f"invalid value for {name}: {value!r}"
