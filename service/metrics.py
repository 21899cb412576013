"""Every metric that Convoy has: names, labels, buckets. Nothing here is global: a registry comes in.

Label values are bounded: models, versions and labels are those of models that were loaded from the repository, methods are those
that the server offers. What a client sends never becomes a label.

What is observed of every request is put at the end of plain lists, which needs no lock, and counted many at a time, by numpy: when
FOLD of them wait, or when somebody scrapes. prometheus_client's own histograms take a lock and a search for each number, which came
to a tenth of a small request. All other metrics are prometheus_client's own.
"""

import platform
import threading
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple, TypeVar

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, PlatformCollector, ProcessCollector
from prometheus_client import Info as InfoMetric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

PHASES = ("decode", "queue", "inference", "encode")
OTHER_LABEL = "other"
MAX_LABELS = 100
FOLD = 1024

# 50 us to 10 s: from a small CNN alone on an idle server to a request that gave up waiting.
_SECONDS = (
    5e-5, 1e-4, 2e-4, 3.5e-4, 5e-4, 7.5e-4, 1e-3, 1.5e-3, 2.5e-3, 5e-3,
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_ITEMS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
_CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)


class Phases(NamedTuple):
    """Seconds that a request spent in each phase up to its answer; None for a phase that did not happen."""

    decode_seconds: float | None
    queue_seconds: float
    inference_seconds: float


T = TypeVar("T")


def _taken(new: list[T]) -> list[T]:
    """Takes what is in a list to whose end other threads append meanwhile."""
    count = len(new)
    values = new[:count]
    del new[:count]
    return values


class _Tally:
    """A histogram in the making. `observe` is for any thread; `fold` and `add_to` are for whoever holds its owner's lock."""

    __slots__ = ("_bounds", "_counts", "_new", "_sum", "observe")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = np.array(bounds)
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0
        self._new: list[float] = []
        self.observe: Callable[[float], None] = self._new.append

    def fold(self) -> None:
        """Counts what was observed."""
        values = np.array(_taken(self._new), np.float64)
        self._counts += np.bincount(np.searchsorted(self._bounds, values), minlength=len(self._counts))
        self._sum += float(values.sum())

    def add_to(self, family: HistogramMetricFamily, labels: tuple[str, ...]) -> None:
        """Adds the counts so far to what is being exposed."""
        bounds = [*map(str, self._bounds.tolist()), "+Inf"]
        family.add_metric(labels, list(zip(bounds, self._counts.cumsum().tolist(), strict=True)), self._sum)


class ModelMetrics:
    """The metrics of one version of a model."""

    def __init__(self, model: str, version: str, labels: Sequence[str], probabilities: bool) -> None:
        """`probabilities` says whether the scores are such, and not a foreign model's numbers of any kind."""
        self.labels = tuple(labels)
        self.probabilities = probabilities
        self._model_version = (model, version)
        self._lock = threading.Lock()
        self._decode, self._queue, self._inference, self._encode = (_Tally(_SECONDS) for _ in PHASES)
        self._batch_items = _Tally(_ITEMS)
        self._confidence = _Tally(_CONFIDENCE)
        self._best: list[int] = []
        self._names = [*labels[:MAX_LABELS], *[OTHER_LABEL] * (len(labels) - MAX_LABELS)]
        self._predictions = dict.fromkeys(self._names, 0)

    def batch(self, items: int) -> None:
        """A batch of `items` ran."""
        self._batch_items.observe(items)

    def answered(self, phases: Phases, encode_seconds: float, results: Sequence[Sequence[tuple[int, float]]]) -> None:
        """A request was answered; `results` has for each item its (label index, probability), the best first."""
        decode, queue, inference = phases
        if decode is not None:
            self._decode.observe(decode)
        self._queue.observe(queue)
        self._inference.observe(inference)
        self._encode.observe(encode_seconds)
        for result in results:
            best, probability = result[0]
            self._best.append(best)
            if self.probabilities:
                self._confidence.observe(probability)
        if len(self._best) >= FOLD:
            with self._lock:
                self._fold()

    def _fold(self) -> None:
        for tally in (self._decode, self._queue, self._inference, self._encode, self._batch_items, self._confidence):
            tally.fold()
        for best, count in Counts(_taken(self._best)).items():
            self._predictions[self._names[best]] += count

    def add_to(self, families: "_ModelFamilies") -> None:
        """Adds what happened so far to what is being exposed."""
        served = self._model_version
        with self._lock:
            self._fold()
            for phase, tally in zip(PHASES, (self._decode, self._queue, self._inference, self._encode), strict=True):
                tally.add_to(families.phase_seconds, (*served, phase))
            self._batch_items.add_to(families.batch_items, served)
            self._confidence.add_to(families.confidence, served)
            families.items.add_metric(served, sum(self._predictions.values()))
            for name, count in self._predictions.items():
                families.predictions.add_metric((*served, name), count)


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

    def all(self) -> list[Metric]:
        """In the order in which they are exposed."""
        return [self.phase_seconds, self.batch_items, self.items, self.predictions, self.confidence]


