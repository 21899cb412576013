"""Throughput against cores, computed from what a call costs: which resource is used up first. Pure; `cores.py` measures and prints.

A server is taken for a set of resources, each busy for so many microseconds a call; it answers as many calls as the first one that
is busy all the time allows. There is no queueing in this: clients always have enough in flight, and are on other machines.

Convoy. A worker has one thread that does all but inference, under the interpreter's lock. Short inference runs on that thread too,
so that a call takes both; else an instance's thread runs it meanwhile (`Call.inline`: the rule of `service/engine/scheduling.py`).
A worker computes with cores // workers threads, at least one, as `service/engine/instances.py` shares them.

Triton. One process without such a lock: HANDLER_THREADS threads take calls from gRPC and answer (`--grpc-infer-thread-count`, 2
unless set, 128 at most), one scheduler a model forms batches, and each instance is a thread with a session. That is published. Its
parts were not measured: inference, C core and the kernel are taken to cost what they do here, since the libraries are the same.
What it adds lies between two estimates: `kind_overhead`, from CPU a call (60 us of Triton's beside 76 of Convoy's, one older run at
16 in flight), and `overhead_by_ratio`, from calls a second. Assumptions are that the scheduler takes SCHEDULER_US, that all but
inference and this is spent on the handlers' threads, and, kind to Triton, whose batches, queue and statistics have locks, that
threads disturb each other no more on many cores than on two.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

INLINE_US, INLINE_US_MULTI_ITEM = 1000.0, 300.0
HANDLER_THREADS = 2
SCHEDULER_US = 3.0
TRITON_CPU = 60 / 76

FRONT_ROUND_US, ENGINE_ROUND_US = 33.0, 33.0
"""CPU of handing a batch over through shared memory and an eventfd: measured with a prototype, see RESULTS.md."""


SHORT = {
    "a worker's thread": "t", "a worker's instance": "i", "instances": "i", "gRPC handlers": "h", "scheduler": "s", "cores": "c",
    "fronts": "f", "engine": "e", "device": "d",
}  # fmt: skip
"""Letters of the limits, for tables."""


@dataclass(frozen=True)
class Call:
    """What a call costs: microseconds of CPU time.

    Attributes:
        name: of the load.
        items: images in it.
        python, c_core, kernel, other: of the server, without inference. `other` is the allocator and other libraries of C.
        inference: with one thread.
        item: inference of one item alone.
        client: of the client.
        batch: items of a batch, on average.
        parallel: the share of inference that more threads make faster (Amdahl's law).
        threads_cost: CPU of inference with several threads to that with one.
        traffic_bytes: read from memory, at least: the weights, where the caches of a core do not hold them.
    """

    name: str
    items: int
    python: float
    c_core: float
    kernel: float
    other: float
    inference: float
    item: float
    client: float
    batch: float
    parallel: float
    threads_cost: float
    traffic_bytes: float

    @property
    def serial(self) -> float:
        """What one thread of a worker does: all but inference."""
        return self.python + self.c_core + self.kernel + self.other

    @property
    def inline(self) -> bool:
        """Whether inference runs on the transport's thread."""
        return self.inference <= INLINE_US_MULTI_ITEM if self.items > 1 else self.item <= INLINE_US

    def inference_wall(self, threads: int) -> float:
        """Of inference, by the clock, with so many threads."""
        return self.inference * (1 - self.parallel + self.parallel / threads)

    def inference_cpu(self, threads: int) -> float:
        """Of inference, of all threads."""
        return self.inference * (self.threads_cost if threads > 1 else 1.0)


class Rate(NamedTuple):
    """What a server answers, and what is used up by it."""

    calls_per_second: float
    limit: str


def convoy(call: Call, cores: int, workers: int, *, client_here: bool = False) -> Rate:
    """Convoy with so many workers on so many cores; `client_here` puts the client on them too."""
    threads = max(1, cores // workers)
    busy, limit = _worker(call, threads)
    cpu = call.serial + call.inference_cpu(threads) + (call.client if client_here else 0.0)
    return _least((1e6 * workers / busy, limit), (1e6 * cores / cpu, "cores"))


def best_convoy(call: Call, cores: int) -> tuple[int, Rate]:
    """The number of workers that answers most, the smallest within 1 % of it, and what they answer."""
    rates = [(workers, convoy(call, cores, workers)) for workers in range(1, cores + 1)]
    most = max(rate.calls_per_second for _, rate in rates)
    return next((workers, rate) for workers, rate in rates if rate.calls_per_second >= 0.99 * most)


def _worker(call: Call, threads: int) -> tuple[float, str]:
    inference = call.inference_wall(threads)
    if call.inline:
        return call.serial + inference, "a worker's thread"
    return max((inference, "a worker's instance"), (call.serial, "a worker's thread"))


def kind_overhead(call: Call) -> float:
    """Microseconds of CPU a call that Triton adds to inference, C core and kernel, at least: from its CPU a call to Convoy's."""
    return max(SCHEDULER_US, TRITON_CPU * (call.serial + call.inference) - call.inference - call.c_core - call.kernel)


def overhead_by_ratio(call: Call, ratio: float, cores: int = 2) -> float:
    """The same, at most: from calls a second, as if it left nothing of the cores idle.

    `ratio` is calls a second of Convoy with one worker to Triton with one instance, both with the client on the same cores.
    """
    mine = convoy(call, cores, 1, client_here=True).calls_per_second
    shared = call.inference_cpu(cores) + call.c_core + call.kernel + call.client
    return max(SCHEDULER_US, 1e6 * cores * ratio / mine - shared)


def triton(call: Call, cores: int, overhead: float, instances: int, handlers: int = HANDLER_THREADS) -> Rate:
    """Triton with so many instances on so many cores."""
    threads = max(1, cores // instances)
    handling = call.c_core + call.kernel + overhead - SCHEDULER_US
    return _least(
        (1e6 * instances / call.inference_wall(threads), "instances"),
        (1e6 * handlers / handling, "gRPC handlers"),
        (1e6 / SCHEDULER_US, "scheduler"),
        (1e6 * cores / (handling + SCHEDULER_US + call.inference_cpu(threads)), "cores"),
    )


def on_device(call: Call, cores: int, device_us: float = 0.0) -> Rate:
    """Convoy with one worker, whose model computes on a device that takes so many microseconds a call."""
    return _least((1e6 / call.serial, "a worker's thread"), (1e6 * cores / call.serial, "cores"), (_rate(device_us), "device"))


def split(call: Call, cores: int, fronts: int, device_us: float = 0.0) -> Rate:
    """The design that was tried as a prototype: front processes that do all but inference, and one engine that has the device.

    What a worker did is done by the fronts. To it come FRONT_ROUND_US and ENGINE_ROUND_US a batch.
    """
    batch_calls = max(1.0, call.batch / call.items)
    front, engine = call.serial + FRONT_ROUND_US / batch_calls, ENGINE_ROUND_US / batch_calls
    return _least(
        (1e6 * fronts / front, "fronts"),
        (1e6 / engine, "engine"),
        (_rate(device_us), "device"),
        (1e6 * cores / (front + engine), "cores"),
    )


def _rate(microseconds: float) -> float:
    return 1e6 / microseconds if microseconds else math.inf


def idle_workers(workers: int, connections: int, *, at_random: bool = False) -> float:
    """The share of workers without a connection: they answer nothing.

    The supervisor gives each connection to the worker that has the fewest. `at_random` is what the kernel does by itself.
    """
    return (1 - 1 / workers) ** connections if at_random else max(0.0, 1 - connections / workers)


def parallel_share(speedup: float, threads: int = 2) -> float:
    """Of Amdahl's law, from a measured speed-up: 0 for none, 1 for all."""
    return min(1.0, max(0.0, (1 - 1 / speedup) / (1 - 1 / threads)))


def _least(*rates: tuple[float, str]) -> Rate:
    return Rate(*min(rates, key=lambda rate: rate[0]))
