"""What many small models cost: `convoy serve` with 1, 10, 100 and 500 copies of a model, each under a name of its own.

Seconds and CPU seconds until all are ready, resident memory and threads of all processes then and after the calls, and the p50 of
calls that go to each model in turn, one after the other.

Usage: python -m tests.benchmarks.many_models [1 10 100 500] [--model MODEL.onnx] [--workers 1] [--calls 2000]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from rich.console import Console
from rich.table import Table

from service.pb.convoy.v1 import classifier_pb2 as pb
from tests.benchmarks.leaks import children
from tests.benchmarks.transport import cpu_seconds, make_repository

START_SECONDS = 600.0

console = Console(highlight=False, soft_wrap=True)


class Held(NamedTuple):
    """What the processes of a server hold."""

    resident_mb: float
    threads: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", nargs="*", type=int, default=[1, 10, 100, 500])
    parser.add_argument("--model", type=Path, help="a digits model; trained afresh if not given")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--calls", type=int, default=2000)
    arguments = parser.parse_args()
    table = Table("models", "s to ready", "CPU s", "RSS MB", "threads", "called: RSS MB", "threads", "p50 ms", box=None)
    with tempfile.TemporaryDirectory() as folder:
        model = make_repository(Path(folder) / "source", arguments.model) / "digits" / "1" / "model.onnx"
        for count in arguments.counts:
            row = measure(Path(folder) / str(count), model, count, arguments.workers, arguments.calls)
            table.add_row(*row)
            console.print("  ".join(row), style="dim")
    console.print(table)


def measure(folder: Path, model: Path, count: int, workers: int, calls: int) -> list[str]:
    """One row of the table."""
    names = [f"model-{number}" for number in range(1, count + 1)]
    for name in names:
        (folder / "models" / name / "1").mkdir(parents=True)
        (folder / "models" / name / "1" / "model.onnx").hardlink_to(model)
    ready = folder / "ready"
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "serve", str(folder / "models"), "--grpc-port", "0", "--http-port", "0", "--provider",
         "cpu", "--log-level", "error", "--ready-file", str(ready), "--workers", str(workers)],
    )  # fmt: skip
    try:
        while not ready.exists():
            if process.poll() is not None or time.monotonic() - began > START_SECONDS:
                sys.exit(f"a server of {count} models did not start")
            time.sleep(0.02)
        seconds = time.monotonic() - began
        cpu = sum(cpu_seconds(pid) for pid in (process.pid, *children(process.pid)))
        before = held(process.pid)
        p50_ms = call(json.loads(ready.read_text())["grpc_port"], names, calls)
        after = held(process.pid)
    finally:
        process.terminate()
        process.wait(60)
    figures = [f"{seconds:.1f}", f"{cpu:.1f}", f"{before.resident_mb:.0f}", str(before.threads)]
    return [str(count), *figures, f"{after.resident_mb:.0f}", str(after.threads), f"{p50_ms:.2f}"]


def held(pid: int) -> Held:
    """What a server and the processes that it has started hold now."""
    statuses = [Path(f"/proc/{each}/status").read_text() for each in (pid, *children(pid))]
    resident, threads = ([int(status.split(f"{name}:")[1].split()[0]) for status in statuses] for name in ("VmRSS", "Threads"))
    return Held(sum(resident) / 1024, sum(threads))


def call(port: int, names: list[str], calls: int) -> float:
    """Calls each model once, then each in turn; returns the median in milliseconds."""
    requests = [pb.ClassifyRequest(model=name, items=[pb.Item(pixels=bytes(784))]).SerializeToString() for name in names]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        classify: Any = channel.unary_unary("/convoy.v1.Classifier/Classify")
        for request in requests:
            classify(request, timeout=20)
        seconds = []
        for number in range(calls):
            began = time.perf_counter()
            classify(requests[number % len(requests)], timeout=20)
            seconds.append(time.perf_counter() - began)
    return 1000 * sorted(seconds)[len(seconds) // 2]


if __name__ == "__main__":
    main()
