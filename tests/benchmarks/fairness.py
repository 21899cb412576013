"""What a greedy client costs a polite one.

The polite client sends one 28x28x1 picture 50 times a second, by the clock, over a unix socket; a latency counts from when the
request was due. The greedy one is h2load over TCP, in a closed loop: so many requests in flight, of one item or of many, as unary
calls or on streams of which each carries MESSAGES requests. It obeys no RetryInfo. Beside each load the polite client is measured
in the same way while the same load goes to another server on the same machine: what comes of that is the machine's share, not the
server's.

Usage: python -m tests.benchmarks.fairness [--seconds 10] [--rounds 1] [--model MODEL.onnx] [--transport fast public]
           [--loads NAME ...] [--no-control]
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from service.pb.convoy.v1 import classifier_pb2 as pb
from tests.benchmarks import h2load
from tests.benchmarks.transport import cpu_seconds, make_repository, serving

CALLS_PER_SECOND = 50
TIMEOUT_SECONDS = 10.0
MESSAGES = 500
MANY_ITEMS = 32


class Greedy(NamedTuple):
    """A load: connections, concurrent calls on each, and items in each request."""

    connections: int
    calls: int
    items: int = 1
    stream: bool = False


LOADS = {
    "64 unary": Greedy(4, 16),
    "512 unary": Greedy(8, 64),
    "1000 unary": Greedy(10, 100),
    "1000 unary, 1 connection": Greedy(1, 1000),
    f"64 unary of {MANY_ITEMS} items": Greedy(4, 16, MANY_ITEMS),
    f"512 unary of {MANY_ITEMS} items": Greedy(8, 64, MANY_ITEMS),
    "64 on a stream": Greedy(1, 1, stream=True),
    "512 on 8 streams": Greedy(8, 1, stream=True),
    "1024 on 16 streams": Greedy(16, 1, stream=True),
}


class Polite(NamedTuple):
    """What the polite client saw, in milliseconds."""

    p50_ms: float
    p99_ms: float
    slowest_ms: float
    failed: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--model", type=Path, help="a digits model; trained afresh if not given")
    parser.add_argument("--transport", nargs="+", choices=["fast", "public"], default=["fast", "public"])
    parser.add_argument("--loads", nargs="+", choices=list(LOADS), default=list(LOADS))
    parser.add_argument("--no-control", action="store_true", help="without the other server")
    arguments = parser.parse_args()
    h2load.needed()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repository = make_repository(folder, arguments.model)
        for transport in arguments.transport:
            measure_transport(transport, repository, folder, arguments)


def measure_transport(transport: str, repository: Path, folder: Path, arguments: argparse.Namespace) -> None:
    """Prints a line a load and round."""
    first, second = folder / "first", folder / "second"
    for each in (first, second):
        each.mkdir(exist_ok=True)
    with (
        serving(f"Convoy {transport}", repository, first, "--grpc-socket", str(first / "grpc.sock")) as (port, pid),
        serving(f"Convoy {transport}", repository, second) as (other_port, _),
        grpc.insecure_channel(f"unix:{first}/grpc.sock", [("grpc.default_authority", "localhost")]) as channel,
    ):
        polite(channel, 2.0)
        for load in arguments.loads:
            ratios = []
            for _ in range(arguments.rounds):
                alone = polite(channel, arguments.seconds)
                with greedy(port, LOADS[load], folder) as count:
                    before, cpu, began = count(), cpu_seconds(pid), time.monotonic()
                    beside = polite(channel, arguments.seconds)
                    requests, cpu, seconds = count() - before, cpu_seconds(pid) - cpu, time.monotonic() - began
                control = None
                if not arguments.no_control:
                    with greedy(other_port, LOADS[load], folder):
                        control = polite(channel, arguments.seconds)
                ratios.append(beside.p99_ms / alone.p99_ms)
                floor = f"  beside another server's p99 {control.p99_ms:.2f}" if control else ""
                say(
                    f"{transport:6}  {load:26}  alone p50 {alone.p50_ms:.2f} p99 {alone.p99_ms:.2f}{floor}  "
                    f"beside p50 {beside.p50_ms:.2f} p99 {beside.p99_ms:.2f} slowest {beside.slowest_ms:.1f} "
                    f"failed {beside.failed}  "
                    f"greedy {requests / seconds:,.0f}/s, {1e6 * cpu / max(1, requests):,.0f} us of CPU each"
                )
            say(f"{transport:6}  {load:26}  p99 beside to alone: {statistics.median(ratios):.1f}")


def polite(channel: grpc.Channel, seconds: float) -> Polite:
    """Sends by the clock, whether or not what was sent before has been answered."""
    classify: Any = channel.unary_unary("/convoy.v1.Classifier/Classify")
    request = pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=bytes(784))]).SerializeToString()
    latencies: list[float] = []
    calls = []
    start = time.monotonic() + 0.1
    for number in range(round(CALLS_PER_SECOND * seconds)):
        due = start + number / CALLS_PER_SECOND
        time.sleep(max(0.0, due - time.monotonic()))
        call = classify.future(request, timeout=TIMEOUT_SECONDS)
        call.add_done_callback(lambda _, due=due: latencies.append(1000 * (time.monotonic() - due)))
        calls.append(call)
    failed = sum(call.exception() is not None for call in calls)
    while len(latencies) < len(calls):
        time.sleep(0.01)
    latencies.sort()
    return Polite(latencies[len(latencies) // 2], latencies[len(latencies) * 99 // 100], latencies[-1], failed)


@contextlib.contextmanager
def greedy(port: int, load: Greedy, folder: Path) -> Iterator[Any]:
    """Loads a server meanwhile. Gives a function that says how many requests have been answered or refused so far."""
    request = pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=bytes(range(256)) * 3 + bytes(16))] * load.items)
    body, log = folder / "body", folder / "h2load.log"
    body.write_bytes(h2load.framed(pb.ClassifyStreamRequest(request=request)) * MESSAGES if load.stream else h2load.framed(request))
    log.unlink(missing_ok=True)
    method = "ClassifyStream" if load.stream else "Classify"
    command = [
        "h2load", "-t1", f"-c{load.connections}", f"-m{load.calls}", "-D1000000ms", f"-d{body}", f"--log-file={log}",
        "-Hcontent-type: application/grpc", "-Hte: trailers", f"http://127.0.0.1:{port}/convoy.v1.Classifier/{method}",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(1.0)
        yield lambda: log.read_bytes().count(b"\n") * (MESSAGES if load.stream else 1)
    finally:
        process.terminate()
        process.wait(30)
        time.sleep(0.5)


def say(text: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
