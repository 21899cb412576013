import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from service.observability.metrics import Metrics
from service.requests.phases import Phases
from service.workers.aggregated_metrics import NOT_SUMMED, cumulative, merge, without_unserved_versions

SUMMED = {
    "convoy_inflight_bytes", "convoy_inflight_requests", "convoy_ort_threads", "convoy_queue_items", "convoy_queue_limit_items",
    "process_max_fds", "process_open_fds", "process_resident_memory_bytes", "process_virtual_memory_bytes",
}  # fmt: skip
"""Gauges that count things, so that several processes have the sum."""


class Merged:
    def __init__(self, families: list[Metric]) -> None:
        self.collect = lambda: families


def samples(families: list[Metric]) -> dict[tuple[str, ...], float]:
    """Values by name and label values, sorted by label."""
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in families
        for sample in family.samples
    }


def process(requests: int, seconds: float, waiting: int, trace: str = "") -> list[Metric]:
    """A snapshot of a process with one metric of each kind."""
    registry = CollectorRegistry()
    Counter("requests", "Requests", ("code",), registry=registry).labels("OK").inc(requests)
    histogram = Histogram("seconds", "Seconds", ("model", "version"), buckets=(0.1, 1.0), registry=registry)
    histogram.labels("digits", "1").observe(seconds, {"trace_id": trace} if trace else None)
    Gauge("waiting", "Items that wait", registry=registry).set(waiting)
    Gauge("convoy_model_load_seconds", "Seconds", ("model",), registry=registry).labels("digits").set(seconds)
    Gauge("convoy_model_info", "What it is", ("version",), registry=registry).labels("1").set(1)
    Info("build", "Versions", registry=registry).info({"version": "1.0"})
    return list(registry.collect())


def test_counters_histograms_and_gauges_are_summed_and_info_is_kept_once() -> None:
    merged = samples(merge([process(3, 0.05, 2), process(4, 0.5, 5)]))
    assert merged["requests_total", "OK"] == 7
    assert [merged["seconds_bucket", bound, "digits", "1"] for bound in ("0.1", "1.0", "+Inf")] == [1, 2, 2]
    assert merged["seconds_count", "digits", "1"] == 2
    assert merged["seconds_sum", "digits", "1"] == pytest.approx(0.55)
    assert merged["waiting",] == 7
    assert merged["convoy_model_load_seconds", "digits"] == 0.5
    assert merged["convoy_model_info", "1"] == 1
    assert merged["build_info", "1.0"] == 1


def test_one_snapshot_is_unchanged() -> None:
    [alone] = [process(3, 0.05, 2)]
    assert samples(merge([alone])) == samples(alone)
    assert merge([]) == []


def test_series_of_one_process_only_are_kept() -> None:
    other = CollectorRegistry()
    Counter("requests", "Requests", ("code",), registry=other).labels("INTERNAL").inc(2)
    merged = samples(merge([process(3, 0.05, 0), list(other.collect())]))
    assert (merged["requests_total", "OK"], merged["requests_total", "INTERNAL"]) == (3, 2)


def test_the_latest_exemplar_is_kept_and_the_exposition_can_be_parsed() -> None:
    first, second = process(1, 0.05, 0, trace="first"), process(1, 0.06, 0, trace="second")
    for merged in (merge([first, second]), merge([second, first]), merge([process(1, 0.07, 0), first, second])):
        found = [sample.exemplar for family in merged for sample in family.samples if sample.exemplar is not None]
        assert [(exemplar.labels, exemplar.value) for exemplar in found] == [({"trace_id": "second"}, 0.06)]
        exposed = generate_openmetrics(Merged(merged)).decode()  # type: ignore[no-untyped-call]
        read: list[Metric] = list(text_string_to_metric_families(exposed))  # type: ignore[no-untyped-call]
        assert {sample.exemplar.labels["trace_id"] for family in read for sample in family.samples if sample.exemplar} == {"second"}
        assert samples(read) == samples(merged)


def test_a_process_that_has_exited_keeps_its_counters_but_no_gauges() -> None:
    merged = samples(merge([process(3, 0.05, 2), cumulative(process(4, 0.5, 5))]))
    assert merged["requests_total", "OK"] == 7
    assert merged["seconds_count", "digits", "1"] == 2
    assert merged["waiting",] == 2
    assert merged["convoy_model_load_seconds", "digits"] == 0.05


def test_a_version_that_no_process_serves_is_dropped() -> None:
    departed = cumulative(process(4, 0.5, 5))
    present = process(0, 0.5, 0)
    assert samples(without_unserved_versions(departed, [present])) == samples(departed)
    for family in present:
        for sample in family.samples:
            if sample.labels.get("version") == "1":
                sample.labels["version"] = "2"
    left = samples(without_unserved_versions(departed, [present]))
    assert left["requests_total", "OK"] == 4
    assert not [series for series in left if series[0].startswith("seconds")]


def test_real_metrics_of_requests_add_up() -> None:
    snapshots = []
    for requests in (3, 5):
        metrics = Metrics(CollectorRegistry())
        model = metrics.model_loaded("digits", "1", ["a", "b"], True)
        for _ in range(requests):
            model.answered(Phases(None, 0.001, 0.002), 0.001, [[(1, 0.9)]])
        metrics.rejected("digits", "invalid")
        snapshots.append(list(metrics.registry.collect()))
    merged = samples(merge(snapshots))
    assert merged["convoy_items_total", "digits", "1"] == 8
    assert merged["convoy_predictions_total", "b", "digits", "1"] == 8
    assert merged["convoy_phase_seconds_count", "digits", "inference", "1"] == 8
    assert merged["convoy_rejections_total", "digits", "invalid"] == 2


def test_every_gauge_is_declared_as_summed_or_not() -> None:
    """A new gauge belongs in SUMMED above or in NOT_SUMMED."""
    metrics = Metrics(CollectorRegistry())
    metrics.model_loaded("digits", "1", ["a", "b"], True)
    gauges = {family.name for family in metrics.registry.collect() if family.type == "gauge"}
    assert gauges <= SUMMED | NOT_SUMMED.keys() | {name for name in gauges if name.endswith("_info")}
    assert not SUMMED & NOT_SUMMED.keys()
