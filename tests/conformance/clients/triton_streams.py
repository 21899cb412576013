"""tritonclient's streams over gRPC, and calls that are cancelled."""

import asyncio
import queue
import time
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from conftest import Server
from tritonclient.utils import InferenceServerException


def image(images: np.ndarray) -> list[Any]:
    tensor = triton.InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    return [tensor]


def stream(client: Any) -> "queue.Queue[tuple[Any, Any]]":
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    return answers


def test_a_stream_answers_every_request_by_its_id(server: Server) -> None:
    with triton.InferenceServerClient(server.grpc) as client:
        answers = stream(client)
        for index in range(400):
            client.async_stream_infer("digits", image(server["images"][index % 40][np.newaxis]), request_id=str(index))
        found = {}
        for _ in range(400):
            result, error = answers.get(timeout=30)
            assert error is None
            found[int(result.get_response().id)] = result.as_numpy("logits")[0]
        client.stop_stream()
    assert sorted(found) == [*range(400)]
    for index, logits in found.items():
        np.testing.assert_allclose(logits, server["logits"][index % 40], rtol=1e-4, atol=1e-5)


def test_a_bad_request_is_answered_in_the_stream_which_goes_on(server: Server) -> None:
    with triton.InferenceServerClient(server.grpc) as client:
        answers = stream(client)
        good, bad = image(server["images"][:1]), image(server["images"][:1, :5])
        for name, given, version in (("digits", good, ""), ("digits", bad, ""), ("nothing", good, ""), ("digits", good, "1")):
            client.async_stream_infer(name, given, model_version=version, request_id=f"{name}{version}")
        results = [answers.get(timeout=30) for _ in range(4)]
        client.stop_stream()
    errors = sorted(error.message() for _, error in results if error is not None)
    assert len(errors) == 2
    assert "UINT8 [1, 5, 28, 1]; model 'digits' takes" in errors[0]
    assert "no model named 'nothing'" in errors[1]
    assert {result.get_response().id for result, error in results if error is None} == {"digits", "digits1"}


def test_the_final_response_is_marked_if_asked(server: Server) -> None:
    with triton.InferenceServerClient(server.grpc) as client:
        answers = stream(client)
        client.async_stream_infer("digits", image(server["images"][:1]), enable_empty_final_response=True)
        result, error = answers.get(timeout=30)
        client.stop_stream()
    assert error is None
    assert result.get_response().parameters["triton_final_response"].bool_param


def test_a_stream_that_is_cancelled_lets_go_of_its_requests(server: Server) -> None:
    slow = image(np.zeros((4, 2, 2, 1), np.uint8))
    with triton.InferenceServerClient(server.grpc) as client:

        def cancelled() -> int:
            [found] = client.get_inference_statistics("slow").model_stats
            return found.inference_stats.fail.count

        before = cancelled()
        answers = stream(client)
        for _ in range(3):
            client.async_stream_infer("slow", slow)
        answers.get(timeout=60)  # one batch is over, and two requests are left
        client.stop_stream(cancel_requests=True)
        deadline = time.monotonic() + 60
        while cancelled() == before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert cancelled() > before
        # What was cancelled waits no longer: the queue has room for 8 at once.
        assert client.infer("slow", image(np.zeros((8, 2, 2, 1), np.uint8))).as_numpy("logits").shape == (8, 2)


def test_a_call_that_is_cancelled_or_runs_out_of_time(server: Server) -> None:
    slow = image(np.zeros((4, 2, 2, 1), np.uint8))
    with triton.InferenceServerClient(server.grpc) as client:
        answers: queue.Queue[Any] = queue.Queue()
        call = client.async_infer("slow", slow, lambda result, error: answers.put(error))
        call.cancel()
        assert "ancelled" in answers.get(timeout=30).message()
        with pytest.raises(InferenceServerException) as caught:
            client.infer("slow", slow, client_timeout=0.01)
        assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        assert client.infer("slow", slow).as_numpy("logits").shape == (4, 2)


def test_the_asyncio_stream(server: Server) -> None:
    async def go() -> dict[str, Any]:
        async with triton_aio.InferenceServerClient(server.grpc) as client:

            async def requests() -> Any:
                for index in range(100):
                    given = image(server["images"][index % 40][np.newaxis] if index != 50 else server["images"][:1, :3])
                    yield {"model_name": "digits", "inputs": given, "request_id": str(index)}

            found = {}
            async for result, error in client.stream_infer(requests()):
                found["bad" if error else result.get_response().id] = error or result.as_numpy("logits")[0]
            return found

    found = asyncio.run(go())
    assert "takes UINT8" in found.pop("bad").message()
    assert len(found) == 99
    for request_id, logits in found.items():
        np.testing.assert_allclose(logits, server["logits"][int(request_id) % 40], rtol=1e-4, atol=1e-5)
