"""Restarts without failed requests: the lame-duck time, and a rolling restart of two servers under load."""

import json
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from export.data.datasets import Dataset
from service.client import CallFailed, Client
from service.pb.convoy.v1 import classifier_pb2 as pb
from tests.conftest import ServerProcess, Spawn
from tests.integration.test_classify import classify_on

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

# Clients that watch the servers' health and take turns between those that serve. They do not retry: what fails is seen.
CHANNEL = [
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}})),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def wait_until_not_serving(server: ServerProcess) -> None:
    """Watches health on a new connection."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for response in health.Watch(health_pb2.HealthCheckRequest(), timeout=20):
            if response.status == NOT_SERVING:
                return
    raise AssertionError("the watch ended before it said so")


def pixels(digits: Dataset) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=digits.test.pixels[0].tobytes())])


def test_a_lame_duck_reports_not_serving_but_serves_until_a_second_signal(repository: Path, spawn: Spawn, digits: Dataset) -> None:
    server = spawn(repository, "--lame-duck-seconds", "60")
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        classify = classify_on(channel)
        server.process.send_signal(signal.SIGTERM)
        wait_until_not_serving(server)
        assert len(classify(pixels(digits), timeout=10).results) == 1
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 1


def test_ctrl_c_skips_the_lame_duck_time(repository: Path, spawn: Spawn) -> None:
    server = spawn(repository, "--lame-duck-seconds", "600")
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(30) == 0
    assert "requests are taken for" not in server.log.read_text()


def test_a_rolling_restart_of_two_servers_fails_no_request(repository: Path, spawn: Spawn, digits: Dataset) -> None:
    ports = [free_port(), free_port()]

    def start(port: int) -> ServerProcess:
        return spawn(repository, "--grpc-port", str(port), "--lame-duck-seconds", "2")

    servers = [start(port) for port in ports]
    outcomes: Counter[str] = Counter()
    stop = threading.Event()
    target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
    with grpc.insecure_channel(target, CHANNEL) as channel, Client(target) as own:
        classify = classify_on(channel)

        def load() -> None:
            while not stop.is_set():
                future = classify.future(pixels(digits), timeout=30)
                outcomes[f"{future.code().name} {future.details()}"] += 1
                time.sleep(0.002)

        def own_load() -> None:
            while not stop.is_set():
                try:
                    own.classify([digits.test.pixels[0]], "digits")
                except CallFailed as error:
                    outcomes[str(error)] += 1
                time.sleep(0.002)

        def own_stream() -> None:
            def requests() -> Iterator[list[np.ndarray]]:
                while not stop.is_set():
                    yield [digits.test.pixels[0]]
                    time.sleep(0.002)

            try:
                for _, answer in own.classify_stream(requests(), "digits"):
                    if isinstance(answer, CallFailed):
                        outcomes[str(answer)] += 1
            except CallFailed as error:
                outcomes[str(error)] += 1

        clients = [threading.Thread(target=each) for each in (load, load, load, load, own_load, own_stream)]
        grpc.channel_ready_future(channel).result(20)
        for client in clients:
            client.start()
        for index, port in enumerate(ports):
            before = outcomes.total()
            assert servers[index].terminate() == 0
            assert outcomes.total() > before, "the other one answers meanwhile"
            servers[index] = start(port)
            after = outcomes.total()
            while outcomes.total() < after + 200:  # both take part again, or will while the next one leaves
                time.sleep(0.05)
            time.sleep(1)
        stop.set()
        for client in clients:
            client.join()
    assert set(outcomes) == {"OK "}, outcomes
    for server in servers:
        assert server.terminate() == 0
