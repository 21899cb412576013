"""Every metric of a server: names, labels, buckets. Nothing here is global: a registry comes in.

What is counted of HTTP is in `http/server.py`, and a supervisor's own is in `supervisor.py`, which cannot have numpy.

Label values are bounded: models, versions and labels are those of models that were loaded from the repository, methods are those
that the server offers. What a client sends never becomes a label.

What is observed of every request is tallied (`histogram.py`) and counted when FOLD of them wait, or when somebody scrapes. Other
metrics are prometheus_client's own.

Counters are there from the start, at 0, for every value that their labels can have: `rate` in Prometheus does not see the step from
nothing to 1, so that an error which comes as the first of its kind would go unseen.

The buckets that the durations of a request fell into keep the id of its trace as their exemplar, if that trace is recorded, until
another comes. Scrapers that ask for OpenMetrics get them: from a slow bucket one click leads to a request that was in it.
"""

import platform
import threading
import time
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, PlatformCollector, ProcessCollector
from prometheus_client import Info as InfoMetric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from service import DISTRIBUTION
from service.observability.histogram import FOLD, Histogram, Total, add, taken
from service.observability.trace_context import TraceContext
from service.phases import PHASES, Phases

REASONS = ("queue_full", "deadline", "cancelled", "draining", "invalid", "failed")
OUTCOMES = ("ready", "golden_mismatch", "invalid", "failed")
CODES = (
    "OK", "CANCELLED", "DEADLINE_EXCEEDED", "FAILED_PRECONDITION", "INTERNAL", "INVALID_ARGUMENT", "NOT_FOUND",
    "RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNIMPLEMENTED",
)  # fmt: skip
"""The gRPC codes that a method here can end with; see `rpc/status.py`."""

OTHER_LABEL = "other"
MAX_LABELS = 100

# 50 us to 10 s: from a small CNN alone on an idle server to a request that gave up waiting.
_SECONDS = (
    5e-5, 1e-4, 2e-4, 3.5e-4, 5e-4, 7.5e-4, 1e-3, 1.5e-3, 2.5e-3, 5e-3,
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_ITEMS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
_CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)


class Statistics(NamedTuple):
    """What happened to the requests of one version of a model so far.

    `phases` is by the names of PHASES, of the requests that were answered; `failures` by reason; `batches` by items in the batch.
    `last_batch` is when a batch ended last, in seconds since 1970, 0 if none did.
    """

    phases: dict[str, Total]
    items: int
    failures: dict[str, Total]
    batches: dict[int, Total]
    last_batch: float


_NONE = -1
"""In place of the best label of an item without one."""


