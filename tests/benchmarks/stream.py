"""What a message on a ClassifyStream costs, beside a unary Classify, with 64 in flight, in interleaved rounds of one run.

The load is h2load as in transport.py: unary calls over eight connections of eight streams each; or one connection with one stream
at a time, of which each carries MESSAGES messages, so that the server's own bound keeps 64 in flight. A request is one 28x28x1
picture as raw pixels. Server CPU is user and system time of the process meanwhile.

Usage: python -m tests.benchmarks.stream [--rounds 5] [--seconds 2] [--streams 10] [--model MODEL.onnx] [--transport fast|public]
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from service.pb.convoy.v1 import classifier_pb2 as pb
from tests.benchmarks import h2load
from tests.benchmarks.transport import cpu_seconds, make_repository, measure, serving

MESSAGES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of unary calls")
    parser.add_argument("--streams", type=int, default=10)
    parser.add_argument("--model", type=Path, help="a digits model; trained afresh if not given")
    parser.add_argument("--transport", choices=["fast", "public"], default="fast")
    arguments = parser.parse_args()
    h2load.needed()
    ratios, cpu_ratios = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repository = make_repository(folder, arguments.model)
        request = pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=bytes(range(256)) * 3 + bytes(16))])
        one, many = folder / "one", folder / "many"
        one.write_bytes(h2load.framed(request))
        many.write_bytes(h2load.framed(pb.ClassifyStreamRequest(request=request)) * MESSAGES)
        with serving(f"Convoy {arguments.transport}", repository, folder) as (port, pid):
            for round_number in range(arguments.rounds):
                measure(port, pid, one, 64, 0.3)
                unary = measure(port, pid, one, 64, arguments.seconds)
                stream_load(port, pid, many, 1)
                messages, cpu_us = stream_load(port, pid, many, arguments.streams)
                ratios.append(messages / unary.calls_per_second)
                cpu_ratios.append(cpu_us / unary.server_cpu_us)
                print_line(
                    f"round {round_number + 1}: "
                    f"unary {unary.calls_per_second:,.0f} calls/s, {unary.server_cpu_us:.0f} us of CPU each; "
                    f"stream {messages:,.0f} messages/s, {cpu_us:.0f} us each"
                )
    print_line(
        f"stream to unary, medians: {statistics.median(ratios):.2f} in messages/s, {statistics.median(cpu_ratios):.2f} in CPU"
    )


def stream_load(port: int, pid: int, body: Path, streams: int) -> tuple[float, float]:
    """Messages a second, and the server's CPU for one in microseconds, over so many whole streams."""
    before = cpu_seconds(pid)
    load = h2load.load(port, body, 1, 1, calls=streams, method="ClassifyStream", answers=MESSAGES)
    cpu = cpu_seconds(pid) - before
    return MESSAGES * load.calls_per_second, 1e6 * cpu / (MESSAGES * streams)


def print_line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
