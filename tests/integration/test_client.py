"""The Python client against real servers: what goes in, what comes out, and what it does when servers come and go."""

import asyncio
import contextlib
import io
import json
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme
from PIL import Image

from export.data import Dataset
from service import client_messages
from service.client import AsyncClient, CallFailed, Classification, Client
from service.client_connection import MAX_RETRIED_BYTES
from service.errors import UserError
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.server import Server
from tests.conftest import Serve, Spawn, put
from tests.integration.test_edges import samples
from tests.integration.test_rolling_restart import free_port, wait_until_not_serving
from tests.integration.test_transport import Proxy


@pytest.fixture
def server(repository: Path, serve: Serve) -> Server:
    return serve(repository)


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(f"127.0.0.1:{server.grpc_port}") as opened:
        yield opened


def best(answer: Classification | CallFailed) -> list[str]:
    assert isinstance(answer, Classification), answer
    return [predictions[0].label for predictions in answer.results]


def test_pil_images_of_every_mode_are_answered_as_their_files_are(client: Client, digits: Dataset, tmp_path: Path) -> None:
    picture = Image.open(io.BytesIO(digits.test.encoded(0)))
    expected = client.classify([digits.test.encoded(0)], "digits").results
    assert client.classify([picture], "digits").results == expected
    gray = picture.convert("L")
    for mode in ("1", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
        assert len(client.classify([gray.convert(mode)], "digits").results) == 1
    white = client.classify([Image.new("L", (28, 28), 255)], "digits").results
    for mode in ("LA", "La", "PA", "RGBA", "RGBa"):  # new ones are clear, on white
        assert client.classify([Image.new(mode, (28, 28))], "digits").results == white
    deep = np.asarray(gray).astype(np.uint16) * 257
    big_endian = Image.frombytes("I;16B", gray.size, deep.astype(">u2").tobytes(), "raw", "I;16B")
    for sixteen_bit in (Image.fromarray(deep), big_endian):
        assert client.classify([sixteen_bit], "digits").results == expected


def test_a_pil_image_that_cannot_be_sent_is_refused(client: Client, digits: Dataset) -> None:
    for mode in ("I", "F"):
        with pytest.raises(UserError, match=f"PIL images of mode {mode} are not accepted"):
            client.classify([Image.new(mode, (28, 28))], "digits")
    closed = Image.open(io.BytesIO(digits.test.encoded(0)))
    closed.close()
    cut = Image.open(io.BytesIO(digits.test.encoded(0)[:-40]))
    for broken in (closed, cut, Image.new("L", (0, 0))):
        with pytest.raises(UserError, match="a PIL image cannot be read"):
            client.classify([broken], "digits")


def test_a_pil_image_that_is_to_be_turned_is_turned(client: Client, digits: Dataset, tmp_path: Path) -> None:
    picture = Image.open(io.BytesIO(digits.test.encoded(0))).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "turned.jpg"
    picture.save(file, exif=exif, quality=100)
    turned, straight = client.classify([Image.open(file), picture], "digits").results
    assert turned == client.classify([file], "digits").results[0]
    assert turned != straight


def test_an_array_of_several_images_is_several_images(client: Client, digits: Dataset) -> None:
    pixels = digits.test.pixels[:10]
    assert client.classify(pixels, "digits").results == client.classify(list(pixels), "digits").results
    gray = pixels[0, :, :, 0]
    assert client.classify([gray.T.copy().T], "digits").results[0] == client.classify(pixels, "digits").results[0]
    with pytest.raises(UserError, match=r"an array of images is uint8\[N,H,W,C\], not of shape \(28, 28, 1\)"):
        client.classify(pixels[0], "digits")
    with pytest.raises(UserError, match=r"pixels of one image are uint8\[H,W,C\], not of shape \(784,\)"):
        client.classify([pixels[0].reshape(-1)], "digits")


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
    with pytest.raises(UserError, match="in_flight 0"):
        next(client.classify_stream([], "digits", in_flight=0))
    with pytest.raises(UserError, match="top_k -1: a value that it cannot have"):
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


def test_a_request_too_large_for_any_message_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_messages, "MAX_MESSAGE_BYTES", 1000)
    with Client("127.0.0.1:1") as client, pytest.raises(UserError, match="more bytes than a request holds, which is at most 1000"):
        client.classify([bytes(1000)], "digits")


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


