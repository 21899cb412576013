"""From a model file and its policy to warm, measured instances and a running batcher."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from service.engine.batcher import Batcher, TraceBatch
from service.engine.trial import Approval
from service.model.declared import NOTHING_DECLARED, Declared
from service.model.inference import Model
from service.model.loading import load_model
from service.model.model_files import read_model
from service.model.providers import Provider
from service.model.repository_layout import logged_version
from service.model.session import sessions_are_few
from service.policy import Policy
from service.triton.model_config import NO_TRITON, TritonSettings
from service.triton.tensors import TensorForms, tensor_forms
from service.triton.warmup import warm_up

if TYPE_CHECKING:
    from service.model.signing import SignedFiles

log = logging.getLogger(__name__)


_SMALL_SECONDS = 0.001
"""Of many models, one that takes no longer for an item computes with one thread: threads for each of them would be too many."""


class Loaded(NamedTuple):
    """The instances of a model, alike or the same, seconds a batch by items, and clients' shapes if the graph has others."""

    instances: tuple[Model, ...]
    measured: dict[int, float]
    forms: TensorForms | None = None


def load_instances(
    path: Path,
    labels: tuple[str, ...] | None,
    policy: Policy,
    provider: Provider,
    cpus: int,
    signed: "SignedFiles | None" = None,
    approval: Approval | None = None,
    declared: Declared = NOTHING_DECLARED,
    triton: TritonSettings = NO_TRITON,
) -> Loaded:
    """Loads as many instances of a model as its policy asks for, and measures how long batches take.

    On the CPU the instances share `cpus` threads. Where there are many models already, a small one has a single thread. Instances
    with one thread each share a session, and so the memory of the weights.

    Args:
        path: the model file, `<model>/<version>/model.onnx`.
        labels: class names for a model without a contract, if there are any.
        policy: the model's.
        provider: where it computes unless the policy says so.
        cpus: CPUs that this process may use.
        signed: what the files must be, if signatures are asked for.
        approval: what a trial of these files has found, if there was one.
        declared: what is said of a model without a contract.
        triton: what the model's config.pbtxt says beside the policy.

    Raises:
        FilesChanged: its files changed while they were read, or since the trial.
        LoadError: the model cannot be served.
    """
    expected = None if approval is None else approval.files
    content = read_model(path, signed=signed, expected=expected)  # once: the files may be replaced between two instances
    max_batch_items = policy.max_batch_size if approval is None else min(policy.max_batch_size, approval.max_batch_items)
    name = logged_version(path)

    def load(threads: int) -> Model:
        return load_model(content, policy.provider or provider, threads, labels, max_batch_items, name, declared)

    threads = max(1, cpus // policy.instances)
    few = sessions_are_few()
    first = load(threads if few else 1)
    forms = tensor_forms(triton.batches, triton.inputs, triton.outputs, first.input, first.outputs)
    measured = first.measure(max_batch_items, thorough=few)
    if first.threads < threads and not _is_small(first, measured[1]):
        first.close()
        first = load(threads)
        measured = first.measure(max_batch_items)
    is_shared = first.provider == "cpu" and first.threads == 1  # it has no threads that runs would have to share
    others = [] if is_shared else [load(first.threads) for _ in range(policy.instances - 1)]
    for other in others:
        other.measure(max(measured), thorough=few)  # warms it up
    for instance in (first, *others):
        warm_up(instance, path.parents[1], triton.warmup)
    instances = (first,) * policy.instances if is_shared else (first, *others)
    if labels is not None and first.has_contract:
        log.warning("%s: labels.txt is ignored: the file's contract has the labels", name)
    return Loaded(instances, measured, forms)


def _is_small(model: Model, seconds: float) -> bool:
    """Whether a model gains little by threads; `seconds` an item may be too long, if something else ran at the time."""
    return seconds <= _SMALL_SECONDS or model.measure(1)[1] <= _SMALL_SECONDS


def start_batcher(
    name: str, version: int, loaded: Loaded, policy: Policy, on_batch: Callable[[int, float], None], trace_batch: TraceBatch | None
) -> Batcher:
    """The batcher of a loaded model. For `on_batch` and `trace_batch` see `Batcher`."""
    return Batcher(
        *(instance.predict for instance in loaded.instances),
        name=name,
        version=version,
        max_batch_items=max(loaded.measured),
        max_queue_items=policy.max_queue_items,
        measured=loaded.measured,
        max_delay_seconds=policy.max_queue_delay_seconds,
        on_batch=on_batch,
        trace_batch=trace_batch,
        may_run_inline=not loaded.instances[0].input.is_picture_file,  # a large one would hold up all other calls
    )