class ModelMetrics:
    """The metrics of one version of a model."""

    def __init__(self, model: str, version: str, labels: Sequence[str], probabilities: bool) -> None:
        """`probabilities` says whether the scores are such, and not a foreign model's numbers of any kind."""
        self.labels = tuple(labels)
        self.probabilities = probabilities
        self._model_version = (model, version)
        self._lock = threading.Lock()
        self._phases = self._decode, self._queue, self._inference, self._encode = tuple(Histogram(_SECONDS) for _ in PHASES)
        self._batch_items = Histogram(_ITEMS)
        self._confidence = Histogram(_CONFIDENCE)
        self._best: list[int] = []
        self._names = [*labels[:MAX_LABELS], *[OTHER_LABEL] * (len(labels) - MAX_LABELS)]
        self._predictions = dict.fromkeys(self._names, 0)
        self._items = 0
        self._new_batches: list[tuple[int, float]] = []
        self._batches: dict[int, Total] = {}
        self._last_batch = 0.0
        self._failures: dict[str, Total] = {}
        self._limits: tuple[int, int] | None = None
        self._queued_items: Callable[[], int] = int
        self._fell_back = False

    def batch(self, items: int, seconds: float) -> None:
        """A batch of `items` ran."""
        self._batch_items.observe(items)
        self._new_batches.append((items, seconds))
        self._last_batch = time.time()

    def failed(self, reason: str, seconds: float) -> None:
        """A request was not answered, so many seconds after it had joined the queue."""
        with self._lock:
            add(self._failures, reason, seconds)
            if len(self._new_batches) >= FOLD:  # all that ran was of requests that were not answered
                self._fold()

    def serving(self, queue_limit_items: int, batch_limit_items: int, queued_items: Callable[[], int], *, fell_back: bool) -> None:
        """The version is about to serve within these limits, `fell_back` from a GPU to the CPU or not.

        `queued_items` is asked how many items wait, when somebody scrapes.
        """
        self._limits = (queue_limit_items, batch_limit_items)
        self._queued_items = queued_items
        self._fell_back = fell_back

    def answered(
        self,
        phases: Phases,
        encode_seconds: float,
        results: Sequence[Sequence[tuple[int, float]]],
        trace: TraceContext | None = None,
    ) -> None:
        """A request was answered; `results` has for each item its (label index, probability), the best first."""
        decode, queue, inference = phases
        if decode is not None:
            self._decode.observe(decode)
        self._queue.observe(queue)
        self._inference.observe(inference)
        self._encode.observe(encode_seconds)
        for result in results:
            best, probability = result[0]
            if probability != probability:
                self._best.append(_NONE)  # NaN is no prediction, and would stay in the sum for good
                continue
            self._best.append(best)
            if self.probabilities:
                self._confidence.observe(probability)
        if trace is not None and trace.sampled:
            for tally, seconds in zip(self._phases, (*phases, encode_seconds), strict=True):
                if seconds is not None:
                    tally.traced(seconds, trace.trace_id)
        if len(self._best) >= FOLD:
            with self._lock:
                self._fold()

    def statistics(self) -> Statistics:
        """What happened so far."""
        with self._lock:
            self._fold()
            tallies = zip(PHASES, self._phases, strict=True)
            return Statistics(
                {phase: tally.total() for phase, tally in tallies}, self._items,
                dict(self._failures), dict(self._batches), self._last_batch,
            )  # fmt: skip

    def _fold(self) -> None:
        for items, seconds in taken(self._new_batches):
            add(self._batches, items, seconds)
        for tally in (*self._phases, self._batch_items, self._confidence):
            tally.fold()
        for best, count in Counts(taken(self._best)).items():
            self._items += count
            if best != _NONE:
                self._predictions[self._names[best]] += count

    def add_to(self, families: "_ModelFamilies") -> None:
        """Adds what happened so far to what is being exposed."""
        served = self._model_version
        with self._lock:
            self._fold()
            for phase, tally in zip(PHASES, self._phases, strict=True):
                tally.add_to(families.phase_seconds, (*served, phase))
            self._batch_items.add_to(families.batch_items, served)
            self._confidence.add_to(families.confidence, served)
            families.items.add_metric(served, self._items)
            for name, count in self._predictions.items():
                families.predictions.add_metric((*served, name), count)
            if self._limits is not None:
                for family, limit in zip((families.queue_limit, families.batch_limit), self._limits, strict=True):
                    family.add_metric(served, limit)
                families.queue.add_metric(served, self._queued_items())
                families.fallback.add_metric(served, self._fell_back)


class _ModelFamilies:
    """The metrics of all models as they are exposed."""

    def __init__(self) -> None:
        served = ("model", "version")
        self.phase_seconds = HistogramMetricFamily(
            "convoy_phase_seconds", "Seconds of a request by phase", labels=(*served, "phase")
        )
        self.batch_items = HistogramMetricFamily("convoy_batch_items", "Items in a batch", labels=served)
        self.items = CounterMetricFamily("convoy_items", "Items answered", labels=served)
        self.predictions = CounterMetricFamily("convoy_predictions", "Items by best label", labels=(*served, "label"))
        self.confidence = HistogramMetricFamily("convoy_confidence", "Probability of the best label", labels=served)
        self.queue = GaugeMetricFamily("convoy_queue_items", "Items waiting for inference", labels=served)
        self.queue_limit = GaugeMetricFamily("convoy_queue_limit_items", "Items that may wait for inference", labels=served)
        self.batch_limit = GaugeMetricFamily("convoy_batch_limit_items", "Items that a batch may hold", labels=served)
        self.fallback = GaugeMetricFamily(
            "convoy_provider_fallback", "1 if the version runs on the CPU because CUDA, which is installed, failed", labels=served
        )

    def all(self) -> list[Metric]:
        """In the order in which they are exposed."""
        return list(vars(self).values())


class RpcMetrics:
    """The metrics of one method that the server offers."""

    def __init__(self, kind: str, service: str, method: str) -> None:
        self._labels = (kind, service, method)
        self._lock = threading.Lock()
        self._started = 0
        self._codes: list[str] = []
        self._handled = Counts(dict.fromkeys(CODES, 0))
        self._handling_seconds = Histogram(_SECONDS)

    def started(self) -> None:
        """An RPC has come in. Called by the transport's one thread, so no lock is needed."""
        self._started += 1

    def handled(self, code: str, seconds: float, trace: TraceContext | None) -> None:
        """An RPC has ended with `code`, a name such as OK or NOT_FOUND."""
        self._codes.append(code)
        self._handling_seconds.observe(seconds)
        if trace is not None and trace.sampled:
            self._handling_seconds.traced(seconds, trace.trace_id)
        if len(self._codes) >= FOLD:
            with self._lock:
                self._fold()

    def _fold(self) -> None:
        self._handled.update(taken(self._codes))
        self._handling_seconds.fold()

    def add_to(self, started: CounterMetricFamily, handled: CounterMetricFamily, seconds: HistogramMetricFamily) -> None:
        """Adds what happened so far to what is being exposed."""
        with self._lock:
            self._fold()
            started.add_metric(self._labels, self._started)
            for code, count in self._handled.items():
                handled.add_metric((*self._labels, code), count)
            self._handling_seconds.add_to(seconds, self._labels)