def test_calls_of_a_client_that_is_closed_fail() -> None:
    def closed() -> Any:
        return pytest.raises(CallFailed, match="CANCELLED")

    with socket.create_server(("127.0.0.1", 0)) as silent:
        at = f"127.0.0.1:{silent.getsockname()[1]}"

        async def main() -> None:
            client = AsyncClient(at)
            calls = [asyncio.create_task(client.models()), asyncio.create_task(anext(client.classify_stream([[b""]], "digits")))]
            await asyncio.sleep(0.2)
            await client.close()
            for call in calls:
                with closed():
                    await call
            with closed():
                await client.classify([b""], "digits")
            with closed():
                await anext(client.classify_stream([[b""]], "digits"))
            async with AsyncClient(at) as client:
                call = asyncio.create_task(client.models())
                await asyncio.sleep(0.1)
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call

        asyncio.run(main())
        client = Client(at)
        closing = threading.Timer(0.2, client.close)
        closing.start()
        with closed():
            list(client.classify_stream([[b""]], "digits"))
        closing.join()
        with closed():
            client.models()
        with closed():
            list(client.classify_stream([[b""]], "digits"))


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


def test_the_asynchronous_client_does_the_same(server: Server, digits: Dataset, tmp_path: Path) -> None:
    file = tmp_path / "digit.png"
    file.write_bytes(digits.test.encoded(3))
    at = f"127.0.0.1:{server.grpc_port}"
    with Client(at) as client:
        expected = client.classify([file, digits.test.pixels[3]], "digits").results
        labels = best(client.classify(digits.test.pixels[:100], "digits"))

    async def several() -> AsyncIterator[list[Any]]:
        for index in range(100):
            yield [digits.test.pixels[index]] if index != 7 else [b"nonsense"]

    async def main() -> None:
        async with AsyncClient(at) as client:
            answer = await client.classify([file, digits.test.pixels[3]], "digits")
            assert answer.results == expected
            together = await asyncio.gather(*(client.classify([digits.test.pixels[index]], "digits") for index in range(50)))
            assert [best(each)[0] for each in together] == labels[:50]
            answers = {number: answer async for number, answer in client.classify_stream(several(), "digits", in_flight=8)}
            assert sorted(answers) == list(range(100))
            refused = answers.pop(7)
            assert isinstance(refused, CallFailed)
            assert refused.code == "INVALID_ARGUMENT"
            assert all(best(answer) == [labels[number]] for number, answer in answers.items())
            unmade = client.classify_stream([[file], ["nowhere.png"]], "digits")
            assert (await anext(unmade))[0] == 0
            with pytest.raises(UserError, match="No such file"):
                await anext(unmade)
            with pytest.raises(CallFailed) as caught:
                await client.classify([b"nonsense"], "digits")
            assert (caught.value.code, caught.value.field) == ("INVALID_ARGUMENT", "items[0].encoded")
            assert (await client.model("digits")).labels == [str(digit) for digit in range(10)]
            assert [(each.model, each.state) for each in await client.models()] == [("digits", "READY")]

    asyncio.run(main())


def test_a_call_that_failed_goes_through_a_pool_of_processes(client: Client) -> None:
    with pytest.raises(CallFailed) as caught:
        client.classify([b"nonsense"], "digits")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), vars(again)) == (CallFailed, str(caught.value), vars(caught.value))
    assert again.field == "items[0].encoded"


