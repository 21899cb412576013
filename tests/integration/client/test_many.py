"""`classify_many` against real servers: every image gets exactly one outcome, whatever servers do meanwhile."""

import asyncio
import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.data.datasets import Dataset
from service.client import AsyncClient, CallFailed, Classification, Client, Outcome
from service.client.connection import FOREVER_SECONDS
from service.config import ServerConfig
from service.errors import FileUnreadable, UserError
from service.policy import MAX_TIMEOUT_SECONDS
from service.server import Server
from tests.conftest import Serve, Spawn
from tests.integration.test_rolling_restart import free_port

Many = Callable[..., list[Outcome]]


def _sync(at: Any, images: Iterable[Any], model: str = "digits", connections: int = 1, **options: Any) -> list[Outcome]:
    with Client(at, connections=connections) as client:
        return list(client.classify_many(images, model, **options))


def _asyncio(at: Any, images: Any, model: str = "digits", connections: int = 1, **options: Any) -> list[Outcome]:
    async def main() -> list[Outcome]:
        async with AsyncClient(at, connections=connections) as client:
            return [each async for each in client.classify_many(images, model, **options)]

    return asyncio.run(main())


@pytest.fixture(params=[_sync, _asyncio], ids=["sync", "asyncio"])
def many(request: pytest.FixtureRequest) -> Many:
    """The outcomes of `classify_many` of each client."""
    found: Many = request.param
    return found


def label(outcome: Outcome) -> str:
    assert isinstance(outcome.answer, Classification), outcome
    ((best, *_),) = outcome.answer.results
    return best.label


def check(outcomes: list[Outcome], expected: list[str]) -> None:
    """Each image has its own answer, once."""
    assert sorted(each.index for each in outcomes) == list(range(len(outcomes)))
    assert {each.index: label(each) for each in outcomes} == {
        index: expected[index % len(expected)] for index in range(len(outcomes))
    }


@pytest.fixture(scope="module")
def pictures(digits: Dataset) -> list[np.ndarray]:
    return list(digits.test.pixels[:100])


def expected_labels(at: str, pictures: list[np.ndarray]) -> list[str]:
    with Client(at) as client:
        return [row[0].label for row in client.classify(pictures, "digits").results]


def at(server: Any) -> str:
    return f"127.0.0.1:{server.grpc_port}"


def test_images_of_every_kind_are_answered_in_order_and_those_that_cannot_be_are_outcomes(
    many: Many, repository: Path, serve: Serve, digits: Dataset, tmp_path: Path
) -> None:
    server = serve(repository)
    file = tmp_path / "digit.png"
    file.write_bytes(digits.test.encoded(0))
    pixels = digits.test.pixels[0]
    kinds: list[Any] = [
        file, str(file), file.read_bytes(), pixels, Image.open(file),
        b"no picture", tmp_path / "none.png", np.zeros((3, 3), np.float32), np.zeros((3, 3), np.uint8),
        None, Image.new("L", (0, 0)),
    ]  # fmt: skip
    outcomes = many(at(server), itertools.islice(itertools.cycle(kinds), 1100), top_k=2)
    assert [each.index for each in outcomes] == list(range(1100))
    (expected,) = expected_labels(at(server), [pixels])
    for index, image, answer in outcomes:
        kind = index % len(kinds)
        assert image is kinds[kind]
        if kind < 5:
            assert isinstance(answer, Classification), (index, answer)
            assert [len(row) for row in answer.results] == [2]
            assert (answer.results[0][0].label, answer.model, answer.version) == (expected, "digits", "1")
            assert answer.phases["inference_seconds"] > 0
        elif kind in (5, 8):
            assert isinstance(answer, CallFailed)
            assert (answer.code, answer.field.startswith("items[0]")) == ("INVALID_ARGUMENT", True)
            assert "item 0:" in answer.message
        else:
            assert isinstance(answer, FileUnreadable if kind == 6 else UserError)


def test_nothing_is_lost_to_a_queue_that_is_smaller_than_what_callers_send(
    many: Many, repository: Path, serve: Serve, pictures: list[np.ndarray]
) -> None:
    (repository / "digits" / "serving.toml").write_text("max_queue_items = 4\nmax_batch_size = 1\n")
    server = serve(repository)
    expected = expected_labels(at(server), pictures[:1]) + expected_labels(at(server), pictures[1:2])
    with ThreadPoolExecutor(6) as pool:
        callers = [
            pool.submit(
                many, at(server), itertools.islice(itertools.cycle(pictures[:2]), 150), ordered=number % 2 == 0, connections=2
            )
            for number in range(6)
        ]
        for each in callers:
            outcomes = each.result(timeout=120)
            assert len(outcomes) == 150
            check(outcomes, expected)


