"""What a second worker gives: calls a second and CPU of one and of two workers, in interleaved rounds of one run.

The load is h2load, as in `transport.py`: 16 connections with four streams each, so that the kernel has connections to spread.
Client and workers share the cores: with two of them, a second worker can only gain what the first and the client leave idle.

Usage: python -m tests.benchmarks.workers [--rounds 5] [--seconds 2] [--model MODEL.onnx]
"""

import argparse
import os
import re
import statistics
import tempfile
from pathlib import Path

from rich.console import Console

from service.pb.convoy.v1 import classifier_pb2 as pb
from tests.benchmarks import h2load
from tests.benchmarks.transport import check, cpu_seconds, make_repository, serving

CONNECTIONS, STREAMS = 16, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--model", type=Path, help="a digits model; trained afresh if not given")
    arguments = parser.parse_args()
    h2load.needed()
    console = Console(highlight=False, soft_wrap=True)
    request = pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=bytes(range(256)) * 3 + bytes(16))])
    found: dict[int, list[tuple[float, float, float]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        repository = make_repository(Path(folder), arguments.model)
        body = Path(folder) / "body"
        body.write_bytes(h2load.framed(request))
        for round_number in range(arguments.rounds):
            for workers, points in found.items():
                os.environ["CONVOY_WORKERS"] = str(workers)
                with serving("Convoy fast", repository, Path(folder)) as (port, pid):
                    check(port, request, "Convoy")
                    load(port, pid, body, 0.5)
                    points.append(load(port, pid, body, arguments.seconds))
                    console.print(f"round {round_number + 1}  {workers} workers  {points[-1]}", style="dim")
    for workers, points in found.items():
        calls, cpu, memory = (statistics.median(column) for column in zip(*points, strict=True))
        console.print(f"{workers} workers: {calls:,.0f} calls/s, {cpu:.0f} us of CPU a call, {memory:.0f} MB of memory (PSS)")
    ratios = [two[0] / one[0] for one, two in zip(found[1], found[2], strict=True)]
    console.print(f"two to one: {statistics.median(ratios):.2f} (rounds: {', '.join(f'{ratio:.2f}' for ratio in ratios)})")


def load(port: int, pid: int, body: Path, seconds: float) -> tuple[float, float, float]:
    """Calls a second, CPU microseconds a call of all server processes, and their memory in MB."""
    before = sum(map(cpu_seconds, processes(pid)))
    done = h2load.load(port, body, CONNECTIONS, STREAMS, seconds=seconds)
    cpu = sum(map(cpu_seconds, processes(pid))) - before
    memory = sum(
        int(re.findall(r"^Pss: +(\d+)", Path(f"/proc/{each}/smaps_rollup").read_text(), re.M)[0]) for each in processes(pid)
    )
    return done.calls_per_second, 1e6 * cpu / done.calls, memory / 1024


def processes(pid: int) -> list[int]:
    """A process and those that it has started."""
    started = (task / "children" for task in Path(f"/proc/{pid}/task").iterdir())
    return [pid, *(int(child) for children in started for child in children.read_text().split())]


if __name__ == "__main__":
    main()
