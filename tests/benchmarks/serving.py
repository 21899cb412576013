"""Convoy beside ONNX Runtime alone: how much of what the machine can compute arrives at clients, by kinds of load that users have.

Two models: `small`, the tutorials' CNN on digits, and `r18`, a ResNet-18 for 32x32 colour pictures, in fp32, and in int8 too. They
are trained for an epoch on what is at hand: speed does not depend on what they have learnt. The limit is ONNX Runtime in a loop in
one process, the best of one session with all cores and of one session a core, over batches of 1 to 64. A load is a closed loop
of h2load or, where requests arrive by the clock, that of `convoy bench`; either is on the same cores.

A machine's speed moves, so the limit is measured again right before and right after each load that is held against it; the mean
of the two is what the load is divided by. Medians over the rounds are what to keep.

Usage: python -m tests.benchmarks.serving [--rounds 3] [--seconds 3]
"""

import argparse
import contextlib
import io
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from service.bench.images import synthetic_requests
from service.bench.load import Load, Outcome
from service.bench.processes import run
from service.model import cpus
from service.model.inference import Model
from service.model.loading import load_model
from service.model.preprocessing import decode
from service.pb.convoy.v1 import classifier_pb2 as pb
from tests.benchmarks import h2load, transport

BATCHES = (1, 4, 16, 32, 64)
CPUS = cpus.cpu_budget()
DEADLINE_SECONDS = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    h2load.needed()
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
    small_limit, r18_limit = Limit(small), Limit(r18)
    yield "limit: small, images/s", small_limit.images_a_second
    yield "limit: r18, images/s", r18_limit.images_a_second
    start = time.monotonic()
    with serving(repository, only="small") as (port, pid):
        yield "start to READY, small, s", time.monotonic() - start
        many = synthetic_requests("small", "", 32, (28, 28, 1), "pixels", 0)
        yield "small, 32 a request, 4 in flight: to the limit", small_limit.share(lambda: 32 * closed(port, many, 4, 1, seconds))
        png = synthetic_requests("small", "", 32, (28, 28, 1), "png", 0)
        decoded = decode_limit(small, png)
        yield "small, 32 PNG 28x28 a request: to decoding and inference in-process", 32 * closed(port, png, 4, 1, seconds) / decoded
        jpeg = synthetic_requests("small", "", 32, (224, 224, 3), "jpeg", 0)
        decoded = decode_limit(small, jpeg)
        yield (
            "small, 32 JPEG 224x224 a request: to decoding and inference in-process",
            32 * closed(port, jpeg, 4, 1, seconds) / decoded,
        )
        png = synthetic_requests("small", "", 1, (28, 28, 1), "png", 0)
        calls = closed(port, png, 8, 8, seconds)
        with tempfile.TemporaryDirectory() as folder, transport.serving("echo aio", repository, Path(folder)) as (echo_port, _):
            yield (
                "small, one PNG 28x28 a request, 64 in flight: calls/s to the empty echo's",
                calls / closed(echo_port, png, 8, 8, seconds),
            )
        yield "peak RSS, small, MB", peak_rss(pid)
    with serving(repository, only="r18") as (port, _):
        one = synthetic_requests("r18", "", 1, (32, 32, 3), "pixels", 0)
        for connections in (4, 8):
            name = f"r18, {connections**2} in flight: to the limit"
            yield name, r18_limit.share(partial(closed, port, one, connections, connections, seconds))
        capacity = closed(port, one, 8, 8, seconds)
        alone = bench(port, one, seconds, concurrency=1)
        service = alone.answered.get_value_at_percentile(50) / 1e6
        outcome = bench(port, one, 3 * seconds, rate=capacity / 2)
        p99 = outcome.answered.get_value_at_percentile(99) / 1e6
        yield "r18, Poisson at half of capacity: p99 to the time of one alone", p99 / service
        outcome = bench(port, one, 2 * seconds, rate=2 * capacity, timeout_seconds=DEADLINE_SECONDS)
        yield "r18, twice its capacity, deadline 100 ms: answered in time, to capacity", outcome.requests_per_second / capacity
        yield "... refused: p50, ms", outcome.refused.get_value_at_percentile(50) / 1000
    with serving(repository, only="r18-int8") as (port, _):
        one = synthetic_requests("r18-int8", "", 1, (32, 32, 3), "pixels", 0)
        yield "r18 int8, 64 in flight: to the limit of fp32", r18_limit.share(partial(closed, port, one, 8, 8, seconds))


