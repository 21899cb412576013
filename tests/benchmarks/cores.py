"""How far one machine goes: what the parts of a call cost in CPU time, and what that means on 1 to 64 cores.

The server runs on one core, the client (h2load) on another. `perf` says where its CPU time goes: ONNX Runtime, C core, the kernel,
Python (with NumPy, protobuf and compiled modules). From that `scaling.py` computes calls a second by cores and workers, and what
Triton would do, between two estimates of its costs. What can be run here is run, and held against the model:
one core, two cores, one worker, two workers, with the client on the same cores.

Not simulated are more cores than there are: clock rates, caches and memory of a larger machine are another's.

On a machine that others use, calls a second say something only ahead of them (`echo -19 > /proc/self/autogroup`, in a session).

Usage: python -m tests.benchmarks.cores [--rounds 7] [--seconds 1] [--models REPOSITORY] [--json FILE]
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from service.bench.images import synthetic_requests
from service.model.inference import Model
from service.model.loading import load_model
from tests.benchmarks import h2load, scaling
from tests.benchmarks.scaling import SHORT, Call, Rate
from tests.benchmarks.serving import make_models
from tests.benchmarks.transport import cpu_seconds, serving
from tests.benchmarks.workers import processes

BATCHES = (1, 2, 4, 8, 16, 32, 64)
CORES = (1, 2, 4, 8, 16, 32, 64)
CONNECTIONS = (4, 8, 16, 64, 256, 1024)
SERVER_CORE, CLIENT_CORE = {0}, {1}
BATCH_SECONDS, WARM_UP_SECONDS = 0.05, 0.5
CACHE_BYTES = 2 << 20
"""Weights below so many bytes stay in a core's own cache."""

_PARTS = {
    "inference": ("onnxruntime",),
    "c_core": ("cygrpc",),
    "kernel": ("kernel", "vdso", "[unknown]"),
    "python": ("python", "multiarray", "_message", "_struct", "_bisect", "__mypyc", "service", "convoy"),
}
"""Words of the names of libraries, as `perf` gives them; `other` for the rest."""


class Load(NamedTuple):
    """A load, and what is known of Triton under it: calls/s of Convoy with one worker to Triton with one instance.

    The ratios are medians of 8 rounds on two cores at an older commit, float32 by tensor. 0: it says nothing of Triton's costs.
    """

    name: str
    model: str
    shape: tuple[int, int, int]
    items: int
    connections: int
    streams: int
    to_triton: float


LOADS = (
    Load("small, 1 in flight", "small", (28, 28, 1), 1, 1, 1, 0.89),
    Load("small, 16 in flight", "small", (28, 28, 1), 1, 4, 4, 0.92),
    Load("small, 64 in flight", "small", (28, 28, 1), 1, 8, 8, 0.79),
    Load("small, 32 a request", "small", (28, 28, 1), 32, 4, 1, 1.01),
    Load("r18, 16 in flight", "r18", (32, 32, 3), 1, 4, 4, 0.0),
)
"""At 1 in flight no resource is used up: its parts are measured, and nothing is computed from them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--models", type=Path, help="a repository of `small` and `r18`; trained afresh if not given")
    parser.add_argument("--json", type=Path, help="what was measured, for another look at the model")
    arguments = parser.parse_args()
    h2load.needed()
    if shutil.which("perf") is None or len(os.sched_getaffinity(0)) < 2:
        sys.exit("needed are two cores and perf: apt-get install linux-perf")
    console = Console(highlight=False, width=170)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = arguments.models or make_models(folder)
        curves = {model: inference(models / model / "1" / "model.onnx", arguments.rounds) for model in ("small", "r18")}
        calls = [measure(load, models, folder, curves[load.model], arguments.rounds, arguments.seconds) for load in LOADS]
        if arguments.json:
            arguments.json.write_text(json.dumps([asdict(call) for call in calls], indent=1) + "\n")
        report_parts(console, curves, calls)
        busy = list(zip(LOADS, calls, strict=True))[1:]
        validate(console, busy, models, folder, arguments.rounds, arguments.seconds)
    kind = scaling.kind_overhead(calls[1])
    by_ratio = {load.name: scaling.overhead_by_ratio(call, load.to_triton) for load, call in busy if load.to_triton}
    for load, call in busy:
        report_scaling(console, call, (by_ratio.get(load.name, by_ratio["small, 64 in flight"]), kind))
    report_connections(console)


class Curve(NamedTuple):
    """Of a model in one process: seconds of CPU by items of a batch, and what a second thread and a second process do to it."""

    cpu: dict[int, float]
    parallel: dict[int, float]
    threads_cost: dict[int, float]
    beside_another: float
    weight_bytes: int


def inference(path: Path, rounds: int) -> Curve:
    """Measures a model by turns: one thread, two threads, and one thread while another process does the same on the other core."""
    one = load_model(path, "cpu", 1)
    with on_cores(CLIENT_CORE):  # its second thread; the first is this one
        two = load_model(path, "cpu", 2)
    found: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for items in BATCHES:
            with on_cores(SERVER_CORE):
                found.setdefault((items, 1), []).append(_a_batch(one, items))
                found.setdefault((items, 2), []).append(_a_batch(two, items))
    cpu = {items: statistics.median(cpu for cpu, _ in found[items, 1]) for items in BATCHES}
    speedup = {items: min(w for _, w in found[items, 1]) / min(w for _, w in found[items, 2]) for items in BATCHES}
    cost = {items: statistics.median(cpu for cpu, _ in found[items, 2]) / cpu[items] for items in BATCHES}
    return Curve(
        cpu, {items: scaling.parallel_share(value) for items, value in speedup.items()}, cost,
        statistics.median(_beside_another(one, path, cpu[16]) for _ in range(rounds)), path.stat().st_size,
    )  # fmt: skip


def _beside_another(model: Model, path: Path, alone: float) -> float:
    """What a batch of 16 costs while another process computes such batches on the other core, to what it costs alone."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_compute, args=(path, ready, done), daemon=True)
    with on_cores(CLIENT_CORE):
        other.start()
    ready.wait(60)
    with on_cores(SERVER_CORE):
        cpu = _a_batch(model, 16)[0]
    done.set()
    other.join()
    return cpu / alone


