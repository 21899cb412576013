"""deploy/load-balancing/haproxy.cfg before two real servers."""

import re
import shutil
from pathlib import Path

import pytest

from export.data.datasets import Dataset
from tests.conftest import Spawn
from tests.deploy import balanced, kit

pytestmark = pytest.mark.system


@pytest.fixture(params=["fast"])
def transport_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_haproxy(repository: Path, spawn: Spawn, digits: Dataset, tmp_path: Path) -> None:
    haproxy = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    assert haproxy is not None, "haproxy is not installed: apt-get install haproxy"
    pair = balanced.Pair(spawn, repository)
    [port] = balanced.free_ports(1)
    config = (kit.DEPLOY / "load-balancing" / "haproxy.cfg").read_text().replace("bind 0.0.0.0:8000", f"bind 127.0.0.1:{port}")
    addresses = iter(zip(pair.grpc_ports, pair.http_ports, strict=True))

    def address(_: re.Match[str]) -> str:
        grpc, http = next(addresses)
        return f"127.0.0.1:{grpc} check port {http}"

    config, replaced = re.subn(r"127\.0\.0\.1:\d+ check port \d+", address, config)
    assert replaced == 2
    path = tmp_path / "haproxy.cfg"
    path.write_text(config)
    with balanced.running([haproxy, "-db", "-f", path], port, tmp_path / "haproxy.log"):
        balanced.check(f"127.0.0.1:{port}", pair, digits)
