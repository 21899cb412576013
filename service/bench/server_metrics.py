"""A server's own measurements of a load: the difference of two scrapes of its `/metrics`."""

import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from service.errors import UserError
from service.requests.phases import PHASES
from service.sockets.loopback import is_loopback

_TIMEOUT_SECONDS = 10.0

_SUMS = ("convoy_batch_items_count", "convoy_batch_items_sum", "convoy_rejections_total", "process_cpu_seconds_total",
         "process_start_time_seconds")  # fmt: skip
"""In the order of Snapshot's fields. Its `requests` are the rejections here plus the answered ones."""

Buckets = list[tuple[float, float]]
"""A cumulative histogram: (upper bound, count of values up to it), the last bound infinite."""


@dataclass(frozen=True)
class Snapshot:
    """A server's counters of one model since it started; `process_cpu_seconds` is of the whole process.

    `requests` are those answered and refused, each message of a stream counted (`grpc_server_handled_total` counts streams).
    """

    phases: Mapping[str, Buckets]
    batches: float
    batch_items: float
    requests: float
    process_cpu_seconds: float
    started: float
    """Start time in seconds since 1970; of the supervisor if there are several workers."""

    def since(self, earlier: "Snapshot") -> "Snapshot | None":
        """The difference to an earlier snapshot; None if the server was restarted or a counter was reset between the two."""
        if self.started != earlier.started:
            return None
        phases = {
            phase: [
                (bound, count - before)
                for (bound, count), (_, before) in zip(
                    buckets, earlier.phases.get(phase) or [(0.0, 0.0)] * len(buckets), strict=True
                )
            ]
            for phase, buckets in self.phases.items()
        }
        difference = Snapshot(
            phases,
            self.batches - earlier.batches,
            self.batch_items - earlier.batch_items,
            self.requests - earlier.requests,
            self.process_cpu_seconds - earlier.process_cpu_seconds,
            self.started,
        )
        counted = [difference.batches, difference.batch_items, difference.requests, difference.process_cpu_seconds]
        counted += [count for buckets in phases.values() for _, count in buckets]
        return difference if min(counted) >= 0 else None


def scrape(url: str, model: str, context: ssl.SSLContext | None = None, token: str | None = None) -> Snapshot:
    """Reads `url`, such as http://127.0.0.1:8002/metrics, for one model, all its versions together. `token` is for `--auth`.

    `context` says which certificates are trusted and shown over https.

    Raises:
        UserError: it cannot be read, or is not in Prometheus' text format.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"--metrics {url!r}: expected a URL such as http://127.0.0.1:8002/metrics")
    try:
        with _open(url, context, token) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
    except (OSError, urllib.error.URLError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"cannot read metrics at {url}{_through(url)}: {error}") from None
    phases: dict[str, dict[float, float]] = {phase: {} for phase in PHASES}
    sums = dict.fromkeys(_SUMS, 0.0)
    answered = 0.0
    for family in families:
        for sample in family.samples:
            if sample.labels.get("model", model) != model:
                continue
            if sample.name == "convoy_phase_seconds_bucket":
                buckets = phases[sample.labels["phase"]]
                bound = float(sample.labels["le"])
                buckets[bound] = buckets.get(bound, 0.0) + sample.value
            elif sample.name == "convoy_phase_seconds_count" and sample.labels["phase"] == "inference":
                answered += sample.value
            elif sample.name in sums:
                sums[sample.name] += sample.value
    sums["convoy_rejections_total"] += answered
    return Snapshot({phase: sorted(buckets.items()) for phase, buckets in phases.items() if buckets}, *sums.values())


def may_carry_token(url: str) -> bool:
    """Whether nobody can read on the way what is sent there."""
    return url.startswith("https://") or _is_local(url)


def _open(url: str, context: ssl.SSLContext | None, token: str | None) -> Any:
    """Without the proxy of the environment for an address of this machine, as the calls go."""
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context)]
    if _is_local(url):
        handlers.append(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url)  # noqa: S310 - http or https, as checked
    if token is not None:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    return urllib.request.build_opener(*handlers).open(request, timeout=_TIMEOUT_SECONDS)


def _through(url: str) -> str:
    """Names the proxy that `_open` takes, if it takes one, without its user and password."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy is None or _is_local(url) or urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    return f" through the HTTP proxy {proxy.rpartition('@')[2].removeprefix('http://')} of ${parts.scheme}_proxy"


def _is_local(url: str) -> bool:
    return is_loopback(urlsplit(url).hostname or "")


def quantile(buckets: Buckets, q: float) -> float:
    """A quantile of a cumulative histogram, interpolated as PromQL's histogram_quantile does.

    0 for an empty histogram; never above the last finite bound.
    """
    rank = q * buckets[-1][1]
    lower, below = 0.0, 0.0
    for upper, count in buckets:
        if count >= rank:
            return lower if upper == float("inf") else lower + (upper - lower) * (rank - below) / max(count - below, 1)
        lower, below = upper, count
    return lower
