"""The I/O of `classify_many`: what it takes of the caller's images, and when; and what it does without threads."""

import asyncio
import io
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image, ImageSequence

from service.client import AsyncClient, Classification, Client, Outcome
from service.pb.convoy.v1 import classifier_pb2 as pb

FRAMES = 40
SIDE = 400

Many = Callable[..., list[Outcome]]


class Echo:
    """A server whose label for an image is its first pixel."""

    def __init__(self) -> None:
        self.streams = 0

    def stream(self, messages: Iterator[pb.ClassifyStreamRequest], _: object) -> Iterator[pb.ClassifyStreamResponse]:
        self.streams += 1
        try:
            for place, message in enumerate(messages):
                found = [pb.ItemResult(predictions=[pb.Prediction(label=first_pixel(item))]) for item in message.request.items]
                yield pb.ClassifyStreamResponse(index=place, response=pb.ClassifyResponse(results=found))
        finally:
            self.streams -= 1


def first_pixel(item: pb.Item) -> str:
    return str(Image.open(io.BytesIO(item.encoded)).getpixel((0, 0)) if item.encoded else item.pixels[0])


@pytest.fixture(scope="module")
def echo() -> Iterator[tuple[str, Echo]]:
    """An address, and who answers there."""
    found = Echo()
    server = grpc.server(ThreadPoolExecutor(8))
    handlers: dict[str, Any] = {
        "GetModel": grpc.unary_unary_rpc_method_handler(
            lambda *_: pb.GetModelResponse(), pb.GetModelRequest.FromString, pb.GetModelResponse.SerializeToString
        ),
        "ClassifyStream": grpc.stream_stream_rpc_method_handler(
            found.stream, pb.ClassifyStreamRequest.FromString, pb.ClassifyStreamResponse.SerializeToString
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("convoy.v1.Classifier", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", found
    server.stop(None).wait()


def _sync(address: str, images: Iterable[Any]) -> list[Outcome]:
    with Client(address, connections=2) as client:
        return list(client.classify_many(images, "m"))


def _asyncio(address: str, images: Iterable[Any]) -> list[Outcome]:
    async def main() -> list[Outcome]:
        async with AsyncClient(address, connections=2) as client:
            return [each async for each in client.classify_many(images, "m")]

    return asyncio.run(main())


def label(outcome: Outcome) -> str:
    assert isinstance(outcome.answer, Classification), outcome
    return outcome.answer.results[0][0].label


def frame(number: int) -> Image.Image:
    return Image.new("L", (SIDE, SIDE), number)


def film() -> Iterator[Image.Image]:
    content = io.BytesIO()
    frame(0).save(content, "TIFF", save_all=True, append_images=[frame(number) for number in range(1, FRAMES)])
    return iter(ImageSequence.Iterator(Image.open(content)))


def canvas() -> Iterator[Image.Image]:
    image = frame(0)
    for number in range(FRAMES):
        image.paste(number, (0, 0, SIDE, SIDE))
        yield image


def opened() -> Iterator[Image.Image]:
    for number in range(FRAMES):
        content = io.BytesIO()
        frame(number).save(content, "PNG")
        with Image.open(content) as image:
            yield image


def array() -> Iterator[Any]:
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    for number in range(FRAMES):
        pixels[:] = number
        yield pixels


@pytest.mark.parametrize("many", [_sync, _asyncio])
@pytest.mark.parametrize("source", [film, canvas, opened, array])
def test_an_image_may_be_overwritten_or_closed_once_the_next_is_asked_for(
    echo: tuple[str, Echo], many: Many, source: Callable[[], Iterator[Any]]
) -> None:
    assert [label(each) for each in many(echo[0], source())] == [str(number) for number in range(FRAMES)]


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets only so many threads more be started for `classify_many`."""
    start = threading.Thread.start
    left = 0

    def refuse(thread: threading.Thread) -> None:
        nonlocal left
        if thread.name == "classify-many":
            left -= 1
            if left < 0:
                raise RuntimeError("can't start new thread")
        start(thread)

    def allow(count: int) -> None:
        nonlocal left
        left = count
        monkeypatch.setattr(threading.Thread, "start", refuse)

    return allow


@pytest.mark.parametrize("allowed", range(6))
def test_threads_that_cannot_be_started_are_done_without_or_end_it(
    echo: tuple[str, Echo], threads: Callable[[int], None], tmp_path: Path, allowed: int
) -> None:
    address, server = echo
    path = tmp_path / "picture.png"
    frame(7).save(path)
    taken = 0

    def images() -> Iterator[Any]:
        nonlocal taken
        for image in (frame(3), *[path] * 100):
            taken += 1
            yield image

    threads(allowed)
    found = []
    with Client(address, connections=2) as client:
        outcomes = client.classify_many(images(), "m")
        if allowed > 3:  # two that converse, one that takes, some that read
            found = [label(each) for each in outcomes]
        else:
            with pytest.raises(RuntimeError, match="can't start new thread"):
                found.extend(label(each) for each in outcomes)
        until = time.monotonic() + 30
        while [each for each in threading.enumerate() if each.name == "classify-many"] or server.streams:
            assert time.monotonic() < until
            time.sleep(0.01)
    assert found == (["3"] + ["7"] * 100 if allowed > 3 else ["3"] if allowed == 3 else [])
    assert allowed > 2 or not taken
