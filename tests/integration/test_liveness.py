"""Liveness asks those who answer: the transport's thread, and the models' batches."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service import server as server_module
from service.client import Client
from service.engine import registry
from service.pb.inference import open_inference_pb2 as oip
from service.server import Server
from tests.conftest import Serve, put
from tests.integration.test_foreign import live
from tests.integration.test_repository import eventually
from tests.integration.test_rest import ask


def test_a_transport_that_goes_round_is_alive(server: Server) -> None:
    before = server._transport.last_round
    eventually(lambda: server._transport.last_round > before)
    assert live(server) == (200, "ok\n")


def test_a_transport_whose_thread_is_held_up_is_told_by_livez(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "SILENT_SECONDS", 1.0)
    held_up, go_on = threading.Event(), threading.Event()

    def hold_up() -> dict[str, bool]:
        held_up.set()
        go_on.wait(60)
        return {"": True}

    monkeypatch.setattr(server._health, "_serving", hold_up)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        call = health.Check.future(health_pb2.HealthCheckRequest(), timeout=60)
        assert held_up.wait(30)
        eventually(lambda: live(server) == (503, "the gRPC thread has not gone round its loop for over 1 s\n"))
        go_on.set()
        assert call.result().status == health_pb2.HealthCheckResponse.SERVING
    eventually(lambda: live(server) == (200, "ok\n"))


def test_the_open_inference_protocol_says_the_same(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers() -> tuple[bool, tuple[int, Any]]:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            method: Any = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            over_grpc = oip.ServerLiveResponse.FromString(method(b"", timeout=20)).live
        return over_grpc, ask(server, "GET", "/v2/health/live")

    assert answers() == (True, (200, {"live": True}))
    monkeypatch.setattr(server._repository, "stuck_reason", lambda: "a batch is lost")
    assert answers() == (False, (503, {"live": False}))


def test_a_model_whose_batch_does_not_come_back_is_told_by_livez_and_grpc(
    tmp_path: Path, slow_file: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(slow_file, tmp_path, "slow", 1)
    (tmp_path / "slow" / "serving.toml").write_text("max_batch_size = 1\n")
    server = serve(tmp_path)
    monkeypatch.setattr(registry, "LOST_SECONDS", 0.05)
    seen: set[object] = set()
    address = f"127.0.0.1:{server.grpc_port}"
    with Client(address) as client, grpc.insecure_channel(address) as channel, ThreadPoolExecutor() as pool:
        health: Any = health_pb2_grpc.HealthStub(channel)
        deadline = time.monotonic() + 60
        while len(seen) < 2 and time.monotonic() < deadline:
            asked = pool.submit(client.classify, [np.zeros((2, 2, 1), np.uint8)] * 8, "slow")
            while not asked.done():
                status, text = live(server)
                if status == 503:
                    seen.add(text)
                if health.Check(health_pb2.HealthCheckRequest(service="liveness"), timeout=20).status != 1:
                    seen.add("NOT_SERVING")
    assert seen == {"model 'slow' does not answer: a batch has been running for over 0.05 s\n", "NOT_SERVING"}
    eventually(lambda: live(server) == (200, "ok\n"))
