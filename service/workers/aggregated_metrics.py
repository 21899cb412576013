"""The metrics of several processes as those of one server: a pure function over snapshots of their registries.

Counters and histograms are summed, series by series. So are gauges, because most of them count what there is (items that wait,
bytes, threads); those that do not are named here. What is merely said (`_info`) is kept once. An exemplar is the latest there is.

A process that has ended goes on counting with its last snapshot: a sum that fell would look to Prometheus like a restart of
everything, and all that was ever counted like the work of one moment.
"""

import math
from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import Metric
from prometheus_client.samples import Exemplar, Sample, Timestamp

Snapshot = Sequence[Metric]
"""What a registry's `collect` gives at one moment."""

_Series = tuple[str, frozenset[tuple[str, str]]]

NOT_SUMMED: dict[str, Callable[[float, float], float]] = {
    "process_start_time_seconds": min,
    "convoy_model_load_seconds": max,
    "convoy_batch_limit_items": max,
    "convoy_provider_fallback": max,
    "convoy_model_load_failed": max,
}
"""Gauges of which the sum would say nothing."""


def merge(snapshots: Iterable[Snapshot]) -> list[Metric]:
    """One family for each name, in the order in which they first come, its series likewise."""
    families: dict[str, tuple[Metric, dict[_Series, Sample]]] = {}
    for snapshot in snapshots:
        for family in snapshot:
            if family.name not in families:
                families[family.name] = (Metric(family.name, family.documentation, family.type, family.unit), {})
            merged, series = families[family.name]
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                known = series.get(key)
                series[key] = sample if known is None else _both(known, sample, _how(sample.name))
    for merged, series in families.values():
        merged.samples = list(series.values())
    return [merged for merged, _ in families.values()]


def counts(snapshot: Snapshot) -> list[Metric]:
    """What goes on counting when the process has ended: counters and histograms, but nothing that it was at the moment."""
    return [family for family in snapshot if family.type in ("counter", "histogram")]


def without_forgotten(counted: Snapshot, present: Iterable[Snapshot]) -> list[Metric]:
    """Leaves out the versions of models that no process has any more."""
    known = {_version(sample) for snapshot in present for family in snapshot for sample in family.samples}
    left = []
    for family in counted:
        kept = Metric(family.name, family.documentation, family.type, family.unit)
        kept.samples = [sample for sample in family.samples if _version(sample) in known]
        left.append(kept)
    return left


def _version(sample: Sample) -> tuple[str, str] | None:
    """The version of a model that the series is about; None if it is not about one."""
    labels = sample.labels
    return (labels["model"], labels["version"]) if "version" in labels and "model" in labels else None


def _how(name: str) -> Callable[[float, float], float]:
    if name.endswith("_created"):
        return min
    return max if name.endswith("_info") else NOT_SUMMED.get(name, _sum)


def _sum(one: float, other: float) -> float:
    return one + other


def _both(one: Sample, other: Sample, how: Callable[[float, float], float]) -> Sample:
    exemplar = max((found for found in (one.exemplar, other.exemplar) if found is not None), key=_when, default=None)
    return one._replace(value=how(one.value, other.value), exemplar=exemplar)


def _when(exemplar: Exemplar) -> float:
    when = exemplar.timestamp
    return -math.inf if when is None else float(when) if isinstance(when, Timestamp) else when
