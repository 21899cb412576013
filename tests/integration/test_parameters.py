"""Parameters of the Open Inference Protocol that a server does not know: on every surface, wherever they may stand."""

import http.client
import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from service.pb.inference import open_inference_pb2 as pb
from service.server import Server
from tests.conftest import Serve

PIXELS = bytes(28 * 28)
SERVICE = "/inference.GRPCInferenceService"
PLACES = ("request", "input", "output")


def message(place: str, name: str) -> pb.ModelInferRequest:
    tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[1, 28, 28, 1])
    output = pb.ModelInferRequest.InferRequestedOutputTensor(name="logits")
    request = pb.ModelInferRequest(model_name="digits", inputs=[tensor], outputs=[output], raw_input_contents=[PIXELS])
    holder: Any = {"request": request, "input": request.inputs[0], "output": request.outputs[0]}[place]
    holder.parameters[name].string_param = "np"
    return request


def unary(server: Server, place: str, name: str) -> str:
    """An error's message; empty if the request is answered."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary(
            f"{SERVICE}/ModelInfer", pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString
        )
        outcome: Any = call.future(message(place, name), timeout=30)
        assert outcome.code() in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)
        return str(outcome.details())


def stream(server: Server, place: str, name: str) -> str:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.stream_stream(
            f"{SERVICE}/ModelStreamInfer", pb.ModelInferRequest.SerializeToString, pb.ModelStreamInferResponse.FromString
        )
        (response,) = call(iter([message(place, name)]), timeout=30)
        return str(response.error_message)


def rest(server: Server, place: str, name: str) -> str:
    request: dict[str, Any] = {"id": None, "inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1]}]}
    request |= {"outputs": [{"name": "logits", "parameters": None}], "parameters": None}  # as libraries write what is not set
    holder = {"request": request, "input": request["inputs"][0], "output": request["outputs"][0]}[place]
    holder["parameters"] = {name: {"of": "any kind"}}
    request["inputs"][0]["data"] = list(PIXELS)
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=30)
    connection.request("POST", "/v2/models/digits/infer", json.dumps(request))
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    assert response.status == (400 if "error" in answer else 200)
    return str(answer.get("error", ""))


@pytest.mark.parametrize("lenient", [False, True])
def test_an_unknown_parameter_is_refused_unless_the_server_ignores_it(repository: Path, serve: Serve, lenient: bool) -> None:
    server = serve(repository, ignore_unknown_parameters=lenient)
    for ask in (unary, stream, rest):
        for place in PLACES:
            assert ask(server, place, "content_type") == "", (ask, place)
            assert ask(server, place, "headers") == "", (ask, place)
            refused = ask(server, place, "colour")
            assert ("unknown parameter 'colour'; accepted are" in refused) == (not lenient), (ask, place)
            assert bool(refused) == (not lenient), (ask, place)