class RpcMetrics:
    """The metrics of one method that the server offers."""

    def __init__(self, kind: str, service: str, method: str) -> None:
        self._labels = (kind, service, method)
        self._lock = threading.Lock()
        self._started = 0
        self._codes: list[str] = []
        self._handled: Counts[str] = Counts()
        self._handling_seconds = _Tally(_SECONDS)

    def started(self) -> None:
        """An RPC has come in. Called by the transport's one thread, so no lock is needed."""
        self._started += 1

    def handled(self, code: str, seconds: float) -> None:
        """An RPC has ended with `code`, a name such as OK or NOT_FOUND."""
        self._codes.append(code)
        self._handling_seconds.observe(seconds)
        if len(self._codes) >= FOLD:
            with self._lock:
                self._fold()

    def _fold(self) -> None:
        self._handled.update(_taken(self._codes))
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
        with self._lock:
            for method in self._methods:
                method.add_to(started, handled, seconds)
            for model in self._models.values():
                model.add_to(models)
        return [started, handled, seconds, *models.all()]


class Metrics:
    """All metrics of one server, in the registry that is given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        build = InfoMetric("convoy_build", "Versions of Convoy and of what it runs on", registry=registry)
        build.info({"version": version("convoy"), "python": platform.python_version()} | _versions("grpcio", "onnxruntime"))

        self._transport = Gauge("convoy_transport_info", "1 for the gRPC transport in use", ("transport",), registry=registry)

        self._requests = _Requests()
        registry.register(self._requests)

        served = ("model", "version")
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
        return self._requests.method(kind, service, method)

    def rejected(self, model: str, reason: str) -> None:
        """A request to a served model was not answered."""
        self._rejections.labels(model, reason).inc()

    def model_loaded(self, model: str, version: str, labels: Sequence[str], probabilities: bool) -> ModelMetrics:
        """The metrics of a version that is about to be served."""
        return self._requests.model(model, version, labels, probabilities)

    def watch_model(self, model: str, queue_items: Callable[[], float], inflight: Callable[[], float], threads: int) -> None:
        """Reads the model's gauges from these functions from now on, when somebody scrapes; `threads` are ONNX Runtime's."""
        self._queue_items.labels(model).set_function(queue_items)
        self._inflight.labels(model).set_function(inflight)
        self._ort_threads.labels(model).set(threads)

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
        for gauge in (self._queue_items, self._inflight, self._ort_threads):
            gauge.remove(model)

    def load_ended(self, model: str, outcome: str, seconds: float | None) -> None:
        """An attempt to load a version has ended: `ready`, `golden_mismatch`, `invalid` or `failed`; None if it never began."""
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