def test_a_server_that_is_killed_and_restarted_midway_loses_nothing(
    repository: Path, spawn: Spawn, serve: Serve, pictures: list[np.ndarray]
) -> None:
    server = spawn(repository)
    expected = expected_labels(at(server), pictures)
    killed = threading.Event()

    def source() -> Iterator[np.ndarray]:
        for number in range(2000):
            if number == 1000:
                server.process.kill()
                server.process.wait()
                killed.set()
            yield pictures[number % 100]

    with ThreadPoolExecutor(1) as pool:
        outcomes = pool.submit(_sync, at(server), source())
        assert killed.wait(60)
        serve(repository, grpc_port=server.grpc_port)
        assert [each.index for each in outcomes.result(timeout=60)] == list(range(2000))
    check(outcomes.result(), expected)


def test_a_server_that_drains_is_waited_for_until_another_comes(
    many: Many, repository: Path, serve: Serve, pictures: list[np.ndarray]
) -> None:
    first = serve(repository)
    expected = expected_labels(at(first), pictures)
    half = threading.Event()

    def source() -> Iterator[np.ndarray]:
        for number in range(2000):
            if number == 1000:
                half.set()
            yield pictures[number % 100]

    with ThreadPoolExecutor(1) as pool:
        outcomes = pool.submit(many, at(first), source())
        assert half.wait(60)
        first.stop()
        serve(repository, grpc_port=first.grpc_port)
        assert [each.index for each in outcomes.result(timeout=60)] == list(range(2000))
    check(outcomes.result(), expected)


def test_a_server_that_still_loads_is_waited_for(many: Many, repository: Path, digits: Dataset) -> None:
    def refused() -> float:
        samples = [sample for metric in server.metrics() for sample in metric.samples if "UNAVAILABLE" in sample.labels.values()]
        return sum(each.value for each in samples if each.name == "grpc_server_handled_total")

    server = Server(ServerConfig(repository=repository, grpc_port=0, http_port=0))
    server.listen()
    try:
        with ThreadPoolExecutor(1) as pool:
            outcomes = pool.submit(many, at(server), [digits.test.pixels[0]] * 10)
            deadline = time.monotonic() + 30
            while not refused():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            server.load_models()
            check(outcomes.result(timeout=60), expected_labels(at(server), [digits.test.pixels[0]]))
    finally:
        server.stop()


def test_a_server_that_never_comes_is_given_up(many: Many) -> None:
    def away() -> Any:
        return pytest.raises(CallFailed, match=r"UNAVAILABLE: .*(refused|failed to connect)")

    with away():
        many(f"127.0.0.1:{free_port()}", [b""], wait_seconds=0)
    with away():
        many(f"127.0.0.1:{free_port()}", itertools.repeat(b""), wait_seconds=0.5, connections=2)


def test_a_server_that_takes_connections_and_does_not_answer_is_given_up_in_time(many: Many) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(CallFailed, match="UNAVAILABLE: no server has answered"):
        many(f"127.0.0.1:{silent.getsockname()[1]}", [b""], wait_seconds=0)


def test_the_time_limit_of_a_model_is_not_for_images_that_wait_by_our_choice(
    many: Many, repository: Path, serve: Serve, pictures: list[np.ndarray]
) -> None:
    (repository / "digits" / "serving.toml").write_text("default_timeout_seconds = 1e-6\n")
    server = serve(repository)
    with Client(at(server)) as client, pytest.raises(CallFailed, match="DEADLINE_EXCEEDED"):
        client.classify(pictures[:1], "digits")
    assert all(map(label, many(at(server), pictures)))
    assert FOREVER_SECONDS == MAX_TIMEOUT_SECONDS


@pytest.mark.parametrize("listed", [True, False])
def test_several_servers_share_the_work_and_one_that_is_away_holds_nobody_back(
    many: Many, repository: Path, serve: Serve, pictures: list[np.ndarray], *, listed: bool
) -> None:
    servers = [serve(repository), serve(repository)]
    away = f"127.0.0.1:{free_port()}"
    target: Any = [*map(at, servers), away] if listed else at(servers[0])
    outcomes = many(target, itertools.islice(itertools.cycle(pictures), 1500), connections=1 if listed else 3)
    assert [each.index for each in outcomes] == list(range(1500))
    check(outcomes, expected_labels(at(servers[0]), pictures))
    if listed:
        for server in servers:
            samples = [sample for metric in server.metrics() for sample in metric.samples]
            assert sum(each.value for each in samples if each.name == "convoy_batch_items_sum") > 100


