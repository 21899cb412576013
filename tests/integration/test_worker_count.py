"""`convoy serve --workers auto`: real servers that may use two CPUs, where the machine has them."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.data.datasets import Dataset
from service.client import Client
from service.model.cpus import cpu_budget
from tests.benchmarks import small_cnn
from tests.conftest import ServerProcess, Spawn
from tests.integration.test_workers import scrape

SEVERAL_CPUS = cpu_budget() > 1

pytestmark = pytest.mark.parametrize("transport_name", ["fast"])


@pytest.fixture(autouse=True)
def _two_cpus() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:2])
    yield
    os.sched_setaffinity(0, before)


def chosen(server: ServerProcess) -> tuple[int, str]:
    """The number of workers and the reason, as the one line of the log has them."""
    [(workers, reason)] = re.findall(r"--workers auto: (\d+) workers?: (.*?) *\[", server.log.read_text())
    return int(workers), reason


def test_a_small_model_is_served_by_as_many_workers_as_there_are_cpus(repository: Path, spawn: Spawn, digits: Dataset) -> None:
    server = spawn(repository, "--workers", "auto")
    workers, reason = chosen(server)
    assert workers == (2 if SEVERAL_CPUS else 1)
    assert ("there are 2 CPUs" if SEVERAL_CPUS else "there is one CPU") in reason
    metrics = scrape(server.http_port)
    assert metrics.get(("convoy_workers",), 1) == metrics.get(("convoy_workers_ready",), 1) == workers
    with Client(f"127.0.0.1:{server.grpc_port}", connections=2) as client:
        for index in range(4):
            assert client.classify([digits.test.encoded(index)], "digits").results
    assert server.terminate() == 0


def test_a_slow_model_is_served_by_one_process_with_all_cpus(tmp_path: Path, spawn: Spawn) -> None:
    small_cnn.write(tmp_path / "models" / "slow" / "1" / "model.onnx", filters=256)
    server = spawn(tmp_path / "models", "--workers", "auto")
    workers, reason = chosen(server)
    assert workers == 1
    assert re.fullmatch(r"model slow version 1 takes [\d.]+ ms .*with all 2|there is one CPU", reason)
    log = server.log.read_text()
    assert f"1 x {2 if SEVERAL_CPUS else 1} ORT threads" in log
    assert log.count("loading") == 1, "the process that measures logs nothing"
    assert ("convoy_workers",) not in scrape(server.http_port), "there is no supervisor"
    assert server.terminate() == 0