class _Requests(Collector):
    """Exposes what is counted for every request and every RPC."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[tuple[str, str], ModelMetrics] = {}
        self._methods: list[RpcMetrics] = []
        self.failures: Callable[[], Iterable[tuple[str, str, str]]] = list

    def model(self, model: str, version: str, labels: Sequence[str], probabilities: bool) -> ModelMetrics:
        """The metrics of a version; those of before if it is loaded again with the same labels, as for a new policy."""
        with self._lock:
            known = self._models.get((model, version))
            if known is None or (known.labels, known.probabilities) != (tuple(labels), probabilities):
                known = self._models[model, version] = ModelMetrics(model, version, labels, probabilities)
            return known

    def forget(self, model: str, version: str) -> None:
        """Drops a version."""
        with self._lock:
            self._models.pop((model, version), None)

    def method(self, kind: str, service: str, method: str) -> RpcMetrics:
        """The metrics of a method."""
        with self._lock:
            self._methods.append(RpcMetrics(kind, service, method))
            return self._methods[-1]

    def collect(self) -> Iterable[Metric]:
        """What is exposed, as prometheus_client asks for it."""
        rpc = ("grpc_type", "grpc_service", "grpc_method")
        started = CounterMetricFamily("grpc_server_started", "RPCs started", labels=rpc)
        handled = CounterMetricFamily("grpc_server_handled", "RPCs completed, by code", labels=(*rpc, "grpc_code"))
        seconds = HistogramMetricFamily("grpc_server_handling_seconds", "Seconds from an RPC's arrival to its end", labels=rpc)
        models = _ModelFamilies()
        failed = GaugeMetricFamily(
            "convoy_model_load_failed",
            "1 for each version that should be served as it is now and could not be loaded",
            labels=("model", "version", "outcome"),
        )
        for failure in self.failures():
            failed.add_metric(failure, 1)
        with self._lock:
            for method in self._methods:
                method.add_to(started, handled, seconds)
            for model in self._models.values():
                model.add_to(models)
        return [started, handled, seconds, failed, *models.all()]


class Metrics:
    """All metrics of one server, in the registry that is given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        build = InfoMetric("convoy_build", "Versions of Convoy and of what it runs on", registry=registry)
        build.info({"version": version(DISTRIBUTION), "python": platform.python_version()} | _versions("grpcio", "onnxruntime"))

        self._transport = Gauge("convoy_transport_info", "1 for the gRPC transport in use", ("transport",), registry=registry)

        self._requests = _Requests()
        registry.register(self._requests)

        served = ("model", "version")
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
        return self._requests.method(kind, service, method)

    def rejected(self, model: str, reason: str) -> None:
        """A request to a served model was not answered."""
        self._rejections.labels(model, reason).inc()

    def model_loaded(self, model: str, version: str, labels: Sequence[str], probabilities: bool) -> ModelMetrics:
        """The metrics of a version that is about to be served."""
        return self._requests.model(model, version, labels, probabilities)

    def watch_model(self, model: str, inflight: Callable[[], float], threads: int) -> None:
        """Asks how many requests are in hand from now on, when somebody scrapes; `threads` are ONNX Runtime's."""
        for reason in REASONS:
            self._rejections.labels(model, reason)
        self._inflight.labels(model).set_function(inflight)
        self._ort_threads.labels(model).set(threads)

    def watch_failures(self, failures: Callable[[], Iterable[tuple[str, str, str]]]) -> None:
        """Asks for (model, version, outcome) of what could not be loaded, when somebody scrapes."""
        self._requests.failures = failures

    def model_forgotten(self, model: str, version: str) -> None:
        """Drops the series of a version that is no longer served: a server that lives long sees many versions."""
        self._requests.forget(model, version)

    def model_serving(self, model: str, version: str, provider: str, precision: str, digest: str) -> None:
        """A version has begun to serve."""
        self._info.labels(model, version, provider, precision, digest).set(1)

    def model_retired(self, model: str, version: str, provider: str, precision: str, digest: str) -> None:
        """A version has stopped serving."""
        self._info.remove(model, version, provider, precision, digest)

    def model_unloaded(self, model: str) -> None:
        """No version of the model is served any more."""
        for gauge in (self._inflight, self._ort_threads):
            gauge.remove(model)

    def load_ended(self, model: str, outcome: str, seconds: float | None) -> None:
        """An attempt to load a version has ended: `ready`, `golden_mismatch`, `invalid` or `failed`; None if it never began."""
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
