import random

from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as Reference
from prometheus_client.core import HistogramMetricFamily

from service.observability.histogram import Histogram, take_all

BOUNDS = (0.1, 1.0, 10.0)


def test_buckets_count_and_sum_are_those_of_prometheus_client() -> None:
    values = [random.Random(0).choice([0.05, 0.1, 0.5, 1.0, 20.0]) for _ in range(5000)]
    registry = CollectorRegistry()
    reference = Reference("seconds", "Seconds", ("model",), buckets=BOUNDS, registry=registry)
    histogram = Histogram(BOUNDS)
    for value in values:
        reference.labels("digits").observe(value)
        histogram.observe(value)
    histogram.flush()
    family = HistogramMetricFamily("seconds", "Seconds", labels=("model",))
    histogram.add_to(family, ("digits",))
    found = {(sample.name, *sample.labels.values()): sample.value for sample in family.samples}
    [expected] = registry.collect()
    assert found == {
        (sample.name, *sample.labels.values()): sample.value for sample in expected.samples if not sample.name.endswith("_created")
    }
    assert histogram.total().count == len(values)


def test_a_bucket_keeps_its_latest_exemplar() -> None:
    histogram = Histogram(BOUNDS)
    for value, trace_id in ((0.5, "a"), (0.6, "b"), (20.0, "c")):
        histogram.observe(value)
        histogram.add_exemplar(value, trace_id)
        histogram.flush()
    family = HistogramMetricFamily("seconds", "Seconds")
    histogram.add_to(family, ())
    kept = {sample.labels["le"]: sample.exemplar.labels["trace_id"] for sample in family.samples if sample.exemplar is not None}
    assert kept == {"1.0": "b", "+Inf": "c"}


def test_what_is_appended_while_a_buffer_is_taken_stays_in_it() -> None:
    class Growing(list[int]):
        def __getitem__(self, index: object) -> list[int]:  # type: ignore[override]
            self.append(3)
            return super().__getitem__(index)  # type: ignore[no-any-return, call-overload]

    buffer = Growing([1, 2])
    assert take_all(buffer) == [1, 2]
    assert buffer == [3]
