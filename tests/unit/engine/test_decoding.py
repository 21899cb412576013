import io
import logging
import threading

import pytest
from PIL import Image

from service.engine.decoding import DecodingPool, _opens_quickly, decodes_quickly
from service.engine.query import Item
from service.model.preprocessing import open_image


def test_a_tiff_is_never_decoded_on_the_transports_thread() -> None:
    for name, quickly in (("TIFF", False), ("BMP", True)):
        buffer = io.BytesIO()
        Image.new("L", (8, 8)).save(buffer, name)
        assert decodes_quickly([open_image(buffer.getvalue(), 64)]) == quickly


def test_an_avif_is_not_even_opened_on_the_transports_thread() -> None:
    for name, quickly in (("AVIF", False), ("PNG", True)):
        buffer = io.BytesIO()
        Image.new("L", (8, 8)).save(buffer, name)
        assert _opens_quickly([Item(buffer.getvalue(), True)]) == quickly


def test_a_job_that_raises_is_logged_and_gives_its_bytes_back(caplog: pytest.LogCaptureFixture) -> None:
    pool = DecodingPool(1)
    started, fail = threading.Event(), threading.Event()

    def job() -> None:
        started.set()
        assert fail.wait(10)
        raise MemoryError

    pool.submit(job, 100)
    assert started.wait(10)
    assert pool.waiting_bytes == 100
    with caplog.at_level(logging.ERROR):
        fail.set()
        pool.close()
    assert pool.waiting_bytes == 0
    assert [record.message for record in caplog.records] == ["a decoding job failed"]
