"""Model files that compute for ever, crash ONNX Runtime or need too much memory are refused with the reason; nobody notices."""

import re
import signal
import time
from pathlib import Path

import grpc
import pytest

from export.data.datasets import Dataset
from service.client import Client
from service.pb.inference import open_inference_pb2 as pb
from tests.conftest import Serve, ServerProcess, Spawn, put
from tests.hostile_models import HOSTILE, crash, endless_loop
from tests.integration.test_control_places import loading
from tests.integration.test_repository import eventually


@pytest.fixture
def transport_name() -> str:
    """What is loaded is nothing to a transport: once is enough."""
    return "fast"


LIMITS = ("--load-seconds", "4", "--load-memory", str(256 * 2**20))
REASONS = {
    "a loop without an end": "loading it takes longer than 4 s (--load-seconds)",
    "a crash": "loading it crashes ONNX Runtime: Floating point exception (signal 8)",
}


def name_of(kind: str) -> str:
    return kind.replace(" ", "-")


def beside(pid: int) -> list[int]:
    """A process, and all that it has started."""
    found = [pid]
    for process in found:
        for task in Path(f"/proc/{process}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    return found


@pytest.mark.parametrize("workers", ["1", "2"])
def test_they_are_refused_and_nothing_else_notices(workers: str, repository: Path, spawn: Spawn, digits: Dataset) -> None:
    for kind, make in HOSTILE.items():
        make(repository / name_of(kind) / "1" / "model.onnx")
    server = spawn(repository, *LIMITS, "--workers", workers)
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        assert client.classify([digits.test.encoded(0)], "digits").model == "digits"
        told = {status.model: status.reason for status in client.models()}
    assert told.pop("digits") == ""
    assert told.keys() == {name_of(kind) for kind in HOSTILE}
    assert {told[name_of(kind)] for kind in REASONS} == set(REASONS.values())
    assert all(
        reason.startswith(("loading it takes longer", "loading it needs more", "loading it crashes")) for reason in told.values()
    )
    log = server.log.read_text()
    assert len(re.findall(r"version 1 is not served: loading it", log)) == len(HOSTILE) * int(workers)
    ends_at_once(server)
    assert "Traceback" not in log


def ends_at_once(server: ServerProcess) -> None:
    started = beside(server.process.pid)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))


def test_a_request_to_load_one_says_why_not(repository: Path, serve: Serve) -> None:
    server = serve(repository, load_seconds=60.0)
    crash(repository / "crashing" / "1" / "model.onnx")
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel, pytest.raises(grpc.RpcError) as refused:
        loading(channel)(pb.RepositoryModelLoadRequest(model_name="crashing"), timeout=60)
    assert (refused.value.code(), refused.value.details()) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "model 'crashing' could not be loaded: version 1: loading it crashes ONNX Runtime: Floating point exception (signal 8)",
    )


def test_while_one_is_tried_others_are_loaded_and_the_server_can_stop(
    repository: Path, model_file: Path, serve: Serve, digits: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    server = serve(repository, load_seconds=600.0)
    endless_loop(repository / "endless" / "1" / "model.onnx")
    eventually(lambda: bool(server._trials._running))
    put(model_file, repository, "honest", 1)
    eventually(lambda: "honest" in server._repository.served)
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        for name in ("digits", "honest"):
            assert client.classify([digits.test.encoded(0)], name).model == name
    assert server._trials._running
    begun = time.monotonic()
    server.stop()
    assert time.monotonic() - begun < 60
    assert caplog.messages[-1] == "stopped"
