"""Requests that name no version are shared out among several, on every surface; a key keeps them at one."""

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message

from service.client import Client
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.pb.inference import open_inference_pb2 as oip
from service.server import Server
from tests.conftest import Serve, put

PIXELS = bytes(28 * 28)
BLACK = np.zeros((1, 28, 28, 1), np.uint8)
CLASSIFIER, INFERENCE = "/convoy.v1.Classifier", "/inference.GRPCInferenceService"


def call(server: Server, method: str, user: str, request: Message, response: type[Message], *, stream: bool = False) -> Any:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        make: Any = channel.stream_stream if stream else channel.unary_unary
        ask = make(method, type(request).SerializeToString, response.FromString)
        found = ask(iter([request]) if stream else request, timeout=30, metadata=[("x-user", user)])
        return next(iter(found)) if stream else found


def classify(server: Server, user: str) -> str:
    request = pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=PIXELS)])
    return str(call(server, f"{CLASSIFIER}/Classify", user, request, pb.ClassifyResponse).version)


def classify_stream(server: Server, user: str) -> str:
    request = pb.ClassifyStreamRequest(request=pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=PIXELS)]))
    answer = call(server, f"{CLASSIFIER}/ClassifyStream", user, request, pb.ClassifyStreamResponse, stream=True)
    return str(answer.response.version)


def infer_request() -> oip.ModelInferRequest:
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[1, 28, 28, 1])
    return oip.ModelInferRequest(model_name="digits", inputs=[tensor], raw_input_contents=[PIXELS])


def infer(server: Server, user: str) -> str:
    return str(call(server, f"{INFERENCE}/ModelInfer", user, infer_request(), oip.ModelInferResponse).model_version)


def infer_stream(server: Server, user: str) -> str:
    method = f"{INFERENCE}/ModelStreamInfer"
    answer = call(server, method, user, infer_request(), oip.ModelStreamInferResponse, stream=True)
    return str(answer.infer_response.model_version)


def rest(server: Server, user: str) -> str:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1], "data": list(PIXELS)}
    url = f"http://127.0.0.1:{server.http_port}/v2/models/digits/infer"
    request = urllib.request.Request(url, json.dumps({"inputs": [tensor]}).encode(), {"X-User": user})
    with urllib.request.urlopen(request, timeout=30) as response:
        return str(json.load(response)["model_version"])


SURFACES: list[Callable[[Server, str], str]] = [classify, classify_stream, infer, infer_stream, rest]


@pytest.fixture
def shared_out(repository: Path, model_file: Path, serve: Serve) -> Server:
    put(model_file, repository, "digits", 2)
    text = 'versions = "1"\ntraffic_key = "x-user"\n[aliases]\ncanary = 2\n[traffic]\n1 = 1\ncanary = 1\n'
    (repository / "digits" / "serving.toml").write_text(text)
    return serve(repository)


def test_a_key_keeps_requests_at_one_version_on_all_surfaces(shared_out: Server) -> None:
    answered = {user: {surface(shared_out, user) for surface in SURFACES} for user in map(str, range(8))}
    assert all(len(versions) == 1 for versions in answered.values())
    assert set.union(*answered.values()) == {"1", "2"}


def test_requests_without_the_key_go_to_both_and_a_version_that_is_named_answers(shared_out: Server) -> None:
    assert {classify(shared_out, "") for _ in range(64)} == {"1", "2"}
    with Client(f"127.0.0.1:{shared_out.grpc_port}") as client:
        assert {client.classify(BLACK, "digits", version="latest").version for _ in range(64)} == {"1"}
        assert client.model("digits").version == "1", "metadata is that of the default"
        assert client.model("digits").shares == {"1": 0.5, "2": 0.5}
        found = {each.version: (each.aliases, each.share) for each in client.models()}
        assert found == {"1": ([], 0.5), "2": (["canary"], 0.5)}
