"""Metrics that every request and RPC updates: one object for each model version and gRPC method, and the collector of all.

Updates are cheap: values are buffered (`histogram.py`) and counted when BUFFER_SIZE of them wait, or by a scrape.

The buckets of durations keep the id of the latest recorded trace as their exemplar. Scrapers that ask for OpenMetrics get it, and a
dashboard can link a slow bucket to a request that was in it.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from service.observability.histogram import BUFFER_SIZE, CountAndSum, Histogram, add_to_total, take_all
from service.observability.trace_context import TraceContext
from service.requests.phases import PHASES, Phases

RPC_CODE_NAMES = (
    "OK", "CANCELLED", "DEADLINE_EXCEEDED", "FAILED_PRECONDITION", "INTERNAL", "INVALID_ARGUMENT", "NOT_FOUND",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED", "UNAVAILABLE", "UNIMPLEMENTED",
)  # fmt: skip
"""The gRPC codes that an RPC can end with here; see `rpc/status.py`."""

MAX_LABELS = 100
OTHER_LABEL = "other"
"""In `convoy_predictions_total`, for the labels of a model after the first MAX_LABELS."""

# 50 us to 10 s: from a small CNN on an idle server to a request that times out.
_SECONDS = (
    5e-5, 1e-4, 2e-4, 3.5e-4, 5e-4, 7.5e-4, 1e-3, 1.5e-3, 2.5e-3, 5e-3,
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_ITEMS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
_CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)


class Statistics(NamedTuple):
    """Totals of one version of a model.

    `phases` has the answered requests by phase, `failures` the others by reason, `batches` the batches by number of items.
    `last_batch` is when the last batch ended, in seconds since 1970; 0 without one.
    """

    phases: dict[str, CountAndSum]
    items: int
    failures: dict[str, CountAndSum]
    batches: dict[int, CountAndSum]
    last_batch: float


class ModelMetrics:
    """The metrics of one version of a model."""

    def __init__(self, model: str, version: str, labels: Sequence[str], probabilities: bool) -> None:
        """`probabilities` is false for a model whose scores may be any numbers."""
        self.labels = tuple(labels)
        self.probabilities = probabilities
        self._model_version = (model, version)
        self._lock = threading.Lock()
        self._phases = self._decode, self._queue, self._inference, self._encode = tuple(Histogram(_SECONDS) for _ in PHASES)
        self._batch_items = Histogram(_ITEMS)
        self._confidence = Histogram(_CONFIDENCE)
        self._answered: list[Phases] = []
        self._encode_seconds: list[float] = []
        self._best: list[tuple[int, float]] = []  # of each item: label index and probability
        self._names = [*labels[:MAX_LABELS], *[OTHER_LABEL] * (len(labels) - MAX_LABELS)]
        self._predictions = dict.fromkeys(self._names, 0)
        self._items = 0
        self._new_batches: list[tuple[int, float]] = []
        self._batches: dict[int, CountAndSum] = {}
        self._last_batch = 0.0
        self._failures: dict[str, CountAndSum] = {}
        self._limits: tuple[int, int] | None = None
        self._queued_items: Callable[[], int] = int
        self._fell_back = False

    def batch(self, items: int, seconds: float) -> None:
        """A batch of `items` ran."""
        self._batch_items.observe(items)
        self._new_batches.append((items, seconds))
        self._last_batch = time.time()

    def failed(self, reason: str, seconds: float) -> None:
        """A request failed, `seconds` after it had joined the queue."""
        with self._lock:
            add_to_total(self._failures, reason, seconds)
            if len(self._new_batches) >= BUFFER_SIZE:  # `answered` does not flush if no request is answered
                self._flush()

    def serving(self, queue_limit_items: int, batch_limit_items: int, queued_items: Callable[[], int], *, fell_back: bool) -> None:
        """The version is about to serve within these limits. `fell_back`: on the CPU because CUDA, which is installed, failed.

        `queued_items` returns how many items wait; each scrape calls it.
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
        """A request was answered. `results` has each item's (label index, probability) pairs, best first."""
        self._answered.append(phases)
        self._encode_seconds.append(encode_seconds)
        best = self._best
        for result in results:
            best.append(result[0])
        if trace is not None and trace.sampled:
            for histogram, seconds in zip(self._phases, (*phases, encode_seconds), strict=True):
                if seconds is not None:
                    histogram.add_exemplar(seconds, trace.trace_id)
        if len(best) >= BUFFER_SIZE:
            with self._lock:
                self._flush()

    def statistics(self) -> Statistics:
        """The totals so far."""
        with self._lock:
            self._flush()
            histograms = zip(PHASES, self._phases, strict=True)
            return Statistics(
                {phase: histogram.total() for phase, histogram in histograms}, self._items,
                dict(self._failures), dict(self._batches), self._last_batch,
            )  # fmt: skip

    def _flush(self) -> None:
        for items, seconds in take_all(self._new_batches):
            add_to_total(self._batches, items, seconds)
        exemplars = [histogram.take_exemplars() for histogram in self._phases]  # first
        answered = take_all(self._answered)
        self._decode.add([phases.decode_seconds for phases in answered if phases.decode_seconds is not None])
        self._queue.add([phases.queue_seconds for phases in answered])
        self._inference.add([phases.inference_seconds for phases in answered])
        best = take_all(self._best)
        self._items += len(best)
        # NaN is not a prediction, and would make the sum NaN for good.
        best = [each for each in best if each[1] == each[1]]
        for label, count in Counter([label for label, _ in best]).items():
            self._predictions[self._names[label]] += count
        if self.probabilities:
            self._confidence.add([probability for _, probability in best])
        self._encode.add(take_all(self._encode_seconds))
        self._batch_items.flush()
        for histogram, latest in zip(self._phases, exemplars, strict=True):
            histogram.keep_exemplars(latest)

    def add_to(self, families: "_ModelFamilies") -> None:
        """Adds the totals so far to the families."""
        served = self._model_version
        with self._lock:
            self._flush()
            for phase, histogram in zip(PHASES, self._phases, strict=True):
                histogram.add_to(families.phase_seconds, (*served, phase))
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
    """The metric families of models, filled for one scrape."""

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
        """In the order in which they were defined."""
        return [
            self.phase_seconds, self.batch_items, self.items, self.predictions, self.confidence,
            self.queue, self.queue_limit, self.batch_limit, self.fallback,
        ]  # fmt: skip