def test_arguments_that_cannot_be_sent_are_named(server: Server) -> None:
    at = f"127.0.0.1:{server.grpc_port}"
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        ("digit.png", {}, "images must be a list"),
        (Path("digit.png"), {}, "images must be a list"),
        (None, {}, "images must be a list"),
        ([1], {}, "an image is bytes"),
        (["a\0b"], {}, "null (byte|character)"),
        ([b""], {"version": 1}, "version 1: a value"),
        ([b""], {"timeout_seconds": "1"}, "timeout_seconds '1': a value"),
    ]
    several: Any = "4"
    with Client(at) as client:
        for images, fields, said in wrong:
            with pytest.raises(UserError, match=said):
                client.classify(images, "digits", **fields)
        number: Any = 2
        with pytest.raises(UserError, match="version 2: a value"):
            client.model("digits", number)
        with pytest.raises(UserError, match="in_flight '4'"):
            next(client.classify_stream([], "digits", in_flight=several))

    async def main() -> None:
        async with AsyncClient(at) as client:
            for images, fields, said in wrong:
                with pytest.raises(UserError, match=said):
                    await client.classify(images, "digits", **fields)

    asyncio.run(main())


def test_models_say_what_they_are(client: Client, repository: Path, model_file: Path) -> None:
    found = client.model("digits")
    assert (found.model, found.version, found.versions, found.aliases) == ("digits", "1", ["1"], {})
    assert (found.input.name, found.input.dtype, found.input.shape) == ("image", "uint8", (28, 28, 1))
    assert [(output.name, output.dtype, output.shape) for output in found.outputs] == [
        ("probabilities", "float32", (10,)), ("logits", "float32", (10,)),
    ]  # fmt: skip
    assert found.labels == [str(digit) for digit in range(10)]
    assert (found.provider, found.precision, len(found.digest)) == ("cpu", "fp32", 64)
    assert found.contract is not None
    assert found.contract["data"] == "digits"
    assert found.contract["head"] == "softmax"
    assert 0.5 < found.contract["accuracy"] <= 1
    assert len(found.contract["accuracy_interval"]) == 2
    assert "torch" in found.contract["software_versions"]
    assert found.preferred_batch_items[0] == 1
    assert found.preferred_batch_items == sorted(set(found.preferred_batch_items))
    assert found.limits["max_request_items"] == 512
    with pytest.raises(CallFailed, match="NOT_FOUND: no model named 'cats'; served are: digits"):
        client.model("cats")
    with pytest.raises(CallFailed, match=r"NOT_FOUND.*version '7'"):
        client.model("digits", "7")


def test_versions_aliases_and_what_could_not_be_loaded_are_listed(repository: Path, serve: Serve, model_file: Path) -> None:
    put(model_file, repository, "digits", 2)
    (repository / "digits" / "serving.toml").write_text('versions = "all"\n[aliases]\nstable = 1\n')
    (repository / "broken" / "3").mkdir(parents=True)
    (repository / "broken" / "3" / "model.onnx").write_text("nonsense")
    server = serve(repository)
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        broken, *rest = client.models()
        assert (broken.model, broken.version, broken.state) == ("broken", "3", "UNAVAILABLE")
        assert broken.reason
        assert [(each.model, each.version, each.state, each.reason) for each in rest] == [
            ("digits", "1", "READY", ""), ("digits", "2", "READY", ""),
        ]  # fmt: skip
        found = client.model("digits", "stable")
        assert (found.version, found.versions, found.aliases) == ("1", ["2", "1"], {"stable": "1"})


def test_several_servers_take_their_turn(repository: Path, serve: Serve, digits: Dataset) -> None:
    servers = [serve(repository), serve(repository)]
    addresses = [f"127.0.0.1:{server.grpc_port}" for server in servers]
    classified = ("grpc_server_handled_total", "OK", "Classify", "convoy.v1.Classifier", "unary")

    def answered() -> list[float]:
        return [samples(server)[classified] for server in servers]

    for given in (addresses, ",".join(addresses)):
        with Client(given) as client:
            assert client.server == "ipv4:" + ",".join(addresses)
            before = answered()
            while any(now == was for now, was in zip(answered(), before, strict=True)):  # one has said first that it serves
                client.classify([digits.test.encoded(0)], "digits")
            before = answered()
            for _ in range(20):
                client.classify([digits.test.encoded(0)], "digits")
            assert min(now - was for now, was in zip(answered(), before, strict=True)) >= 8
    servers[0].stop()
    with Client(addresses) as client:
        for _ in range(10):
            assert len(client.classify([digits.test.encoded(0)], "digits").results) == 1


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


