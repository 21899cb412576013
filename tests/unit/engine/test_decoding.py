import io
import logging
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.engine import decoding
from service.engine.decoding import DecodingPool, decode, decode_quickly, decodes_quickly
from service.engine.decoding_processes import DecodingProcesses
from service.engine.query import Item
from service.errors import QueueFull, Unavailable
from service.model.input_spec import InputSpec
from service.model.preprocessing import encode_png
from service.model.signature import TensorSpec
from service.requests.principal import Principal
from tests.lack_of_threads import no_more_threads


def picture(file_format: str, side: int = 8, **options: object) -> Item:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, file_format, **options)
    return Item(buffer.getvalue(), encoded=True)


def test_what_is_small_and_cheap_is_decoded_on_the_transports_thread() -> None:
    for file_format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM"):
        assert decodes_quickly([picture(file_format)])
        assert not decodes_quickly([picture(file_format, 300)])
    assert decodes_quickly([picture("PNG", 200)])
    assert not decodes_quickly([picture("PNG", 200)] * 2)


@pytest.mark.parametrize("file_format", ["TIFF", "AVIF"])
def test_a_tiff_or_avif_is_not_even_opened_on_the_transports_thread(file_format: str) -> None:
    assert not decodes_quickly([picture(file_format)])


def served(**how: Any) -> Any:
    """What decoding asks of a version: how its pictures are made, and how large they may be."""
    contract = SimpleNamespace(input=InputSpec(height=20, width=20, channels=3, **how))
    spec = TensorSpec("image", np.dtype(contract.input.dtype), contract.input.shape)
    return SimpleNamespace(model=SimpleNamespace(contract=contract, input=spec), policy=SimpleNamespace(max_image_pixels=10**6))


def test_a_small_picture_that_becomes_a_large_one_is_not_resized_on_the_transports_thread() -> None:
    items = [picture("PNG", 100)] * 3
    for resize in ("short:500", "stretch:500x500", "cover:500x500", "pad:500x500"):
        enough = served(resize=resize, crop="center")
        assert decode_quickly(enough, items).shape == (3, 20, 20, 3)  # type: ignore[union-attr]
        assert decode_quickly(served(resize=resize.replace("500", "600"), crop="center"), items) is None
    assert decode_quickly(served(resize="short:600", crop="center", filter="tf-bilinear"), items) is not None  # the crop alone


@pytest.mark.parametrize(("resize", "processes"), [("short:500", 0), ("short:5000", 1)])
def test_what_becomes_very_large_is_resized_in_a_process_of_its_own(resize: str, processes: int) -> None:
    started = DecodingProcesses(60)
    try:
        version = served(resize=resize, crop="center", filter="nearest")
        assert decode(version, [picture("PNG", 100)], started, lambda: None).shape == (1, 20, 20, 3)
        assert len(started._idle) == processes
    finally:
        started.close()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_raw_and_encoded_pixels_become_the_type_that_the_model_takes(dtype: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    images = decode_quickly(served(dtype=dtype), [Item(pixels.tobytes(), False), Item(encode_png(pixels), True)])
    assert images is not None
    assert images.dtype == np.dtype(dtype)
    assert np.array_equal(images, np.stack([pixels, pixels]))


def test_every_scan_of_a_jpeg_counts() -> None:
    assert decodes_quickly([picture("JPEG", 64, progressive=True)])
    assert not decodes_quickly([picture("JPEG", 200, progressive=True)])


def test_a_job_that_raises_is_logged_and_gives_its_bytes_back(caplog: pytest.LogCaptureFixture) -> None:
    pool = DecodingPool(1, DecodingProcesses())
    started, fail = threading.Event(), threading.Event()

    def job() -> None:
        started.set()
        assert fail.wait(10)
        raise MemoryError

    pool.submit(job, [Item(bytes(60), True), Item(bytes(40), False)])
    assert started.wait(10)
    assert pool.waiting_bytes == 100
    with caplog.at_level(logging.ERROR):
        fail.set()
        pool.close()
    assert pool.waiting_bytes == 0
    assert [record.message for record in caplog.records] == ["a job of the threads decode failed"]


def test_without_a_thread_a_job_is_refused_and_holds_nothing() -> None:
    pool = DecodingPool(2, DecodingProcesses())
    ran: list[str] = []
    items = [Item(bytes(100), True)]
    greedy, polite = Principal("address", "10.0.0.1"), Principal("address", "10.0.0.2")
    with no_more_threads():
        for principal in (greedy, polite):
            with pytest.raises(Unavailable, match="can start no thread"):
                pool.submit(lambda: ran.append("refused"), items, principal)
    assert (pool.waiting_bytes, pool._held) == (0, {})
    pool.submit(lambda: ran.append("taken"), items, polite)
    pool.close()
    assert ran == ["taken"]
    assert (pool.waiting_bytes, pool._held) == (0, {})
    with pytest.raises(Unavailable, match="the server is stopping"):
        pool.submit(lambda: ran.append("late"), items)
    assert pool.waiting_bytes == 0


def test_clients_take_turns_and_none_fills_the_room_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "UNDECODED_BYTES", 1000)
    greedy, polite = Principal("address", "10.0.0.1"), Principal("address", "10.0.0.2")
    pool = DecodingPool(1, DecodingProcesses())
    begun, go = threading.Event(), threading.Event()
    order: list[str] = []

    def first() -> None:
        begun.set()
        assert go.wait(10)

    pool.submit(first, [Item(bytes(100), True)], greedy)
    assert begun.wait(10)
    for index in range(4):
        pool.submit(lambda index=index: order.append(f"greedy {index}"), [Item(bytes(100), True)], greedy)  # type: ignore[misc]
    with pytest.raises(QueueFull, match="500 of 1000 bytes wait, 500 of them of this client"):
        pool.submit(lambda: order.append("too many"), [Item(bytes(100), True)], greedy)
    for index in range(2):
        pool.submit(lambda index=index: order.append(f"polite {index}"), [Item(b"", True)] * index, polite)  # type: ignore[misc]
    go.set()
    pool.close()
    assert order == ["greedy 0", "polite 0", "greedy 1", "polite 1", "greedy 2", "greedy 3"]
    assert pool.waiting_bytes == 0
