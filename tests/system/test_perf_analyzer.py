"""NVIDIA's perf_analyzer, which is written for Triton, measures a real server: every way that it has of sending requests."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Spawn

pytestmark = pytest.mark.system
FOLDER = Path(sys.prefix) / "perf_analyzer"

WAYS = {
    "gRPC": ("-i", "grpc", "--concurrency-range", "4"),
    "gRPC, asynchronous": ("-i", "grpc", "--concurrency-range", "8", "-a"),
    "gRPC, streaming": ("-i", "grpc", "--concurrency-range", "4", "--streaming", "-a"),
    "gRPC, batches": ("-i", "grpc", "--concurrency-range", "2", "-b", "8"),
    "gRPC, shared memory": ("-i", "grpc", "--concurrency-range", "2", "--shared-memory", "system"),
    "gRPC, at a rate": ("-i", "grpc", "--request-rate-range", "50"),
    "HTTP": ("-i", "http", "--concurrency-range", "4"),
    "HTTP, shared memory": ("-i", "http", "--concurrency-range", "2", "--shared-memory", "system"),
}


@pytest.mark.parametrize("way", WAYS)
def test_perf_analyzer_measures_us(way: str, repository: Path, spawn: Spawn) -> None:
    assert (FOLDER / "perf_analyzer").exists(), "perf_analyzer is missing: make perf-analyzer"
    # Its objects are named after the tensors.
    server = spawn(repository, "--shared-memory-prefix", "image,logits,probabilities")
    port = server.http_port if WAYS[way][1] == "http" else server.grpc_port
    measurement = ("--measurement-mode", "count_windows", "--measurement-request-count", "40", "-s", "1000", "-r", "3")
    done = subprocess.run(
        [FOLDER / "perf_analyzer", "-m", "digits", "-u", f"127.0.0.1:{port}", *WAYS[way], *measurement],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "LD_LIBRARY_PATH": str(FOLDER)},
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert "libb64" not in output, f"{output}\nmissing: apt-get install libb64-0d"
    assert done.returncode == 0, output
    throughput = re.search(r"Throughput: ([\d.]+) infer/sec", output)
    assert throughput is not None, output
    assert float(throughput[1]) > 0
    # What it reads from our statistics has happened.
    assert re.search(r"Inference count: [1-9]", output), output
    assert server.terminate() == 0