def test_a_queue_that_is_full_is_tried_again_when_the_server_says(tmp_path: Path, serve: Serve, slow_file: Path) -> None:
    put(slow_file, tmp_path / "slow", "slow", 1)
    (tmp_path / "slow" / "slow" / "serving.toml").write_text("max_batch_size = 4\nmax_queue_items = 4\nmax_request_items = 4\n")
    server = serve(tmp_path / "slow")
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        codes: list[str] = []

        def ask() -> None:
            try:
                codes.append(best(client.classify([np.zeros((2, 2, 1), np.uint8)] * 4, "slow"))[0])
            except CallFailed as error:
                codes.append(error.code)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    handled = samples(server)
    refused = handled.get(("grpc_server_handled_total", "RESOURCE_EXHAUSTED", "Classify", "convoy.v1.Classifier", "unary"), 0)
    assert refused > codes.count("RESOURCE_EXHAUSTED"), "some were refused, and answered when they came again"
    assert codes.count("dark") >= 2


def test_a_request_that_is_too_large_is_refused_clearly_and_sent_once(repository: Path, serve: Serve) -> None:
    server = serve(repository, max_message_bytes=MAX_RETRIED_BYTES)
    proxy = Proxy(server.grpc_port)
    size = MAX_RETRIED_BYTES + 1000
    with Client(f"127.0.0.1:{proxy.port}") as client:
        limit = f"the server takes at most {MAX_RETRIED_BYTES} "
        with pytest.raises(CallFailed, match=rf"RESOURCE_EXHAUSTED: the request has 1049\d+ bytes, and {limit}"):
            client.classify([bytes(size)], "digits")
        ((_, refused),) = client.classify_stream([[bytes(size)]], "digits")
        assert limit in str(refused)
    proxy.close()
    assert size < proxy.asked_bytes < 2.5 * size


def test_no_server_is_a_clear_error_soon() -> None:
    with Client("127.0.0.1:1", timeout_seconds=20) as client:
        for call in (lambda: client.models(), lambda: list(client.classify_stream([[b""]], "digits"))):
            with pytest.raises(CallFailed) as caught:
                call()
            assert caught.value.code == "UNAVAILABLE"


def test_a_call_waits_for_a_server_that_is_just_coming_up(server: Server, digits: Dataset) -> None:
    port = free_port()
    proxies: list[Proxy] = []
    coming = threading.Timer(0.05, lambda: proxies.append(Proxy(server.grpc_port, port)))
    with Client(f"127.0.0.1:{port}") as client:
        coming.start()
        assert len(client.classify([digits.test.encoded(0)], "digits").results) == 1
    proxies[0].close()


def test_a_server_that_leaves_is_sent_nothing_while_another_serves(repository: Path, spawn: Spawn, digits: Dataset) -> None:
    leaving, staying = spawn(repository, "--lame-duck-seconds", "60"), spawn(repository)
    leaving.process.send_signal(signal.SIGTERM)
    wait_until_not_serving(leaving)
    with Client([f"127.0.0.1:{leaving.grpc_port}", f"127.0.0.1:{staying.grpc_port}"]) as client:
        for _ in range(20):
            assert len(client.classify([digits.test.encoded(0)], "digits").results) == 1
    with urllib.request.urlopen(f"http://127.0.0.1:{leaving.http_port}/metrics", timeout=10) as answer:
        found = answer.read().decode()
    labels = 'grpc_code="OK",grpc_method="Classify",grpc_service="convoy.v1.Classifier",grpc_type="unary"'
    assert f"grpc_server_handled_total{{{labels}}} 0.0" in found
    leaving.process.send_signal(signal.SIGTERM)


def test_servers_without_a_model_say_so_and_are_used_once_they_have_one(
    tmp_path: Path, serve: Serve, model_file: Path, digits: Dataset
) -> None:
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    with Client([f"127.0.0.1:{serve(folder).grpc_port}" for folder in folders]) as client:
        with pytest.raises(CallFailed, match=r"UNAVAILABLE: no server serves: .* loading, draining, or have no model"):
            client.models()
        put(model_file, folders[0], "digits", 1)
        while True:
            with contextlib.suppress(CallFailed):
                assert len(client.classify([digits.test.encoded(0)], "digits").results) == 1
                break


