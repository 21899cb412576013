"""What metrics cost: their CPU a call, in turn with that of the whole server at full load, in interleaved rounds of one run.

The server is Convoy's fast transport under h2load, 16 in flight, as in transport.py. What metrics do of a call is done here, by the
same code in a loop: an RPC started and handled, one batch for four calls, one answer with one item; counting included. A scrape is
the text for a registry with one model of ten labels. CPU time on both sides, so that others on the machine disturb little.

Usage: python -m tests.benchmarks.metrics [--rounds 7] [--model MODEL.onnx]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console

from service.observability.metrics import Metrics
from service.observability.trace_context import HEADER, trace_context
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.requests.phases import Phases
from tests.benchmarks import h2load
from tests.benchmarks.transport import check, make_repository, measure, serving

CALLS = 40_000
CALLS_A_BATCH = 4
SCRAPE_SECONDS = 15
TRACEPARENT = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
METADATA = (("user-agent", "grpc-python/1.85.1 grpc-c/51.0.0 (linux; chttp2)"), ("grpc-accept-encoding", "identity, deflate, gzip"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", type=Path, help="a digits model; trained afresh if not given")
    arguments = parser.parse_args()
    h2load.needed()
    rows: list[tuple[float, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        repository = make_repository(Path(folder), arguments.model)
        request = pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=bytes(range(256)) * 3 + bytes(16))])
        body = Path(folder) / "body"
        body.write_bytes(h2load.framed(request))
        with serving("Convoy fast", repository, Path(folder)) as (port, pid):
            check(port, request, "Convoy fast")
            measure(port, pid, body, 16, 1.0)
            for _ in range(arguments.rounds):
                point = measure(port, pid, body, 16, 2.0)
                plain, traced, scrape = counted(METADATA), counted((*METADATA, TRACEPARENT)), scraped()
                a_call = plain + scrape / SCRAPE_SECONDS / point.calls_per_second
                rows.append((point.server_cpu_us, plain, traced, scrape, a_call / point.server_cpu_us))
    server, plain, traced, scrape, share = (statistics.median(column) for column in zip(*rows, strict=True))
    console = Console(highlight=False)
    console.print(f"server CPU a call: {server:.1f} us; metrics: {plain:.2f} us, with a recorded trace {traced:.2f} us")
    console.print(f"a scrape: {scrape / 1000:.1f} ms; together, scraped each {SCRAPE_SECONDS} s: {share:.1%} of the server's CPU")


def counted(metadata: tuple[tuple[str, str], ...]) -> float:
    """Microseconds of CPU that metrics take of a call with this metadata."""
    metrics = Metrics(CollectorRegistry())
    method = metrics.rpc_method("unary", "convoy.v1.Classifier", "Classify")
    served = metrics.model_loaded("digits", "1", [str(label) for label in range(10)], probabilities=True)
    phases, results = Phases(None, 0.0002, 0.0003), [[(3, 0.99), (5, 0.01)]]
    start = time.process_time()
    for call in range(CALLS):
        method.started()
        trace = next((trace_context(value) for key, value in metadata if key == HEADER), None)
        if call % CALLS_A_BATCH == 0:
            served.batch(CALLS_A_BATCH, 0.0003)
        method.handled("OK", 0.0007, trace)
        served.answered(phases, 0.00001, results, trace)
    return 1e6 * (time.process_time() - start) / CALLS


def scraped() -> float:
    """Microseconds of CPU that a scrape takes."""
    metrics = Metrics(CollectorRegistry())
    for method in ("Classify", "ClassifyStream", "GetModel", "ListModels", "Check", "Watch"):
        metrics.rpc_method("unary", "convoy.v1.Classifier", method)
    served = metrics.model_loaded("digits", "1", [str(label) for label in range(10)], probabilities=True)
    served.serving(1024, 64, lambda: 0, fell_back=False)
    start = time.process_time()
    for _ in range(20):
        generate_latest(metrics.registry)
    return 1e6 * (time.process_time() - start) / 20


if __name__ == "__main__":
    main()
