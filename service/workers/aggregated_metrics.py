"""Merges the metrics of several processes into those of one server. Pure: takes snapshots of their registries.

Counters and histograms are summed, series by series; so are gauges, which mostly count (queued items, bytes, threads), except those
in NOT_SUMMED. `_info` series are kept once. The latest exemplar is kept.

The counters of a process that has exited still count (`cumulative`): Prometheus would take a sum that falls for a restart of the
whole server, and the rest of it for new events.
"""

import math
from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import Metric
from prometheus_client.samples import Exemplar, Sample, Timestamp

Snapshot = Sequence[Metric]
"""What a registry's `collect` returned."""

_Series = tuple[str, frozenset[tuple[str, str]]]

NOT_SUMMED: dict[str, Callable[[float, float], float]] = {
    "process_start_time_seconds": min,
    "convoy_model_load_seconds": max,
    "convoy_batch_limit_items": max,
    "convoy_provider_fallback": max,
    "convoy_model_load_failed": max,
}
"""Gauges whose sum has no meaning, and how they are merged."""


def merge(snapshots: Iterable[Snapshot]) -> list[Metric]:
    """One family for each name, families and series in the order in which they first appear."""
    families: dict[str, tuple[Metric, dict[_Series, Sample]]] = {}
    for snapshot in snapshots:
        for family in snapshot:
            if family.name not in families:
                families[family.name] = (Metric(family.name, family.documentation, family.type, family.unit), {})
            merged, series = families[family.name]
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                known = series.get(key)
                series[key] = sample if known is None else _merged(known, sample)
    for merged, series in families.values():
        merged.samples = list(series.values())
    return [merged for merged, _ in families.values()]


def cumulative(snapshot: Snapshot) -> list[Metric]:
    """The counters and histograms, which outlive the process; gauges do not."""
    return [family for family in snapshot if family.type in ("counter", "histogram")]


def without_unserved_versions(exited: Snapshot, running: Iterable[Snapshot]) -> list[Metric]:
    """`exited` without the series of model versions that no running process has."""
    known = {_version(sample) for snapshot in running for family in snapshot for sample in family.samples}
    left = []
    for family in exited:
        kept = Metric(family.name, family.documentation, family.type, family.unit)
        kept.samples = [sample for sample in family.samples if _version(sample) in known]
        left.append(kept)
    return left


def _version(sample: Sample) -> tuple[str, str] | None:
    """The model and version that a series is about; None if it is not about one."""
    labels = sample.labels
    return (labels["model"], labels["version"]) if "version" in labels and "model" in labels else None


def _merged(one: Sample, other: Sample) -> Sample:
    exemplar = max((found for found in (one.exemplar, other.exemplar) if found is not None), key=_time, default=None)
    return one._replace(value=_merge_function(one.name)(one.value, other.value), exemplar=exemplar)


def _merge_function(name: str) -> Callable[[float, float], float]:
    if name.endswith("_created"):
        return min
    return max if name.endswith("_info") else NOT_SUMMED.get(name, _sum)


def _sum(one: float, other: float) -> float:
    return one + other


def _time(exemplar: Exemplar) -> float:
    time = exemplar.timestamp
    return -math.inf if time is None else float(time) if isinstance(time, Timestamp) else time