def test_a_proxy_in_the_environment_is_not_for_this_machine(
    server: Server, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    for host in ("127.0.0.1", "LOCALHOST", "dns:///localhost", "dns:127.0.0.1", "ipv4:127.0.0.1"):
        with Client(f"{host}:{server.grpc_port}") as client:
            assert len(client.classify([digits.test.encoded(0)], "digits").results) == 1


def test_the_time_that_a_server_may_take_ends_a_call_that_it_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, Client(f"127.0.0.1:{silent.getsockname()[1]}") as client:
        with pytest.raises(CallFailed) as caught:
            client.classify([b""], "digits", timeout_seconds=0.2)
        assert caught.value.code == "DEADLINE_EXCEEDED"


def test_a_timeout_is_a_positive_number_or_none(server: Server) -> None:
    for none in (None, float("inf"), 1e300):
        with Client(f"127.0.0.1:{server.grpc_port}", timeout_seconds=none) as client:
            assert len(client.models()) == 1
    wrong: Any
    for wrong in (0, -1, float("nan"), "5"):
        with pytest.raises(UserError, match=r"timeout_seconds .*: give a positive number"):
            Client(timeout_seconds=wrong)


def test_files_that_are_not_for_tls_are_refused(tmp_path: Path) -> None:
    ca, empty, garbage = tmp_path / "ca.pem", tmp_path / "empty.pem", tmp_path / "garbage.pem"
    authority = trustme.CA()
    authority.cert_pem.write_to_path(ca)
    empty.touch()
    garbage.write_bytes(b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    for name in ("one", "other"):
        certificate = authority.issue_cert(name)
        certificate.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
        certificate.private_key_pem.write_to_path(tmp_path / f"{name}.key")
    for file in (empty, garbage, tmp_path / "one.key"):
        with pytest.raises(UserError, match=rf"--tls-ca '{file}' holds no certificate"):
            Client(tls_ca=file)
    for cert, key in (("one.pem", "other.key"), ("one.key", "one.pem"), ("empty.pem", "one.key")):
        with pytest.raises(UserError, match="must be PEM files that belong together"):
            Client(tls_ca=ca, tls_cert=tmp_path / cert, tls_key=tmp_path / key)
    Client(tls_ca=ca, tls_cert=tmp_path / "one.pem", tls_key=tmp_path / "one.key").close()


@pytest.mark.parametrize(
    "server",
    [
        None,
        1,
        "dns:///",
        "ipv4:127.0.0.1",
        "",
        "127.0.0.1",
        "a b:1",
        "http://a:1",
        [],
        ["a:1", "b:1"],
        "a:1,b:1",
        ["127.0.0.1:1", "127.0.0.1"],
    ],
)
def test_an_address_that_is_none_is_refused(server: Any) -> None:
    with pytest.raises(UserError, match="give it as HOST:PORT"):
        Client(server)


@pytest.mark.parametrize("server", ["localhost:99999", "127.0.0.1:0", "dns:///a:65536", ["127.0.0.1:1", "127.0.0.1:70000"]])
def test_a_port_that_is_none_is_refused(server: Any) -> None:
    with pytest.raises(UserError, match=r"port [0-9]+ is not between 1 and 65535"):
        Client(server)


def test_the_client_needs_nothing_of_the_server(server: Server, digits: Dataset, tmp_path: Path) -> None:
    code = (
        "import sys, json\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        assert name.split('.')[0] not in {'torch', 'onnx', 'onnxruntime', 'numpy', 'PIL', 'pydantic', 'export'}, name\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from service.client import Client\n"
        "with Client(sys.argv[1]) as client:\n"
        "    print(json.dumps([client.classify([sys.argv[2]], 'digits').version, client.model('digits').labels[0]]))\n"
    )
    file = tmp_path / "digit.png"
    file.write_bytes(digits.test.encoded(0))
    arguments = [sys.executable, "-c", code, f"127.0.0.1:{server.grpc_port}", str(file)]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == ["1", "0"]
