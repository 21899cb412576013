"""The Python client's streams against real servers: what is answered, and what becomes of the rest when one ends or breaks."""

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from export.data.datasets import Dataset
from service.client import AsyncClient, CallFailed, Classification, Client
from service.errors import UserError
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.server import Server
from tests.conftest import Serve, put


def best(answer: Classification | CallFailed) -> list[str]:
    assert isinstance(answer, Classification), answer
    return [predictions[0].label for predictions in answer.results]


@pytest.mark.parametrize("in_flight", [1, 5, 1000])
def test_a_stream_answers_every_request(client: Client, digits: Dataset, in_flight: int) -> None:
    requests = ([digits.test.encoded(index), digits.test.pixels[index]] for index in range(150))
    answers = dict(client.classify_stream(requests, "digits", top_k=1, in_flight=in_flight))
    assert sorted(answers) == list(range(150))
    expected = best(client.classify(digits.test.pixels[:150], "digits"))
    assert [best(answers[number]) for number in range(150)] == [[label, label] for label in expected]


def test_a_stream_gives_answers_while_its_requests_are_still_to_come(client: Client, digits: Dataset) -> None:
    more = threading.Semaphore(1)

    def requests() -> Iterator[list[np.ndarray]]:
        for index in range(5):
            assert more.acquire(timeout=20)
            yield [digits.test.pixels[index]]

    numbers = []
    for number, answer in client.classify_stream(requests(), "digits"):
        assert len(best(answer)) == 1
        numbers.append(number)
        more.release()
    assert numbers == list(range(5))


def test_a_bad_request_of_a_stream_is_an_answer_too(client: Client, digits: Dataset) -> None:
    requests = [[digits.test.encoded(0)], [b"nonsense"], [digits.test.encoded(0)]]
    answers = dict(client.classify_stream(requests, "digits"))
    refused = answers[1]
    assert isinstance(refused, CallFailed)
    assert (refused.code, refused.field) == ("INVALID_ARGUMENT", "items[0].encoded")
    assert best(answers[0]) == best(answers[2])


def test_a_request_that_cannot_be_made_ends_the_stream_after_those_before_it(client: Client, digits: Dataset) -> None:
    answers: list[tuple[int, Any]] = []
    with pytest.raises(UserError, match=r"nowhere\.png: No such file"):
        answers.extend(client.classify_stream([[digits.test.encoded(0)]] * 3 + [["nowhere.png"]], "digits"))
    assert [number for number, _ in answers] == [0, 1, 2]
    with pytest.raises(UserError, match="invalid value for in_flight: 0"):
        next(client.classify_stream([], "digits", in_flight=0))
    with pytest.raises(UserError, match="invalid value for top_k: -1"):
        next(client.classify_stream([[b""]], "digits", top_k=-1))
    assert list(client.classify_stream([], "digits")) == []


def test_whatever_ends_the_requests_ends_the_stream_after_those_before_it(server: Server, digits: Dataset) -> None:
    def leave() -> Iterator[list[np.ndarray]]:
        yield from [[digits.test.pixels[0]]] * 3
        sys.exit("enough")

    async def cancelled() -> AsyncIterator[list[np.ndarray]]:
        for images in [[digits.test.pixels[0]]] * 3:
            yield images
        raise asyncio.CancelledError

    answers: list[tuple[int, Any]] = []
    with Client(f"127.0.0.1:{server.grpc_port}") as client, pytest.raises(SystemExit, match="enough"):
        answers.extend(client.classify_stream(leave(), "digits"))
    assert [number for number, _ in answers] == [0, 1, 2]

    async def main() -> None:
        async with AsyncClient(f"127.0.0.1:{server.grpc_port}") as client:
            for requests, error in ((leave(), SystemExit), (cancelled(), asyncio.CancelledError)):
                stream = client.classify_stream(requests, "digits")
                assert [(await anext(stream))[0] for _ in range(3)] == [0, 1, 2]
                with pytest.raises(error):
                    await anext(stream)

    asyncio.run(main())


def test_a_request_of_a_stream_that_is_too_large_is_an_answer_too(repository: Path, serve: Serve, digits: Dataset) -> None:
    at = f"127.0.0.1:{serve(repository, max_message_bytes=2**20).grpc_port}"
    requests: list[list[Any]] = [[digits.test.encoded(0)], [bytes(2**20)], [digits.test.encoded(0)], [bytes(2**20)]] * 3

    def check(answers: dict[int, Classification | CallFailed]) -> None:
        assert sorted(answers) == list(range(12))
        for number, answer in answers.items():
            if number % 2:
                assert isinstance(answer, CallFailed)
                assert "the server takes at most 1048576" in answer.message
            else:
                assert len(best(answer)) == 1

    async def main() -> None:
        async with AsyncClient(at) as client:
            check({number: answer async for number, answer in client.classify_stream(requests, "digits")})

    with Client(at) as client:
        check(dict(client.classify_stream(requests, "digits")))
    asyncio.run(main())


def test_a_stream_outlives_connections_while_it_is_idle(repository: Path, serve: Serve, digits: Dataset) -> None:
    server = serve(repository, max_connection_age_seconds=0.2, max_connection_age_grace_seconds=0.1)

    def rarely() -> Iterator[list[np.ndarray]]:
        for _ in range(2):
            yield [digits.test.pixels[0]]
            time.sleep(1.5)  # several connections' age

    async def rarely_too() -> AsyncIterator[list[np.ndarray]]:
        for _ in range(2):
            yield [digits.test.pixels[0]]
            await asyncio.sleep(1.5)

    async def main() -> None:
        async with AsyncClient(f"127.0.0.1:{server.grpc_port}") as client:
            assert [number async for number, _ in client.classify_stream(rarely_too(), "digits")] == [0, 1]

    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        assert [number for number, _ in client.classify_stream(rarely(), "digits")] == [0, 1]
    asyncio.run(main())