def closed(port: int, requests: Sequence[bytes], connections: int, streams: int, seconds: float) -> float:
    """Calls answered a second by a closed loop of h2load, after a shorter one to warm up. All carry the first request."""
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder) / "body"
        body.write_bytes(h2load.framed(pb.ClassifyRequest.FromString(requests[0])))
        h2load.load(port, body, connections, streams, seconds=seconds / 4)
        return h2load.load(port, body, connections, streams, seconds=seconds).calls_per_second


def bench(port: int, requests: tuple[bytes, ...], seconds: float, **kind: Any) -> Outcome:
    """A load of `convoy bench`."""
    return run(Load(f"127.0.0.1:{port}", requests, seconds, **kind))


class Limit:
    """What ONNX Runtime does alone: the best of one session on all cores, and of one session a core."""

    def __init__(self, path: Path) -> None:
        kinds = ([load_model(path, "cpu", CPUS)], [load_model(path, "cpu", 1) for _ in range(CPUS)])
        self.images_a_second, self._batch, self._sessions = max(
            ((at_once(sessions, batch), batch, sessions) for sessions in kinds for batch in BATCHES), key=lambda found: found[0]
        )

    def share(self, measure: Callable[[], float]) -> float:
        """The images a second of a load, as a share of what ONNX Runtime does alone at that time."""
        before = at_once(self._sessions, self._batch)
        images = measure()
        return images / statistics.mean((before, at_once(self._sessions, self._batch)))


def at_once(sessions: Sequence[Model], batch: int, seconds: float = 0.4) -> float:
    """Images a second of several sessions, each in a thread of its own."""
    images = np.random.default_rng(0).integers(0, 256, (batch, *sessions[0].input.shape), np.uint8)

    def work(model: Model) -> float:
        model.predict(images)
        barrier.wait()
        start = time.monotonic()
        done = 0
        while (passed := time.monotonic() - start) < seconds:
            model.predict(images)
            done += batch
        return done / passed

    barrier = threading.Barrier(len(sessions))
    with ThreadPoolExecutor(len(sessions)) as pool:
        return sum(pool.map(work, sessions))


def decode_limit(path: Path, requests: Sequence[bytes], seconds: float = 1.0) -> float:
    """Images a second of decoding and inference in this process, a thread a core, each with the pictures of a request at a time."""
    pictures = [[item.encoded for item in pb.ClassifyRequest.FromString(request).items] for request in requests]
    sessions = [load_model(path, "cpu", 1) for _ in range(CPUS)]
    spec = sessions[0].contract.input

    def work(model: Model) -> float:
        start = time.monotonic()
        done = 0
        while (passed := time.monotonic() - start) < seconds:
            batch: NDArray[np.uint8] = np.stack([decode(data, spec, 1 << 24) for data in pictures[done % len(pictures)]])
            model.predict(batch)
            done += 1
        return done * len(pictures[0]) / passed

    with ThreadPoolExecutor(CPUS) as pool:
        return sum(pool.map(work, sessions))


@contextlib.contextmanager
def serving(repository: Path, only: str) -> Iterator[tuple[int, int]]:
    """`convoy serve` of one of the models; gives its gRPC port and its pid."""
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        models.mkdir()
        (models / only).symlink_to(repository / only)
        with transport.serving("Convoy auto", models, Path(folder)) as found:
            yield found


def peak_rss(pid: int) -> float:
    """The most memory that a process has had, in MB."""
    [line] = [line for line in io.StringIO(Path(f"/proc/{pid}/status").read_text()) if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
