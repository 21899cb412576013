"""How busy the transport's thread is: its CPU time as a counter, and a hint in the log when one process is too few.

One thread drives gRPC. When it computes all the time while CPUs are idle, more processes help (`--workers`), and nothing else does.
The counter's rate is the share of a CPU that the thread takes. It costs the thread nothing: the kernel counts.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

log = logging.getLogger(__name__)

WINDOW_SECONDS = 30.0
"""The load is judged over this time: shorter bursts are what queues are for."""

SILENT_SECONDS = 3600.0
"""After a hint there is none for so long."""

BUSY_SHARE = 0.9
IDLE_CPUS = 0.5
"""The thread is the limit if it takes this share of a CPU while so many CPUs are idle."""


class ThreadTime:
    """CPU seconds that one thread of this process has used, as Linux counts them; 0 elsewhere."""

    def __init__(self, native_id: Callable[[], int | None]) -> None:
        """`native_id`: the thread's number in the kernel; None before it has started."""
        self._native_id = native_id
        self._seconds = 0.0

    def __call__(self) -> float:
        """Until now; of a thread that has ended, until it was last asked for."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = Path(f"/proc/self/task/{self._native_id()}/stat").read_text(errors="replace")
            used = stat.rpartition(")")[2].split()[11:13]  # utime and stime, in the kernel's ticks
            self._seconds = sum(map(int, used)) / os.sysconf("SC_CLK_TCK")
        return self._seconds


class TransportMetrics(Collector):
    """`convoy_transport_busy_seconds_total` of a worker; a server without workers is worker 1."""

    def __init__(self, worker: int, busy_seconds: Callable[[], float]) -> None:
        self._worker = str(worker)
        self._busy_seconds = busy_seconds

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        busy = CounterMetricFamily(
            "convoy_transport_busy_seconds", "CPU seconds of the thread that drives gRPC; at a rate of 1 it is the limit",
            labels=["worker"],
        )  # fmt: skip
        busy.add_metric([self._worker], self._busy_seconds())
        yield busy


class Load(NamedTuple):
    """CPU seconds used since some time in the past: by the transport's thread, by this process, and idle ones of the machine."""

    transport: float
    process: float
    idle: float

    def since(self, before: "Load", seconds: float) -> "Load":
        """The CPUs in use between two times."""
        return Load(*((now - then) / seconds for now, then in zip(self, before, strict=True)))


def hint(load: Load, cpus: int) -> str:
    """What to do if the transport's thread is the limit; empty if it is not.

    Args:
        load: CPUs in use.
        cpus: those that this process may use, by affinity and quota.
    """
    idle = min(load.idle, cpus - load.process)
    if load.transport < BUSY_SHARE or idle < IDLE_CPUS:
        return ""
    return (
        f"the gRPC thread is the limit: it computed for {load.transport:.0%} of the last {WINDOW_SECONDS:.0f} s, while "
        f"{idle:.1f} of {cpus} CPUs were idle. --workers {cpus} uses them, if clients have several connections; each worker loads "
        "all models"
    )


def idle_seconds(stat: Path = Path("/proc/stat")) -> float:
    """CPU seconds in which the machine's CPUs had nothing to do, all together; 0 where the system does not say."""
    try:
        fields = stat.read_text().split(maxsplit=6)
        return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")  # idle and iowait
    except (OSError, ValueError, IndexError):
        return 0.0


def watch_in_background(busy_seconds: Callable[[], float], cpus: int) -> None:
    """Logs the hint when it is due, from a daemon thread, for as long as the process lives."""
    with contextlib.suppress(RuntimeError):  # no more threads: others need them more
        threading.Thread(target=_watch, args=(busy_seconds, cpus), name="watch-load", daemon=True).start()


def _watch(busy_seconds: Callable[[], float], cpus: int) -> None:
    before, silent_until = _now(busy_seconds), 0.0
    measured_at = time.monotonic()
    while True:
        time.sleep(WINDOW_SECONDS)
        load, now = _now(busy_seconds), time.monotonic()
        message = hint(load.since(before, now - measured_at), cpus)
        if message and now > silent_until:
            log.warning("%s", message)
            silent_until = now + SILENT_SECONDS
        before, measured_at = load, now


def _now(busy_seconds: Callable[[], float]) -> Load:
    return Load(busy_seconds(), time.process_time(), idle_seconds())