def _compute(path: Path, ready: Event, done: Event) -> None:
    model = load_model(path, "cpu", 1)
    ready.set()
    while not done.is_set():
        model.predict(model.input.zeros(16))


def _a_batch(model: Model, items: int) -> tuple[float, float]:
    """Of one batch: the mean seconds of CPU, and the least by the clock."""
    images = model.input.zeros(items)
    model.predict(images)
    cpu, start, count, least = time.process_time(), time.perf_counter(), 0, float("inf")
    while count < 3 or time.perf_counter() - start < BATCH_SECONDS:
        begun = time.perf_counter()
        model.predict(images)
        least = min(least, time.perf_counter() - begun)
        count += 1
    return (time.process_time() - cpu) / count, least


def measure(load: Load, models: Path, folder: Path, curve: Curve, rounds: int, seconds: float) -> Call:
    """What a call costs with the server on one core and the client on another: medians of the rounds."""
    found: dict[str, list[float]] = {}
    with server(load, models, folder, SERVER_CORE) as port:
        for _ in range(rounds):
            for part, value in _a_round(load, port, folder, seconds).items():
                found.setdefault(part, []).append(value)
    cost = {part: statistics.median(values) for part, values in found.items()}
    nearest = min(BATCHES, key=lambda items: abs(items - cost["batch"]))
    traffic = curve.weight_bytes / max(1.0, cost["batch"] / load.items) if curve.weight_bytes > CACHE_BYTES else 0.0
    return Call(
        load.name, load.items, cost["python"], cost["c_core"], cost["kernel"], cost["other"], cost["inference"],
        1e6 * curve.cpu[1], cost["client"], cost["batch"], curve.parallel[nearest], curve.threads_cost[nearest], traffic,
    )  # fmt: skip


