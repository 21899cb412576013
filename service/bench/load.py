"""A load for a server (Load) and what came of it (Outcome).

Two kinds of load. *Closed loop*: a fixed number of requests is in flight, and each answer is followed by the next request; it
finds the server's capacity. *Poisson arrivals* (open loop): requests arrive at random at a given rate whether or not earlier ones
have been answered, as from many independent users; it finds how long users wait. There a latency counts from the moment the request
was due, so that stalls of the server, or of the client, are not hidden by requests that were never sent ("coordinated omission":
Gil Tene, https://github.com/giltene/wrk2; the histograms are his too). The rate counts the answers that came before the load's end;
the latencies include later ones.

A client process costs about as much CPU as the server of a small model, so several can share a load (processes.py); each of them
(sender.py) returns what it measured as histograms, which add up without loss.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hdrh.histogram import HdrHistogram

NOT_SENT = "NOT_SENT"
"""The code of Poisson arrivals that were not sent, because too many requests were unanswered."""

_LONGEST_US = 3_600_000_000
_DIGITS = 3
_HISTOGRAMS = ("answered", "refused", "late")


def _histogram() -> HdrHistogram:
    return HdrHistogram(1, _LONGEST_US, _DIGITS)


@dataclass(frozen=True)
class Load:
    """What to send. `rate` is in requests per second, 0 for a closed loop; `seconds` is without the warm-up."""

    target: str
    requests: tuple[bytes, ...]
    """Serialised `ClassifyRequest`s, sent in turn."""
    seconds: float
    warmup_seconds: float = 1.0
    rate: float = 0.0
    concurrency: int = 1
    connections: int = 1
    processes: int = 1
    stream: bool = False
    timeout_seconds: float = 30.0
    seed: int = 0
    tls: tuple[bytes | None, ...] | None = None
    """For `grpc.ssl_channel_credentials`: the CA, the client's key, its certificate."""
    metadata: Sequence[tuple[str, str]] | None = None
    """Of each call: the token."""
    route: Sequence[tuple[str, Any]] = (("grpc.enable_http_proxy", 0),)
    """The channel options by which the target is reached; directly, unless the client goes through a proxy."""

    def share(self, index: int) -> "Load":
        """The part of the load that one of the processes sends."""
        return replace(
            self,
            rate=self.rate / self.processes,
            concurrency=part(self.concurrency, self.processes, index),
            connections=max(1, part(self.connections, self.processes, index)),
            seed=self.seed + index,
        )


def part(total: int, parts: int, index: int) -> int:
    """One of the parts, as equal as can be, that a total is divided into."""
    return total // parts + (index < total % parts)


@dataclass
class Outcome:
    """What came of a load. Latencies, in microseconds, and codes are of requests sent after the warm-up.

    `by_second` counts the answers before the load's end, including those to requests of the warm-up; `answered_after_end` counts
    later ones. `late` is how much later than due Poisson arrivals were sent.
    """

    answered: HdrHistogram = field(default_factory=_histogram)
    refused: HdrHistogram = field(default_factory=_histogram)
    late: HdrHistogram = field(default_factory=_histogram)
    codes: Counter[str] = field(default_factory=Counter)
    messages: dict[str, str] = field(default_factory=dict)
    by_second: Counter[int] = field(default_factory=Counter)
    answered_after_end: int = 0
    seconds: float = 0.0
    client_cpu_cores: list[float] = field(default_factory=list)

    @property
    def requests_per_second(self) -> float:
        """The server's throughput during the load."""
        return self.by_second.total() / self.seconds if self.seconds else 0.0

    def record(self, histogram: HdrHistogram, seconds: float) -> None:
        """Adds a duration to one of the histograms."""
        histogram.record_value(min(max(1, round(1e6 * seconds)), _LONGEST_US))

    def add(self, packed: dict[str, Any]) -> None:
        """Adds what another process measured, as `pack` returned it."""
        for name in _HISTOGRAMS:
            getattr(self, name).decode_and_add(packed[name])
        self.codes.update(packed["codes"])
        self.messages = packed["messages"] | self.messages
        self.by_second.update(packed["by_second"])
        self.answered_after_end += packed["answered_after_end"]
        self.seconds = max(self.seconds, packed["seconds"])
        self.client_cpu_cores += packed["client_cpu_cores"]

    def pack(self) -> dict[str, Any]:
        """The outcome as it is sent between processes."""
        return {**self.__dict__, **{name: getattr(self, name).encode() for name in _HISTOGRAMS}}
