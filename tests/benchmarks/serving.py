"""Convoy beside ONNX Runtime alone: how much of what the machine can compute arrives at clients, by kinds of load that users have.

Two models: `small`, the tutorials' CNN on digits, and `r18`, a ResNet-18 for 32x32 colour pictures, in fp32, and in int8 too. They
are trained for an epoch on what is at hand: speed does not depend on what they have learnt. The limit is ONNX Runtime in a loop in
one process, the best of one session with all cores and of one session a core, over batches of 1 to 64. The load is
that of `convoy bench`, in processes of its own on the same cores.

Each round measures limit and server one after the other; ratios are of a round, their medians are what to keep.

Usage: python -m tests.benchmarks.serving [--rounds 3] [--seconds 3]
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from service import model
from service.bench import Load, Outcome, run
from service.bench_pictures import made_up
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.preprocessing import decode

BATCHES = (1, 4, 16, 32, 64)
CPUS = model.cpu_budget()
DEADLINE_SECONDS = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        console.print("training and exporting the models", style="dim")
        repository = make_models(Path(folder))
        for number in range(arguments.rounds):
            for name, value in one_round(repository, arguments.seconds):
                found.setdefault(name, []).append(value)
                console.print(f"round {number + 1}  {name}: {value:.3g}", style="dim")
    table = Table("figure", "median", "of rounds", box=None)
    for name, values in found.items():
        table.add_row(name, f"{statistics.median(values):.3g}", ", ".join(f"{value:.3g}" for value in values))
    console.print(table)


def make_models(folder: Path) -> Path:
    """A repository of `small`, `r18` and `r18-int8`."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 96), ("val", 48), ("test", 48)):
        for label in ("one", "two"):
            (folder / "pictures" / part / label).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (32, 32, 3), np.uint8) // (1 + (label == "two"))
                Image.fromarray(pixels).save(folder / "pictures" / part / label / f"{index}.png")
    small, r18 = str(folder / "small"), str(folder / "r18")
    repository = folder / "models"
    for command in (
        ["train", "--data", "digits", "--epochs", "1", "--output", small],
        ["export", small, "--repository", str(repository), "--name", "small"],
        ["train", "--data", str(folder / "pictures"), "--network", "resnet18", "--epochs", "1", "--output", r18],
        ["export", r18, "--repository", str(repository), "--name", "r18"],
        ["export", r18, "--repository", str(repository), "--name", "r18-int8", "--precision", "int8", "--max-accuracy-loss", "100"],
    ):
        done = subprocess.run([sys.executable, "-m", "service.cli", *command], check=False, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
    return repository


def one_round(repository: Path, seconds: float) -> Iterator[tuple[str, float]]:
    """The figures of one round, by name."""
    small, r18 = (repository / name / "1" / "model.onnx" for name in ("small", "r18"))
    small_limit, r18_limit = limit(small), limit(r18)
    yield "limit: small, images/s", small_limit
    yield "limit: r18, images/s", r18_limit
    start = time.monotonic()
    with serving(repository, only="small") as (port, pid):
        yield "start to READY, small, s", time.monotonic() - start
        before = cpu_seconds(pid)
        outcome = closed(port, "small", (28, 28, 1), seconds, items=32, concurrency=4)
        yield "small, 32 a request, 4 in flight: to the limit", 32 * rate(outcome) / small_limit
        yield "... cores that the server used", (cpu_seconds(pid) - before) / (seconds + 1)
        png = made_up("small", "", 32, (28, 28, 1), "png", 0)
        decoded = decode_limit(small, png)
        outcome = load(port, png, seconds, concurrency=4)
        yield "small, 32 PNG 28x28 a request: to decoding and inference in-process", 32 * rate(outcome) / decoded
        jpeg = made_up("small", "", 32, (224, 224, 3), "jpeg", 0)
        decoded = decode_limit(small, jpeg)
        outcome = load(port, jpeg, seconds, concurrency=4)
        yield "small, 32 JPEG 224x224 a request: to decoding and inference in-process", 32 * rate(outcome) / decoded
        unary = closed(port, "small", (28, 28, 1), seconds, concurrency=64, connections=8)
        stream = closed(port, "small", (28, 28, 1), seconds, concurrency=64, connections=8, stream=True)
        yield "small, 64 in flight: ClassifyStream to Classify, messages/s", rate(stream) / rate(unary)
        yield "peak RSS, small, MB", peak_rss(pid)
    with serving(repository, only="r18") as (port, _):
        for in_flight in (16, 64):
            capacity = rate(closed(port, "r18", (32, 32, 3), seconds, concurrency=in_flight, connections=4))
            yield f"r18, {in_flight} in flight: to the limit", capacity / r18_limit
        alone = closed(port, "r18", (32, 32, 3), seconds, concurrency=1)
        service = alone.answered.get_value_at_percentile(50) / 1e6
        outcome = closed(port, "r18", (32, 32, 3), 3 * seconds, rate=capacity / 2)
        p99 = outcome.answered.get_value_at_percentile(99) / 1e6
        yield "r18, Poisson at half of capacity: p99 to the time of one alone", p99 / service
        outcome = closed(port, "r18", (32, 32, 3), 2 * seconds, rate=2 * capacity, timeout_seconds=DEADLINE_SECONDS)
        yield "r18, twice its capacity, deadline 100 ms: answered in time, to capacity", rate(outcome) / capacity
        yield "... refused: p50, ms", outcome.refused.get_value_at_percentile(50) / 1000
    with serving(repository, only="r18-int8") as (port, _):
        outcome = closed(port, "r18-int8", (32, 32, 3), seconds, concurrency=64, connections=4)
        yield "r18 int8, 64 in flight: to the limit of fp32", rate(outcome) / r18_limit


def rate(outcome: Outcome) -> float:
    """Answered requests a second."""
    return float(outcome.answered.get_total_count()) / outcome.seconds


def closed(
    port: int, name: str, shape: tuple[int, int, int], seconds: float, *, items: int = 1, connections: int = 2, **kind: Any
) -> Outcome:
    """A load of made-up pixels."""
    return load(port, made_up(name, "", items, shape, "pixels", 0), seconds, connections=connections, **kind)


def load(port: int, requests: tuple[bytes, ...], seconds: float, **kind: Any) -> Outcome:
    """A load of `convoy bench` on a server of this machine."""
    return run(Load(f"127.0.0.1:{port}", requests, seconds, **kind))


def limit(path: Path) -> float:
    """Images a second of ONNX Runtime alone: the best of one session on all cores, and of one session a core."""
    together = [model.load(path, "cpu", CPUS)]
    apart = [model.load(path, "cpu", 1) for _ in range(CPUS)]
    return max(at_once(sessions, batch) for sessions in (together, apart) for batch in BATCHES)


def at_once(sessions: Sequence[model.Model], batch: int, seconds: float = 0.4) -> float:
    """Images a second of several sessions, each in a thread of its own."""
    images = np.random.default_rng(0).integers(0, 256, (batch, *sessions[0].input.shape), np.uint8)

    def work(session: model.Model) -> int:
        session.predict(images)
        barrier.wait()
        end = time.monotonic() + seconds
        done = 0
        while time.monotonic() < end:
            session.predict(images)
            done += batch
        return done

    barrier = threading.Barrier(len(sessions))
    with ThreadPoolExecutor(len(sessions)) as pool:
        return sum(pool.map(work, sessions)) / seconds


def decode_limit(path: Path, requests: Sequence[bytes], seconds: float = 1.0) -> float:
    """Images a second of decoding and inference in this process, a thread a core, each with the pictures of a request at a time."""
    pictures = [[item.encoded for item in pb.ClassifyRequest.FromString(request).items] for request in requests]
    sessions = [model.load(path, "cpu", 1) for _ in range(CPUS)]
    spec = sessions[0].contract.input

    def work(session: model.Model) -> int:
        end = time.monotonic() + seconds
        done = 0
        while time.monotonic() < end:
            batch: NDArray[np.uint8] = np.stack([decode(data, spec, 1 << 24) for data in pictures[done % len(pictures)]])
            session.predict(batch)
            done += 1
        return done * len(pictures[0])

    with ThreadPoolExecutor(CPUS) as pool:
        return sum(pool.map(work, sessions)) / seconds


@contextlib.contextmanager
def serving(repository: Path, only: str) -> Iterator[tuple[int, int]]:
    """`convoy serve` of one of the models; gives its gRPC port and its pid."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready"
        (Path(folder) / "models").mkdir()
        (Path(folder) / "models" / only).symlink_to(repository / only)
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve", str(Path(folder) / "models"), "--grpc-port", "0", "--http-port", "0",
             "--provider", "cpu", "--log-level", "warning", "--ready-file", str(ready), "--lame-duck-seconds", "0"],
        )  # fmt: skip
        try:
            wait_for(ready.exists)
            yield json.loads(ready.read_text())["grpc_port"], process.pid
        finally:
            process.terminate()
            process.wait(30)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("the server did not become ready")
        time.sleep(0.005)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_rss(pid: int) -> float:
    """The most memory that a process has had, in MB."""
    [line] = [line for line in io.StringIO(Path(f"/proc/{pid}/status").read_text()) if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
