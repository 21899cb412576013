"""Control requests that wait for a model hold up nobody else: not other models, not inference, not the end of the server."""

import http.client
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from export.data.datasets import Dataset
from service.client import Client
from service.control import MAX_CALLS
from service.engine.model_loader import ModelLoader
from service.pb.inference import open_inference_pb2 as pb
from service.server import Server
from tests.conftest import Serve, put
from tests.integration.test_repository import eventually

LOAD = "/inference.GRPCInferenceService/RepositoryModelLoad"
UNLOAD = "/inference.GRPCInferenceService/RepositoryModelUnload"


class Held:
    """Loads of one model that do not end until they are released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.released = threading.Event()
        self.begun = threading.Event()
        load: Callable[[ModelLoader], list[str]] = ModelLoader.load

        def hold(model: ModelLoader) -> list[str]:
            if model._name == name:
                self.begun.set()
                assert self.released.wait(120)
            return load(model)

        monkeypatch.setattr(ModelLoader, "load", hold)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(monkeypatch, "held")


@pytest.fixture
def loaded(repository: Path, model_file: Path, serve: Serve) -> Server:
    for name in ("held", "other"):
        put(model_file, repository, name, 1)
    return serve(repository)


def loading(channel: grpc.Channel) -> Any:
    return channel.unary_unary(LOAD, pb.RepositoryModelLoadRequest.SerializeToString)


def post(port: int, path: str) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, b"{}")
    response = connection.getresponse()
    status, body = response.status, json.loads(response.read() or b"{}")
    connection.close()
    return status, body


def test_64_loads_that_wait_leave_the_threads_of_rest_to_others(loaded: Server, held: Held, digits: Dataset) -> None:
    path = "/v2/repository/models/held/load"
    with ThreadPoolExecutor(64) as pool:
        asked = [pool.submit(post, loaded.http_port, path) for _ in range(64)]
        eventually(lambda: sum(future.done() for future in asked) == 64 - MAX_CALLS)
        refused = [future.result() for future in asked if future.done()]
        assert {status for status, _ in refused} == {429}
        assert refused[0][1] == {"error": f"{MAX_CALLS} control requests are being carried out, and no more are taken meanwhile"}
        assert post(loaded.http_port, "/v2/repository/index")[0] == 200
        with Client(f"127.0.0.1:{loaded.grpc_port}") as client:
            assert client.classify([digits.test.encoded(0)], "digits").model == "digits"
        held.released.set()
        assert {future.result()[0] for future in asked if future.result()[0] != 429} == {200}


def test_one_model_that_loads_for_ever_keeps_no_other_from_its_turn(
    loaded: Server, held: Held, repository: Path, model_file: Path
) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{loaded.grpc_port}") as channel:
        load = loading(channel)
        unload: Any = channel.unary_unary(UNLOAD, pb.RepositoryModelUnloadRequest.SerializeToString)
        waiting = load.future(pb.RepositoryModelLoadRequest(model_name="held"), timeout=120)
        assert held.begun.wait(30)
        unload(pb.RepositoryModelUnloadRequest(model_name="other"), timeout=30)
        assert "other" not in loaded._repository.served
        load(pb.RepositoryModelLoadRequest(model_name="other"), timeout=30)
        assert "other" in loaded._repository.served
        put(model_file, repository, "new", 1)
        eventually(lambda: "new" in loaded._repository.served)
        assert not waiting.done()
        held.released.set()
        waiting.result(60)


def test_who_waits_for_a_model_waits_for_as_long_as_its_deadline_says(loaded: Server, held: Held) -> None:
    """And takes no place from then on."""
    with grpc.insecure_channel(f"127.0.0.1:{loaded.grpc_port}") as channel:
        load = loading(channel)
        for _ in range(2):
            calls = [load.future(pb.RepositoryModelLoadRequest(model_name="held"), timeout=0.3) for _ in range(MAX_CALLS)]
            assert {call.code() for call in calls} == {grpc.StatusCode.DEADLINE_EXCEEDED}
            eventually(lambda: loaded._places._free._value == MAX_CALLS)
        held.released.set()


def test_a_server_whose_model_loads_for_ever_stops(
    loaded: Server, held: Held, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine.repository.STOP_SECONDS", 0.1)
    caplog.set_level("INFO")
    with grpc.insecure_channel(f"127.0.0.1:{loaded.grpc_port}") as channel:
        load = loading(channel)
        waiting = load.future(pb.RepositoryModelLoadRequest(model_name="held"), timeout=120)
        assert held.begun.wait(30)
        loaded.stop()
        assert waiting.code() is not None
    assert "stopped while models were being loaded" in caplog.text
    held.released.set()
    deadline = time.monotonic() + 30
    while any(thread.name == "load-models" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert loaded._repository.served == {}, "what is loaded after the end is not served"
