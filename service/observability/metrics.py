"""Every metric of a server process: names, labels, buckets. They go into a registry that is passed in.

Metrics that are updated by every request are in `request_metrics.py`; those of HTTP in `http/server.py`; a supervisor's own in
`workers/supervisor.py`, which must not import numpy.

Label values are bounded: models, versions and labels are those of models in the repository, methods those that the server offers.
Nothing that a client sends becomes a label.

Counters exist from the start, at 0, for every value of their labels: Prometheus' `rate` does not see the step from a missing series
to 1, and would miss the first error of its kind.
"""

import platform
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge, Info, PlatformCollector, ProcessCollector

from service import compiled, convoy_version
from service.observability.request_metrics import ModelMetrics, RequestMetrics, RpcMetrics
from service.observability.transport_load import TransportMetrics

REASONS = ("queue_full", "deadline", "cancelled", "draining", "invalid", "failed", "forbidden", "quota")
OUTCOMES = ("ready", "golden_mismatch", "invalid", "failed")


class Metrics:
    """The metrics of one server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        build = Info("convoy_build", "Versions of Convoy and of what it runs on", registry=registry)
        known = {"version": convoy_version(), "build": compiled.build(), "python": platform.python_version()}
        build.info(known | _versions("grpcio", "onnxruntime"))

        self._transport = Gauge("convoy_transport_info", "1 for the gRPC transport in use", ("transport",), registry=registry)

        self._requests = RequestMetrics()
        registry.register(self._requests)

        served = ("model", "version")
        self._inflight = Gauge("convoy_inflight_requests", "Requests in flight", ("model",), registry=registry)
        self._inflight_bytes = Gauge("convoy_inflight_bytes", "Bytes of requests in flight, of both ports", registry=registry)
        self._rejections = Counter("convoy_rejections", "Requests not answered, by reason", ("model", "reason"), registry=registry)
        self._info = Gauge(
            "convoy_model_info",
            "1 for each version served",
            (*served, "provider", "precision", "digest", "signer"),
            registry=registry,
        )
        self._load_seconds = Gauge("convoy_model_load_seconds", "Seconds the last load took", ("model",), registry=registry)
        self._loads = Counter("convoy_model_loads", "Attempts to load a version", ("model", "outcome"), registry=registry)
        self._ort_threads = Gauge(
            "convoy_ort_threads", "Threads that ONNX Runtime computes a model with", ("model",), registry=registry
        )

    def watch_bytes(self, in_flight: Callable[[], float]) -> None:
        """Exposes the bytes of requests in flight, which each scrape asks `in_flight` for."""
        self._inflight_bytes.set_function(in_flight)

    def transport_chosen(self, name: str) -> None:
        """The gRPC transport in use: `fast` or `public`."""
        self._transport.labels(name).set(1)

    def watch_transport(self, worker: int, busy_seconds: Callable[[], float]) -> None:
        """Exposes the CPU time of the transport's thread, which each scrape asks `busy_seconds` for."""
        self.registry.register(TransportMetrics(worker, busy_seconds))

    def rpc_method(self, kind: str, service: str, method: str) -> RpcMetrics:
        """New metrics for a gRPC method."""
        return self._requests.method(kind, service, method)

    def rejected(self, model: str, reason: str) -> None:
        """A request to a served model failed."""
        self._rejections.labels(model, reason).inc()

    def model_loaded(self, model: str, version: str, labels: Sequence[str], probabilities: bool) -> ModelMetrics:
        """The metrics of a version that has been loaded."""
        return self._requests.model(model, version, labels, probabilities)

    def watch_model(self, model: str, inflight: Callable[[], float], threads: int) -> None:
        """Exposes a model's running requests, which each scrape asks `inflight` for, and ONNX Runtime's `threads`."""
        for reason in REASONS:
            self._rejections.labels(model, reason)
        self._inflight.labels(model).set_function(inflight)
        self._ort_threads.labels(model).set(threads)

    def watch_failures(self, failures: Callable[[], Iterable[tuple[str, str, str]]]) -> None:
        """Exposes failed loads: each scrape asks `failures` for (model, version, outcome) of each."""
        self._requests.failures = failures

    def model_forgotten(self, model: str, version: str) -> None:
        """Drops the series of a version that is no longer served, so that they do not grow without end."""
        self._requests.forget(model, version)

    def model_serving(self, model: str, version: str, provider: str, precision: str, digest: str, signer: str) -> None:
        """A version serves from now on."""
        self._info.labels(model, version, provider, precision, digest, signer).set(1)

    def model_retired(self, model: str, version: str, provider: str, precision: str, digest: str, signer: str) -> None:
        """A version serves no longer."""
        self._info.remove(model, version, provider, precision, digest, signer)

    def model_unloaded(self, model: str) -> None:
        """No version of the model is served any more."""
        for gauge in (self._inflight, self._ort_threads):
            gauge.remove(model)

    def load_ended(self, model: str, outcome: str, seconds: float | None) -> None:
        """A load has ended with one of OUTCOMES; `seconds` is None if it failed before it began."""
        for possible in OUTCOMES:
            self._loads.labels(model, possible)
        self._loads.labels(model, outcome).inc()
        if seconds is not None:
            self._load_seconds.labels(model).set(seconds)


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # onnxruntime's GPU build goes by another name
    return found