def test_requests_are_split_to_what_the_server_takes(many: Many, repository: Path, serve: Serve, digits: Dataset) -> None:
    (repository / "digits" / "serving.toml").write_text("max_request_items = 3\n")
    server = serve(repository, max_message_bytes=2**20)
    large = digits.test.encoded(0) + bytes(2**19)  # which a PNG may have behind its end
    images = [digits.test.encoded(0), large, bytes(2**20), large, large] * 6
    outcomes = many(at(server), images)
    assert [each.index for each in outcomes] == list(range(30))
    for each in outcomes:
        if each.index % 5 == 2:
            assert isinstance(each.answer, CallFailed)
            assert "the server takes at most 1048576" in each.answer.message
        else:
            assert label(each)


def test_what_concerns_all_images_is_raised(many: Many, repository: Path, serve: Serve) -> None:
    address = at(serve(repository))
    with pytest.raises(CallFailed, match="NOT_FOUND: no model named 'nothing'"):
        many(address, itertools.repeat(b""), "nothing")
    with pytest.raises(CallFailed, match=r"NOT_FOUND: .*has no version '7'"):
        many(address, itertools.repeat(b""), version="7")
    with pytest.raises(CallFailed, match="INVALID_ARGUMENT: priority 99"):
        many(address, itertools.repeat(b""), priority=99)
    for images in ("digit.png", b"", 3, Path("digit.png")):
        with pytest.raises(UserError, match="images are a list or another iterable"):
            many(address, images)
    with pytest.raises(UserError, match="invalid value for top_k: -1"):
        many(address, [b""], top_k=-1)
    with pytest.raises(UserError, match="invalid value for wait_seconds: -1"):
        many(address, [b""], wait_seconds=-1)
    assert many(address, []) == []


def test_a_source_that_raises_is_answered_up_to_there(repository: Path, serve: Serve, digits: Dataset) -> None:
    def source() -> Iterator[np.ndarray]:
        yield from [digits.test.pixels[0]] * 100
        raise KeyError("source")

    async def asynchronous() -> AsyncIterator[np.ndarray]:
        for each in source():
            yield each

    address = at(serve(repository))
    found: list[int] = []
    with Client(address) as client, pytest.raises(KeyError, match="source"):
        found.extend(each.index for each in client.classify_many(source(), "digits"))
    assert found == list(range(100))

    async def main() -> None:
        async with AsyncClient(address) as client:
            for images in (source(), asynchronous()):
                outcomes = client.classify_many(images, "digits")
                assert [(await anext(outcomes)).index for _ in range(100)] == list(range(100))
                with pytest.raises(KeyError, match="source"):
                    await anext(outcomes)

    asyncio.run(main())


def test_an_endless_source_is_taken_as_it_is_answered_and_can_be_left(repository: Path, serve: Serve, digits: Dataset) -> None:
    taken = Counter[str]()

    def source(name: str) -> Iterator[np.ndarray]:
        while True:
            taken[name] += 1
            yield digits.test.pixels[0]

    def threads() -> list[str]:
        return [each.name for each in threading.enumerate() if each.name == "classify-many"]

    address = at(serve(repository))
    with Client(address) as client:
        outcomes = client.classify_many(source("sync"), "digits")
        assert [next(outcomes).index for _ in range(3000)] == list(range(3000))
        outcomes.close()
        deadline = time.monotonic() + 20
        while threads():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert taken["sync"] < 3000 + 5000

    async def main() -> None:
        async with AsyncClient(address) as client:
            outcomes = client.classify_many(source("asyncio"), "digits", ordered=False)
            for _ in range(3000):
                await anext(outcomes)
            await outcomes.aclose()
            while len(asyncio.all_tasks()) > 1:
                assert time.monotonic() < deadline + 20
                await asyncio.sleep(0.01)

    asyncio.run(main())
    assert taken["asyncio"] < 3000 + 5000


def test_a_slow_source_gets_its_answers_as_it_goes(repository: Path, serve: Serve, digits: Dataset) -> None:
    more = threading.Semaphore(1)

    def source() -> Iterator[np.ndarray]:
        for _ in range(5):
            assert more.acquire(timeout=20)
            yield digits.test.pixels[0]

    with Client(at(serve(repository))) as client:
        for each in client.classify_many(source(), "digits"):
            assert label(each)
            more.release()


def test_a_client_that_is_closed_ends_it(repository: Path, serve: Serve, digits: Dataset) -> None:
    address = at(serve(repository))
    client = Client(address)
    outcomes = client.classify_many(itertools.repeat(digits.test.pixels[0]), "digits")
    next(outcomes)
    client.close()
    with pytest.raises(CallFailed, match="CANCELLED: the client is closed"):
        list(outcomes)

    async def main() -> None:
        client = AsyncClient(address)
        outcomes = client.classify_many(itertools.repeat(digits.test.pixels[0]), "digits")
        await anext(outcomes)
        await client.close()
        with pytest.raises(CallFailed, match="CANCELLED: the client is closed"):
            async for _ in outcomes:
                pass

    asyncio.run(main())
