"""What a second worker gives, and what it takes from a client of one connection: servers of one and of two workers, in pairs.

Both servers run all the time, and each load goes to one and then to the other, in turn first, for as many rounds as asked for. The
ratios are of the pairs, so that what else the machine does counts less. The load is h2load, as in `transport.py`. Client and
workers share the cores: with two of them, a second worker can only gain what the first and the client leave idle.

Usage: python -m tests.benchmarks.workers [--rounds 9] [--seconds 0.7] [--model MODEL.onnx]
"""

import argparse
import re
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from service.pb.convoy.v1 import classifier_pb2 as pb
from tests.benchmarks import h2load, small_cnn
from tests.benchmarks.transport import check, cpu_seconds, serving

ONE = pb.Item(pixels=bytes(range(256)) * 3 + bytes(16))


class Load(NamedTuple):
    """Pictures a request, connections, and requests in flight on each."""

    name: str
    items: int
    connections: int
    streams: int


LOADS = (
    Load("64 in flight over 8 connections", 1, 8, 8),
    Load("32 a request, 4 in flight over 4 connections", 32, 4, 1),
    Load("64 in flight over 1 connection", 1, 1, 64),
    Load("32 a request, 4 in flight over 1 connection", 32, 1, 4),
)


class Measured(NamedTuple):
    """Of one round."""

    calls_per_second: float
    cpu_microseconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.7)
    parser.add_argument("--model", type=Path, help="a model of 28x28x1 pictures; one with random weights if not given")
    arguments = parser.parse_args()
    h2load.needed()
    console = Console(highlight=False, width=150)
    table = Table("load", "calls/s: one", "two", "two to one", "CPU us a call: one", "two", "two to one")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "models" / "digits" / "1" / "model.onnx"
        if arguments.model is None:
            small_cnn.write(path)
        else:
            path.parent.mkdir(parents=True)
            shutil.copy(arguments.model, path)
        for each in ("one", "two"):
            (folder / each).mkdir()
        with (
            serving("Convoy fast", folder / "models", folder / "one") as one,
            serving("Convoy fast", folder / "models", folder / "two", "--workers", "2") as two,
        ):
            check(one[0], pb.ClassifyRequest(model="digits", items=[ONE]), "one worker")
            check(two[0], pb.ClassifyRequest(model="digits", items=[ONE]), "two workers")
            for load in LOADS:
                pairs = [run_pair(load, one, two, folder / "body", arguments.seconds, turn) for turn in range(arguments.rounds + 1)]
                add_row(table, load, pairs[1:])  # the first warms up
            memory = [sum(map(resident_megabytes, processes(pid))) for _, pid in (one, two)]
    console.print(table)
    console.print(f"n = {arguments.rounds}; memory (PSS): {memory[0]:.0f} and {memory[1]:.0f} MB")


def run_pair(
    load: Load, one: tuple[int, int], two: tuple[int, int], body: Path, seconds: float, turn: int
) -> tuple[Measured, Measured]:
    """Loads both servers, each a port and a pid: in odd turns the second first."""
    body.write_bytes(h2load.framed(pb.ClassifyRequest(model="digits", items=[ONE] * load.items)))
    found = {}
    for port, pid in (two, one) if turn % 2 else (one, two):
        before = sum(map(cpu_seconds, processes(pid)))
        done = h2load.load(port, body, load.connections, load.streams, seconds=seconds)
        cpu = sum(map(cpu_seconds, processes(pid))) - before
        found[pid] = Measured(done.calls_per_second, 1e6 * cpu / done.calls)
    return found[one[1]], found[two[1]]


def add_row(table: Table, load: Load, pairs: list[tuple[Measured, Measured]]) -> None:
    cells = [load.name]
    for field in range(2):
        ratios = sorted(two[field] / one[field] for one, two in pairs)
        medians = [statistics.median(pair[which][field] for pair in pairs) for which in range(2)]
        cells += [f"{median:,.0f}" for median in medians]
        cells += [f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"]
    table.add_row(*cells)


def resident_megabytes(pid: int) -> float:
    """Its memory, of what it shares with others its part."""
    return int(re.findall(r"^Pss: +(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[0]) / 1024


def processes(pid: int) -> list[int]:
    """A process and those that it has started."""
    started = (task / "children" for task in Path(f"/proc/{pid}/task").iterdir())
    return [pid, *(int(child) for children in started for child in children.read_text().split())]


if __name__ == "__main__":
    main()
