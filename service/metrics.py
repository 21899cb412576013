"""Every metric that Convoy has: names, labels, buckets. Nothing here is global: a registry comes in.

Label values are bounded: models, versions and labels are those of models that were loaded from the repository, methods are those
that the server offers. What a client sends never becomes a label. Children of a metric are looked up when a model is loaded,
not when a request is answered.
"""

import logging
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client import Info as InfoMetric

log = logging.getLogger(__name__)

PHASES = ("decode", "queue", "inference", "encode")
OTHER_LABEL = "other"
MAX_LABELS = 100

# 50 us to 10 s: from a small CNN alone on an idle server to a request that gave up waiting.
_SECONDS = (
    5e-5,
    1e-4,
    2e-4,
    3.5e-4,
    5e-4,
    7.5e-4,
    1e-3,
    1.5e-3,
    2.5e-3,
    5e-3,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)


@dataclass(frozen=True, slots=True)
class Phases:
    """Seconds that a request spent in each phase; None for a phase that did not happen."""

    decode_seconds: float | None = None
    queue_seconds: float | None = None
    inference_seconds: float | None = None
    encode_seconds: float | None = None


class ModelMetrics:
    """The metrics of one loaded version of a model."""

    def __init__(self, metrics: "Metrics", model: str, version: str, labels: Sequence[str]) -> None:
        self._phases = [metrics.phase_seconds.labels(model, version, phase) for phase in PHASES]
        self._batch_items = metrics.batch_items.labels(model, version)
        self._items = metrics.items.labels(model, version)
        self._confidence = metrics.confidence.labels(model, version)
        names = [*labels[:MAX_LABELS], *[OTHER_LABEL] * (len(labels) - MAX_LABELS)]
        self._predictions = [metrics.predictions.labels(model, version, name) for name in names]

    def batch(self, items: int) -> None:
        """A batch of `items` ran."""
        self._batch_items.observe(items)

    def answered(self, phases: Phases, scores: NDArray[np.float32]) -> None:
        """A request was answered with `scores`, float32[n,K]."""
        durations = (phases.decode_seconds, phases.queue_seconds, phases.inference_seconds, phases.encode_seconds)
        for child, seconds in zip(self._phases, durations, strict=True):
            if seconds is not None:
                child.observe(seconds)
        self._items.inc(len(scores))
        for best, probability in zip(scores.argmax(axis=1).tolist(), scores.max(axis=1).tolist(), strict=True):
            self._predictions[best].inc()
            self._confidence.observe(probability)


class RpcMetrics:
    """The metrics of one method."""

    def __init__(self, started: Counter, handled: Callable[[str], Counter], handling_seconds: Histogram) -> None:
        """`handled` gives the counter of a code."""
        self._started = started
        self._handled = handled
        self._by_code: dict[str, Counter] = {}
        self._handling_seconds = handling_seconds

    def started(self) -> None:
        """An RPC has come in."""
        self._started.inc()

    def handled(self, code: str, seconds: float) -> None:
        """An RPC has ended with `code`, a name such as OK or NOT_FOUND."""
        counter = self._by_code.get(code)
        if counter is None:
            counter = self._by_code[code] = self._handled(code)
        counter.inc()
        self._handling_seconds.observe(seconds)


class Metrics:
    """All metrics of one server, in the registry that is given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        build = InfoMetric("convoy_build", "Versions of Convoy and of what it runs on", registry=registry)
        build.info({"version": version("convoy"), "python": platform.python_version()} | _versions("grpcio", "onnxruntime"))

        self._transport = Gauge("convoy_transport_info", "1 for the gRPC transport in use", ("transport",), registry=registry)

        rpc = ("grpc_type", "grpc_service", "grpc_method")
        self._started = Counter("grpc_server_started", "RPCs started", rpc, registry=registry)
        self._handled = Counter("grpc_server_handled", "RPCs completed, by code", (*rpc, "grpc_code"), registry=registry)
        self._handling_seconds = Histogram(
            "grpc_server_handling_seconds",
            "Seconds from an RPC's arrival to its end",
            rpc,
            buckets=_SECONDS,
            registry=registry,
        )

        served = ("model", "version")
        self.phase_seconds = Histogram(
            "convoy_phase_seconds",
            "Seconds of a request by phase",
            (*served, "phase"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_items = Histogram("convoy_batch_items", "Items in a batch", served, buckets=_ITEMS, registry=registry)
        self.items = Counter("convoy_items", "Items answered", served, registry=registry)
        self.predictions = Counter("convoy_predictions", "Items by best label", (*served, "label"), registry=registry)
        self.confidence = Histogram(
            "convoy_confidence", "Probability of the best label", served, buckets=_CONFIDENCE, registry=registry
        )
        self._queue_items = Gauge("convoy_queue_items", "Items waiting for inference", ("model",), registry=registry)
        self._inflight = Gauge("convoy_inflight_requests", "Requests being worked on", ("model",), registry=registry)
        self._rejections = Counter("convoy_rejections", "Requests not answered, by reason", ("model", "reason"), registry=registry)
        self._info = Gauge(
            "convoy_model_info",
            "1 for each version served",
            (*served, "provider", "precision", "digest"),
            registry=registry,
        )
        self._load_seconds = Gauge("convoy_model_load_seconds", "Seconds the last load took", ("model",), registry=registry)
        self._loads = Counter("convoy_model_loads", "Attempts to load a version", ("model", "outcome"), registry=registry)
        self._ort_threads = Gauge(
            "convoy_ort_threads", "Threads that ONNX Runtime computes a model with", ("model",), registry=registry
        )

    def transport_chosen(self, name: str) -> None:
        """This transport carries gRPC: `fast` or `public`."""
        self._transport.labels(name).set(1)

    def rpc_method(self, kind: str, service: str, method: str) -> RpcMetrics:
        """The metrics of a method that the server offers."""
        labels = (kind, service, method)
        handled = lambda code: self._handled.labels(*labels, code)  # noqa: E731 - one expression, used once
        return RpcMetrics(self._started.labels(*labels), handled, self._handling_seconds.labels(*labels))

    def rejected(self, model: str, reason: str) -> None:
        """A request to a served model was not answered."""
        self._rejections.labels(model, reason).inc()

    def model_ready(self, model: str, version: str, labels: Sequence[str]) -> ModelMetrics:
        """The metrics of a version that is about to be served."""
        return ModelMetrics(self, model, version, labels)

    def watch_model(self, model: str, queue_items: Callable[[], float], inflight: Callable[[], float]) -> None:
        """Reads the model's gauges from these functions from now on, when somebody scrapes."""
        self._queue_items.labels(model).set_function(queue_items)
        self._inflight.labels(model).set_function(inflight)

    def model_serving(self, model: str, version: str, provider: str, precision: str, digest: str, threads: int) -> None:
        """A version has begun to serve."""
        self._info.labels(model, version, provider, precision, digest).set(1)
        self._ort_threads.labels(model).set(threads)

    def model_retired(self, model: str, version: str, provider: str, precision: str, digest: str) -> None:
        """A version has stopped serving."""
        self._info.remove(model, version, provider, precision, digest)

    def model_unloaded(self, model: str) -> None:
        """No version of the model is served any more."""
        for gauge in (self._queue_items, self._inflight, self._ort_threads):
            gauge.remove(model)

    def load_ended(self, model: str, outcome: str, seconds: float) -> None:
        """An attempt to load a version has ended: `ready`, `golden_mismatch`, `invalid` or `failed`."""
        self._loads.labels(model, outcome).inc()
        self._load_seconds.labels(model).set(seconds)


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # onnxruntime's GPU build goes by another name
    return found
