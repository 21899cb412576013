"""What a unary call costs: Convoy's two transports, whole service on, beside empty gRPC servers, in interleaved rounds of one run.

The load is that of h2load.py: at 1 in flight one connection with one stream, at 16
four with four, at 64 eight with eight. A request is one 28x28x1 picture as raw pixels for Convoy's `Classify`; the empty servers
get and parse the same request, and answer with a response of the same size. Server CPU is user and system time of the process
over the measured seconds, from /proc. Ratios within a round are the figures to keep: the machine's speed moves.

Usage: python -m tests.benchmarks.transport [--rounds 5] [--seconds 2] [--model MODEL.onnx]
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console
from rich.table import Table

from service.pb.convoy.v1 import classifier_pb2 as pb
from tests.benchmarks import h2load

CONTENDERS = ("echo aio", "echo sync", "Convoy public", "Convoy fast")
POINTS = {1: (1, 1), 16: (4, 4), 64: (8, 8)}  # in flight: connections, streams on each
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Point:
    """One measurement."""

    calls_per_second: float
    p50_ms: float
    p99_ms: float
    server_cpu_us: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--model", type=Path, help="a digits model; trained afresh if not given")
    arguments = parser.parse_args()
    h2load.needed()
    console = Console(highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as folder:
        repository = make_repository(Path(folder), arguments.model)
        request = pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=bytes(range(256)) * 3 + bytes(16))])
        body = Path(folder) / "body"
        body.write_bytes(h2load.framed(request))
        found: dict[tuple[str, int], list[Point]] = {}
        for round_number in range(arguments.rounds):
            for contender in CONTENDERS:
                with serving(contender, repository, Path(folder)) as (port, pid):
                    check(port, request, contender)
                    for in_flight in POINTS:
                        measure(port, pid, body, in_flight, 0.3)
                        point = measure(port, pid, body, in_flight, arguments.seconds)
                        found.setdefault((contender, in_flight), []).append(point)
                        console.print(f"round {round_number + 1}  {contender:<14} {in_flight:>2} in flight  {point}", style="dim")
    report(found, console)


def make_repository(folder: Path, model: Path | None) -> Path:
    """A repository with one version of `digits`."""
    repository = folder / "models"
    if model is not None:
        (repository / "digits" / "1").mkdir(parents=True)
        shutil.copy(model, repository / "digits" / "1" / "model.onnx")
    else:
        for arguments in (
            ["train", "--data", "digits", "--epochs", "2", "--output", str(folder / "run")],
            ["export", str(folder / "run"), "--repository", str(repository)],
        ):
            subprocess.run([sys.executable, "-m", "service.cli", *arguments], check=True, stdout=subprocess.DEVNULL)
    return repository


@contextlib.contextmanager
def serving(contender: str, repository: Path, folder: Path, *options: str) -> Iterator[tuple[int, int]]:
    """Starts a contender, Convoy with further options; gives its port and pid."""
    ready = folder / "ready"
    ready.unlink(missing_ok=True)
    kind = contender.split()[1]
    if contender.startswith("echo"):
        command = ["-m", "tests.benchmarks.echo_server", kind, str(ready)]
    else:
        command = ["-m", "service.cli", "serve", str(repository), "--grpc-port", "0", "--http-port", "0", "--transport", kind,
                   "--provider", "cpu", "--log-level", "warning", "--ready-file", str(ready), *options]  # fmt: skip
    process = subprocess.Popen([sys.executable, *command])
    try:
        deadline = time.monotonic() + 30
        while not (ready.exists() and ready.read_text()):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{contender} did not start")
            time.sleep(0.02)
        text = ready.read_text()
        yield (int(text) if text.isdigit() else json.loads(text)["grpc_port"]), process.pid
    finally:
        process.terminate()
        process.wait(30)


def check(port: int, request: pb.ClassifyRequest, contender: str) -> None:
    """One call by grpcio's client: the answer must have one result of five labels."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        classify: Any = channel.unary_unary("/convoy.v1.Classifier/Classify")
        answer = pb.ClassifyResponse.FromString(classify(request.SerializeToString(), timeout=20))
    if len(answer.results) != 1 or len(answer.results[0].predictions) != 5:
        sys.exit(f"{contender} answers wrongly: {answer}")


def measure(port: int, pid: int, body: Path, in_flight: int, seconds: float) -> Point:
    """Loads a server for a time."""
    connections, streams = POINTS[in_flight]
    log = body.with_name("h2load.log")
    log.unlink(missing_ok=True)
    before = cpu_seconds(pid)
    load = h2load.load(port, body, connections, streams, seconds=seconds, log=log)
    cpu = cpu_seconds(pid) - before
    latencies = sorted(int(line.split()[2]) / 1000 for line in log.read_text().splitlines())
    return Point(
        calls_per_second=load.calls_per_second,
        p50_ms=latencies[len(latencies) // 2],
        p99_ms=latencies[len(latencies) * 99 // 100],
        server_cpu_us=1e6 * cpu / load.calls,
    )


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def report(found: dict[tuple[str, int], list[Point]], console: Console) -> None:
    """Prints medians over the rounds, and ratios to the empty asyncio server round by round."""
    for in_flight in POINTS:
        table = Table("", "calls/s", "p50 ms", "p99 ms", "server CPU us a call", "calls/s to echo aio", "p50", "CPU",
                      title=f"{in_flight} in flight", title_justify="left", box=None)  # fmt: skip
        floor = found["echo aio", in_flight]
        for contender in CONTENDERS:
            points = found[contender, in_flight]
            cells = [f"{statistics.median(getattr(p, name) for p in points):,.{digits}f}"
                     for name, digits in (("calls_per_second", 0), ("p50_ms", 3), ("p99_ms", 3), ("server_cpu_us", 1))]  # fmt: skip
            cells += [
                f"{statistics.median(getattr(p, name) / getattr(f, name) for p, f in zip(points, floor, strict=True)):.2f}"
                for name in ("calls_per_second", "p50_ms", "server_cpu_us")
            ]
            table.add_row(contender, *cells)
        console.print(table)


if __name__ == "__main__":
    main()