class _Stopping:
    """A server that cancels the first calls, as one does that stops, and answers the others with nothing."""

    def __init__(self, cancelled_calls: int) -> None:
        self._left = cancelled_calls
        self._server = grpc.server(ThreadPoolExecutor(4))
        handlers: dict[str, Any] = {
            "Classify": grpc.unary_unary_rpc_method_handler(
                self._classify, pb.ClassifyRequest.FromString, pb.ClassifyResponse.SerializeToString
            ),
            "ClassifyStream": grpc.stream_stream_rpc_method_handler(
                self._classify_stream, pb.ClassifyStreamRequest.FromString, pb.ClassifyStreamResponse.SerializeToString
            ),
        }
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("convoy.v1.Classifier", handlers)])
        self.at = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> "_Stopping":
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()

    def _classify(self, request: pb.ClassifyRequest, context: grpc.ServicerContext) -> pb.ClassifyResponse:
        self._cancel(context)
        return pb.ClassifyResponse(id=request.id)

    def _classify_stream(
        self, requests: Iterator[pb.ClassifyStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ClassifyStreamResponse]:
        self._cancel(context)
        for each in requests:
            yield pb.ClassifyStreamResponse(id=each.request.id, response=pb.ClassifyResponse())

    def _cancel(self, context: grpc.ServicerContext) -> None:
        self._left -= 1
        if self._left >= 0:
            context.abort(grpc.StatusCode.CANCELLED, "stopping")


@pytest.mark.parametrize("cancelled_calls", [2, 100])
def test_what_a_server_cancels_is_sent_again_for_a_while(cancelled_calls: int) -> None:
    lasting = pytest.raises(CallFailed, match="CANCELLED: stopping") if cancelled_calls == 100 else contextlib.nullcontext()

    async def main(at: str) -> None:
        async with AsyncClient(at) as client:
            assert [number async for number, _ in client.classify_stream([[b""]] * 3, "digits")] == [0, 1, 2]

    with _Stopping(cancelled_calls) as server, Client(server.at) as client, lasting:
        assert client.classify([b""], "digits").results == []
    with _Stopping(cancelled_calls) as server, Client(server.at) as client, lasting:
        assert [number for number, _ in client.classify_stream([[b""]] * 3, "digits")] == [0, 1, 2]
    with _Stopping(cancelled_calls) as server, lasting:
        asyncio.run(main(server.at))


def test_a_stream_that_is_left_early_leaves_nothing_behind(client: Client, digits: Dataset) -> None:
    def endless() -> Iterator[list[np.ndarray]]:
        while True:
            yield [digits.test.pixels[0]]

    answers = client.classify_stream(endless(), "digits")
    for _ in range(10):
        next(answers)
    answers.close()
    deadline = time.monotonic() + 10
    while any(thread.name == "classify-stream" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(thread.name == "classify-stream" for thread in threading.enumerate())


def test_a_stream_goes_on_with_another_server_when_its_own_drains(tmp_path: Path, serve: Serve, slow_file: Path) -> None:
    put(slow_file, tmp_path / "slow", "slow", 1)
    (tmp_path / "slow" / "slow" / "serving.toml").write_text("max_batch_size = 1\n")
    servers = [serve(tmp_path / "slow"), serve(tmp_path / "slow")]
    pictures = [np.full((2, 2, 1), 255 * (index % 2), np.uint8) for index in range(24)]
    stopping = []
    answers: dict[int, list[str]] = {}
    with Client([f"127.0.0.1:{server.grpc_port}" for server in servers]) as client:
        for number, answer in client.classify_stream(([picture] for picture in pictures), "slow", in_flight=16):
            answers[number] = best(answer)
            if len(answers) == 3:
                busy = next(s for s in servers if any(m.inflight for v in s._repository.served.values() for m in v))
                stopping.append(threading.Thread(target=busy.stop))
                stopping[0].start()
    stopping[0].join(30)
    assert [answers[number] for number in range(24)] == [[("dark", "bright")[number % 2]] for number in range(24)]


def test_an_asynchronous_stream_goes_on_too(tmp_path: Path, serve: Serve, slow_file: Path) -> None:
    put(slow_file, tmp_path / "slow", "slow", 1)
    (tmp_path / "slow" / "slow" / "serving.toml").write_text("max_batch_size = 1\n")
    servers = [serve(tmp_path / "slow"), serve(tmp_path / "slow")]

    async def main() -> list[int]:
        numbers = []
        stopped: list[asyncio.Future[None]] = []
        async with AsyncClient([f"127.0.0.1:{server.grpc_port}" for server in servers]) as client:
            requests = [[np.zeros((2, 2, 1), np.uint8)]] * 16
            async for number, answer in client.classify_stream(requests, "slow", in_flight=10):
                assert best(answer) == ["dark"]
                numbers.append(number)
                if len(numbers) == 3:
                    busy = next(s for s in servers if any(m.inflight for v in s._repository.served.values() for m in v))
                    stopped.append(asyncio.get_running_loop().run_in_executor(None, busy.stop))
        await asyncio.gather(*stopped)
        return numbers

    assert sorted(asyncio.run(main())) == list(range(16))
