"""From a model file and its policy to warm, measured instances and a running batcher."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from service.engine.batcher import Batcher, TraceBatch
from service.model.inference import Model
from service.model.loading import load_model
from service.model.model_files import read_model
from service.model.providers import Provider
from service.policy import Policy

log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """The instances of a model, all alike, and seconds a batch by items."""

    instances: tuple[Model, ...]
    measured: dict[int, float]


def load_instances(path: Path, labels: tuple[str, ...] | None, policy: Policy, provider: Provider, cpus: int) -> Loaded:
    """Loads as many instances of a model as its policy asks for, and measures how long batches take.

    On the CPU the instances share `cpus` threads.

    Args:
        path: the model file, `<model>/<version>/model.onnx`.
        labels: class names for a model without a contract, if there are any.
        policy: the model's.
        provider: where it computes unless the policy says so.
        cpus: CPUs that this process may use.

    Raises:
        FilesChanged: its files changed while they were read.
        LoadError: the model cannot be served.
    """
    content = read_model(path)  # once: the files may be replaced between two instances
    name = f"model {path.parent.parent.name} version {path.parent.name}"
    threads = max(1, cpus // policy.instances)
    instances = tuple(
        load_model(content, policy.provider or provider, threads, labels, policy.max_batch_size, name)
        for _ in range(policy.instances)
    )
    first = instances[0]
    measured = first.measure(policy.max_batch_size)
    for other in instances[1:]:
        other.measure(max(measured))  # warms it up
    if labels is not None and first.has_contract:
        log.warning("%s: labels.txt is ignored: the file's contract has the labels", name)
    return Loaded(instances, measured)


def start_batcher(
    name: str, loaded: Loaded, policy: Policy, on_batch: Callable[[int, float], None], trace_batch: TraceBatch | None
) -> Batcher:
    """The batcher of a loaded model. For `on_batch` and `trace_batch` see `Batcher`."""
    return Batcher(
        *(instance.predict for instance in loaded.instances),
        name=name,
        max_batch_items=max(loaded.measured),
        max_queue_items=policy.max_queue_items,
        measured=loaded.measured,
        max_delay_seconds=policy.max_queue_delay_seconds,
        on_batch=on_batch,
        trace_batch=trace_batch,
    )
