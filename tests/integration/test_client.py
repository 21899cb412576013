"""The Python client against real servers: what goes in, what comes out, and what it does when servers come and go."""

import asyncio
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.data import Dataset
from service.client import MAX_RETRIED_BYTES, AsyncClient, CallFailed, Classification, Client
from service.errors import UserError
from service.server import Server
from tests.conftest import Serve, put
from tests.integration.test_edges import samples
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
    assert client.classify([picture], "digits").results == client.classify([digits.test.encoded(0)], "digits").results
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"):
        assert len(client.classify([picture.convert("L").convert(mode)], "digits").results) == 1


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
    with pytest.raises(UserError, match="value that it cannot have"):
        next(client.classify_stream([[b""]], "digits", top_k=-1))
    assert list(client.classify_stream([], "digits")) == []


def test_a_stream_that_is_left_early_leaves_nothing_behind(client: Client, digits: Dataset) -> None:
    def endless() -> Iterator[list[np.ndarray]]:
        while True:
            yield [digits.test.pixels[0]]

    answers = client.classify_stream(endless(), "digits")
    for _ in range(10):
        next(answers)
    answers.close()  # type: ignore[attr-defined]
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
    for given in (addresses, ",".join(addresses)):
        with Client(given) as client:
            assert client.server == "ipv4:" + ",".join(addresses)
            for _ in range(20):
                client.classify([digits.test.encoded(0)], "digits")
    classified = ("grpc_server_handled_total", "OK", "Classify", "convoy.v1.Classifier", "unary")
    answered = [samples(server)[classified] for server in servers]
    assert sum(answered) == 40
    assert min(answered) >= 8
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
        with pytest.raises(CallFailed, match=limit):
            list(client.classify_stream([[bytes(size)]], "digits"))
    proxy.close()
    assert size < proxy.asked_bytes < 2.5 * size


def test_no_server_is_a_clear_error_soon() -> None:
    with Client("127.0.0.1:1", timeout_seconds=20) as client:
        for call in (lambda: client.models(), lambda: list(client.classify_stream([[b""]], "digits"))):
            with pytest.raises(CallFailed) as caught:
                call()
            assert caught.value.code == "UNAVAILABLE"


@pytest.mark.parametrize(
    "server", ["", "127.0.0.1", "a b:1", "http://a:1", [], ["a:1", "b:1"], "a:1,b:1", ["127.0.0.1:1", "127.0.0.1"]]
)
def test_an_address_that_is_none_is_refused(server: Any) -> None:
    with pytest.raises(UserError, match="give it as HOST:PORT"):
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