def _a_round(load: Load, port: "Port", folder: Path, seconds: float) -> dict[str, float]:
    """Microseconds a call, by part, and the items of a batch."""
    recorded = folder / "perf.data"
    pids = processes(port.pid)
    perf = subprocess.Popen(
        ["perf", "record", "-q", "-e", "cpu-clock", "-F", "1499", "-p", ",".join(map(str, pids)), "-o", str(recorded)],
        stderr=subprocess.DEVNULL,
    )
    time.sleep(0.3)
    try:
        done = closed_loop(load, port, folder, seconds, CLIENT_CORE)
    finally:
        perf.send_signal(signal.SIGINT)
        perf.wait(30)
    report = subprocess.run(
        ["perf", "report", "-i", str(recorded), "--sort", "dso", "--stdio"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    shares = dict.fromkeys([*_PARTS, "other"], 0.0)
    for share, library in re.findall(r"^ +([\d.]+)% +(\S.*?) *$", report, re.M):
        part = next((part for part, words in _PARTS.items() if any(word in library for word in words)), "other")
        shares[part] += float(share)
    total = sum(shares.values())
    return {part: done.server_us * share / total for part, share in shares.items()} | {
        "client": done.client_us,
        "batch": done.batch,
    }


class Port(NamedTuple):
    """A server that runs."""

    grpc: int
    http: int
    pid: int


class Done(NamedTuple):
    """What a closed loop came to: microseconds of CPU are a call's."""

    calls: int
    calls_per_second: float
    server_us: float
    client_us: float
    batch: float


def closed_loop(load: Load, port: Port, folder: Path, seconds: float, cores: set[int], calls: int = 0) -> Done:
    """Loads a server from the cores: with so many calls, or, after a warm-up, about as many as take so many seconds."""
    body = folder / "body"
    request = synthetic_requests(load.model, "", load.items, load.shape, "pixels", 0)[0]
    body.write_bytes(struct.pack(">BI", 0, len(request)) + request)
    with on_cores(cores):
        in_flight = load.connections * load.streams
        if not calls:
            calls = 4 * in_flight
            for wanted in (WARM_UP_SECONDS, seconds):  # the first few calls say how many take so long
                done = h2load.load(port.grpc, body, load.connections, load.streams, calls=calls)
                calls = max(4 * in_flight, round(wanted * done.calls_per_second))
        batches, server_cpu, client_cpu = _batches(port), _server_seconds(port), _children_seconds()
        done = h2load.load(port.grpc, body, load.connections, load.streams, calls=calls)
    server_us = sum(1e6 * (seconds - server_cpu.get(pid, 0.0)) for pid, seconds in _server_seconds(port).items()) / done.calls
    client_us = 1e6 * (_children_seconds() - client_cpu) / done.calls
    ran = [now - then for now, then in zip(_batches(port), batches, strict=True)]
    return Done(done.calls, done.calls_per_second, server_us, client_us, ran[0] / max(1.0, ran[1]))


def _server_seconds(port: Port) -> dict[int, float]:
    """CPU by process; one may end meanwhile, such as that which tries models out."""
    seconds = {}
    for pid in processes(port.pid):
        with contextlib.suppress(FileNotFoundError):
            seconds[pid] = cpu_seconds(pid)
    return seconds


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _batches(port: Port) -> tuple[float, float]:
    """Items and batches so far."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port.http}/metrics", timeout=10).read().decode()
    items, count = (re.findall(rf"^convoy_batch_items_{kind}{{.*}} (.*)$", text, re.M) for kind in ("sum", "count"))
    return sum(map(float, items)), sum(map(float, count))


@contextlib.contextmanager
def server(load: Load, models: Path, folder: Path, cores: set[int], workers: int = 1) -> Iterator[Port]:
    """`convoy serve` on the cores."""
    repository = folder / f"only-{load.model}"
    if not repository.exists():
        repository.mkdir()
        (repository / load.model).symlink_to((models / load.model).resolve())
    with on_cores(cores):
        running = serving("Convoy fast", repository, folder, "--workers", str(workers))
        grpc_port, pid = running.__enter__()
    with contextlib.ExitStack() as stack:
        stack.push(running)
        yield Port(grpc_port, json.loads((folder / "ready").read_text())["http_port"], pid)


@contextlib.contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """What is started meanwhile runs on these cores, and so does this thread."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def report_parts(console: Console, curves: dict[str, Curve], calls: Sequence[Call]) -> None:
    """Prints what was measured."""
    table = Table("inference: CPU us an item", *map(str, BATCHES), "beside another process", box=None)
    for model, curve in curves.items():
        row = [f"{1e6 * curve.cpu[items] / items:,.0f}" for items in BATCHES]
        table.add_row(f"{model}, one thread", *row, f"{curve.beside_another:.2f}")
        table.add_row(f"{model}, speed-up of two", *(f"{1 / (1 - curve.parallel[items] / 2):.2f}" for items in BATCHES))
    console.print(table)
    table = Table("CPU us a call", "batch", "Python", "C core", "kernel", "other", "inference", "all", "client", box=None)
    for call in calls:
        parts = (call.python, call.c_core, call.kernel, call.other, call.inference, call.serial + call.inference, call.client)
        table.add_row(call.name, f"{call.batch:.1f}", *(f"{part:,.0f}" for part in parts))
    console.print(table)


PLACES = {
    "1 worker on one core, client on the other": (1, SERVER_CORE, CLIENT_CORE),
    "1 worker and client on one core": (1, SERVER_CORE, SERVER_CORE),
    "1 worker and client on two cores": (1, SERVER_CORE | CLIENT_CORE, SERVER_CORE | CLIENT_CORE),
    "2 workers and client on two cores": (2, SERVER_CORE | CLIENT_CORE, SERVER_CORE | CLIENT_CORE),
}


def validate(
    console: Console, loads: Sequence[tuple[Load, Call]], models: Path, folder: Path, rounds: int, seconds: float
) -> None:  # fmt: skip
    """Prints calls a second as the model has them and as they are."""
    table = Table("calls/s", "", "predicted", "measured", "to predicted", "limit", box=None)
    for load, call in loads:
        for place, (workers, cores, client_cores) in PLACES.items():
            predicted = scaling.convoy(call, len(cores), workers, client_here=cores == client_cores)
            with server(load, models, folder, cores, workers) as port:
                measured = [closed_loop(load, port, folder, seconds, client_cores).calls_per_second for _ in range(rounds)]
            seen = statistics.median(measured)
            ratio = seen / predicted.calls_per_second
            table.add_row(load.name, place, f"{predicted.calls_per_second:,.0f}", f"{seen:,.0f}", f"{ratio:.2f}", predicted.limit)
    console.print(table)


def report_scaling(console: Console, call: Call, overheads: tuple[float, float]) -> None:
    """Prints images a second by cores, with the resource that is used up; for Triton with both estimates of what it adds.

    The rows of a device are for one that takes no time: what the host can feed.
    """
    table = Table(f"{call.name}: images/s", *(f"{cores} cores" for cores in CORES), box=None)

    def add(name: str, *servers: Callable[[int], Rate]) -> None:
        cells = []
        for cores in CORES:
            rates = [rate_of(cores) for rate_of in servers]
            cells.append(f"{' to '.join(f'{call.items * each.calls_per_second:,.0f}' for each in rates)} {SHORT[rates[-1].limit]}")
        table.add_row(name, *cells)

    def triton(instances: Callable[[int], int], handlers: Callable[[int], int]) -> list[Callable[[int], Rate]]:
        return [
            lambda cores, added=added: scaling.triton(call, cores, added, instances(cores), handlers(cores))  # type: ignore[misc]
            for added in overheads
        ]

    add("Convoy, 1 worker", lambda cores: scaling.convoy(call, cores, 1))
    add("Convoy, best workers", lambda cores: scaling.best_convoy(call, cores)[1])
    table.add_row("these are", *(str(scaling.best_convoy(call, cores)[0]) for cores in CORES))
    add("Triton, 1 instance", *triton(lambda _: 1, lambda _: scaling.HANDLER_THREADS))
    add("Triton, an instance a core", *triton(lambda cores: cores, lambda _: scaling.HANDLER_THREADS))
    add("... and a gRPC handler a core", *triton(lambda cores: cores, lambda cores: max(2, cores)))
    add("a device, 1 worker", lambda cores: scaling.on_device(call, cores))
    add("a device, fronts and one engine", lambda cores: scaling.split(call, cores, cores))
    most = scaling.convoy(call, CORES[-1], CORES[-1]).calls_per_second
    console.print(table)
    console.print(
        f"Triton adds {overheads[0]:.0f} to {overheads[1]:.0f} us a call. "
        f"Weights read at {CORES[-1]} cores: {most * call.traffic_bytes / 1e9:.1f} GB/s\n"
    )


def report_connections(console: Console) -> None:
    """Prints what share of workers has no connection, and so nothing to do, and in brackets what it would be by chance."""
    table = Table("workers without a connection", *(f"{connections} connections" for connections in CONNECTIONS), box=None)
    for workers in CORES[1:]:
        pairs = [[scaling.idle_workers(workers, each, at_random=chance) for chance in (False, True)] for each in CONNECTIONS]
        table.add_row(f"of {workers}", *(f"{spread:.0%} ({chance:.0%})" for spread, chance in pairs))
    console.print(table)


if __name__ == "__main__":
    main()
