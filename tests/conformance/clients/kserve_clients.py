"""KServe's own inference clients, gRPC and REST: every call that they have for this protocol."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from conftest import Server
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceGRPCClient, InferenceRESTClient, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

REST = RESTConfig(protocol="v2", retries=0)


def on_both(server: Server, ask: Callable[[Callable[..., Awaitable[Any]]], Awaitable[None]]) -> None:
    """Calls `ask` with an `infer(request)` of either client."""

    async def go() -> None:
        async with InferenceGRPCClient(server.grpc, retries=0) as client:
            await ask(client.infer)
        async with InferenceRESTClient(REST) as rest:
            await ask(lambda request: rest.infer(f"http://{server.http}", request, model_name=request.model_name))

    asyncio.run(go())


def request(tensor: InferInput, model: str = "digits", **more: Any) -> InferRequest:
    return InferRequest(model_name=model, infer_inputs=[tensor], **more)


def test_health(server: Server) -> None:
    async def go() -> None:
        async with InferenceGRPCClient(server.grpc, retries=0) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("digits")
            assert not await client.is_model_ready("nothing")
        async with InferenceRESTClient(REST) as rest:
            assert await rest.is_server_live(f"http://{server.http}")
            assert await rest.is_server_ready(f"http://{server.http}")
            assert await rest.is_model_ready(f"http://{server.http}", "digits")
            assert not await rest.is_model_ready(f"http://{server.http}", "nothing")

    asyncio.run(go())


@pytest.mark.parametrize("binary", [True, False])
def test_answers_are_those_of_onnx_runtime(server: Server, binary: bool) -> None:
    async def ask(infer: Callable[..., Awaitable[Any]]) -> None:
        tensor = InferInput("image", [3, 28, 28, 1], "UINT8")
        tensor.set_data_from_numpy(server["images"][:3], binary_data=binary)
        response = await infer(request(tensor, request_id="abc"))
        assert (response.id, response.model_name) == ("abc", "digits")
        assert response.model_version in ("2", None)  # the REST client does not read it
        assert [output.name for output in response.outputs] == ["probabilities", "logits"]
        for output in response.outputs:
            np.testing.assert_allclose(output.as_numpy(), server[output.name][:3], rtol=1e-5, atol=1e-6)

    on_both(server, ask)


def test_typed_contents_of_another_model_and_a_requested_output(server: Server) -> None:
    async def ask(infer: Callable[..., Awaitable[Any]]) -> None:
        data = server["floats_data"]
        tensor = InferInput("data", list(data.shape), "FP32", data=data.ravel().tolist())
        response = await infer(request(tensor, "floats", request_outputs=[RequestedOutput("scores")]))
        [output] = response.outputs
        np.testing.assert_allclose(output.as_numpy(), server["floats_scores"], rtol=1e-5)

    on_both(server, ask)


def test_encoded_images(server: Server, pngs: list[bytes]) -> None:
    async def ask(infer: Callable[..., Awaitable[Any]]) -> None:
        tensor = InferInput("image", [2], "BYTES")
        tensor.set_data_from_numpy(np.array(pngs[:2], np.object_), binary_data=True)
        response = await infer(request(tensor, parameters={"priority": 1, "timeout": 10_000_000}))
        np.testing.assert_allclose(response.outputs[1].as_numpy(), server["logits"][:2], rtol=1e-5, atol=1e-5)

    on_both(server, ask)


def test_hints_of_codecs_change_nothing(server: Server) -> None:
    async def ask(infer: Callable[..., Awaitable[Any]]) -> None:
        hint = {"content_type": "np"}
        tensor = InferInput("image", [2, 28, 28, 1], "UINT8", parameters=dict(hint))
        tensor.set_data_from_numpy(server["images"][:2], binary_data=False)
        outputs = [RequestedOutput("logits", parameters=dict(hint))]
        response = await infer(request(tensor, parameters=dict(hint), request_outputs=outputs))
        np.testing.assert_allclose(response.outputs[0].as_numpy(), server["logits"][:2], rtol=1e-5, atol=1e-6)
        with pytest.raises((grpc.RpcError, httpx.HTTPStatusError)):
            await infer(request(tensor, parameters={"colour": "red"}))

    on_both(server, ask)


def test_bad_requests_are_named(server: Server) -> None:
    async def ask(infer: Callable[..., Awaitable[Any]]) -> None:
        tensor = InferInput("image", [1, 28, 28, 1], "FP32", data=[0.5] * 784)
        for model, code, status, message in (
            ("digits", grpc.StatusCode.INVALID_ARGUMENT, 400, "model 'digits' takes UINT8"),
            ("nothing", grpc.StatusCode.NOT_FOUND, 404, "no model named 'nothing'"),
        ):
            with pytest.raises((grpc.RpcError, httpx.HTTPStatusError)) as caught:
                await infer(request(tensor, model))
            error: Any = caught.value
            if isinstance(error, grpc.RpcError):
                assert (error.code(), message in error.details()) == (code, True)
            else:
                assert (error.response.status_code, message in error.response.json()["error"]) == (status, True)

    on_both(server, ask)
