"""Denormal numbers are zero for the threads of a server, and for those that ONNX Runtime starts there; other threads keep them."""

import platform
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from service.model.loading import load_model
from service.model.model_files import read_model
from service.model.session import open_session
from service.process.denormals import flush_denormals
from tests.unit.model.graphs import FLOAT, node, write

T = TypeVar("T")

SETS_IT = sys.platform == "linux" and platform.machine() == "x86_64"
LEFT = np.float32(0 if SETS_IT else 1e-39)
"""What is left of 2e-39 * 0.5."""

ITEMS = 100_000
"""So many that each thread of ONNX Runtime multiplies some."""


def on_a_thread(call: Callable[[], T]) -> T:
    """What `call` returns on a thread of its own, which begins with the state of this one."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:  # noqa: BLE001 - it is raised by whoever asked
            result.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return result.result()


def halved() -> np.float32:
    half: np.float32 = np.multiply(np.full(64, 2e-39, np.float32), np.float32(0.5))[0]
    return half


def test_a_thread_and_those_that_it_starts_take_them_for_zero_and_others_do_not() -> None:
    def flushed() -> tuple[np.float32, np.float32, np.float32]:
        before = halved()
        flush_denormals()
        return before, halved(), on_a_thread(halved)

    assert on_a_thread(flushed) == (np.float32(1e-39), LEFT, LEFT)
    assert halved() == np.float32(1e-39)


@pytest.mark.parametrize("threads", [1, 4])
def test_the_threads_of_onnx_runtime_do_as_the_thread_that_opens_the_session(threads: int, tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", [node("Mul", "x half", "y")], {"y": FLOAT}, {"half": np.float32(0.5)})

    def answers() -> NDArray[np.float32]:
        session = open_session(read_model(path), "cpu", threads)
        y: NDArray[np.float32] = session.run(["y"], {"x": np.full((ITEMS, 4), 2e-39, np.float32)})[0]
        return y

    def flushed() -> NDArray[np.float32]:
        flush_denormals()
        return answers()

    assert set(on_a_thread(answers).ravel()) == {np.float32(1e-39)}
    assert set(on_a_thread(flushed).ravel()) == {LEFT}


def test_a_models_answers_are_the_same(model_file: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (64, 28, 28, 1), np.uint8)

    def answers() -> NDArray[np.float32]:
        return load_model(model_file, "cpu", 2).predict(images)[0]

    def flushed() -> NDArray[np.float32]:
        flush_denormals()
        return answers()

    np.testing.assert_array_equal(on_a_thread(flushed), on_a_thread(answers))