class RpcMetrics:
    """The metrics of one gRPC method."""

    def __init__(self, kind: str, service: str, method: str) -> None:
        self._labels = (kind, service, method)
        self._lock = threading.Lock()
        self._started = 0
        self._codes: list[str] = []
        self._handled = Counter(dict.fromkeys(RPC_CODE_NAMES, 0))
        self._handling_seconds = Histogram(_SECONDS)

    def started(self) -> None:
        """An RPC has arrived. Only the transport's thread calls this: no lock."""
        self._started += 1

    def handled(self, code: str, seconds: float, trace: TraceContext | None) -> None:
        """An RPC has ended with `code`, a name such as OK or NOT_FOUND."""
        self._codes.append(code)
        self._handling_seconds.observe(seconds)
        if trace is not None and trace.sampled:
            self._handling_seconds.add_exemplar(seconds, trace.trace_id)
        if len(self._codes) >= BUFFER_SIZE:
            with self._lock:
                self._flush()

    def _flush(self) -> None:
        self._handled.update(take_all(self._codes))
        self._handling_seconds.flush()

    def add_to(self, started: CounterMetricFamily, handled: CounterMetricFamily, seconds: HistogramMetricFamily) -> None:
        """Adds the totals so far to the families."""
        with self._lock:
            self._flush()
            started.add_metric(self._labels, self._started)
            for code, count in self._handled.items():
                handled.add_metric((*self._labels, code), count)
            self._handling_seconds.add_to(seconds, self._labels)


class RequestMetrics(Collector):
    """The metrics of all versions and methods, as prometheus_client collects them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[tuple[str, str], ModelMetrics] = {}
        self._methods: list[RpcMetrics] = []
        self.failures: Callable[[], Iterable[tuple[str, str, str]]] = list

    def model(self, model: str, version: str, labels: Sequence[str], probabilities: bool) -> ModelMetrics:
        """The metrics of a version. They go on if it is loaded again with the same labels, such as for a new policy."""
        with self._lock:
            known = self._models.get((model, version))
            if known is None or (known.labels, known.probabilities) != (tuple(labels), probabilities):
                known = self._models[model, version] = ModelMetrics(model, version, labels, probabilities)
            return known

    def forget(self, model: str, version: str) -> None:
        """Drops the metrics of a version."""
        with self._lock:
            self._models.pop((model, version), None)

    def method(self, kind: str, service: str, method: str) -> RpcMetrics:
        """New metrics for a method."""
        with self._lock:
            self._methods.append(RpcMetrics(kind, service, method))
            return self._methods[-1]

    def collect(self) -> Iterable[Metric]:
        """Every metric family, filled."""
        rpc = ("grpc_type", "grpc_service", "grpc_method")
        started = CounterMetricFamily("grpc_server_started", "RPCs started", labels=rpc)
        handled = CounterMetricFamily("grpc_server_handled", "RPCs completed, by code", labels=(*rpc, "grpc_code"))
        seconds = HistogramMetricFamily("grpc_server_handling_seconds", "Seconds from an RPC's arrival to its end", labels=rpc)
        models = _ModelFamilies()
        failed = GaugeMetricFamily(
            "convoy_model_load_failed",
            "1 for each version whose load failed",
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
