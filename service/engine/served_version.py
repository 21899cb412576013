"""One version of one model, ready to answer."""

from dataclasses import dataclass, field
from typing import Any

from service.engine.batcher import Batcher
from service.model.inference import Model
from service.model.session import free_unused_memory
from service.observability.request_metrics import ModelMetrics
from service.policy import Policy
from service.process.malloc import return_freed_memory
from service.triton.model_config import NO_TRITON, TritonSettings
from service.triton.tensors import TensorForms

Fingerprint = tuple[object, ...]
"""Changes when a version must be loaded again: the state of its files on disk, and its policy."""


@dataclass(eq=False)
class ServedVersion:
    """One version of one model with everything that answers its requests.

    Attributes:
        triton: what the model's config.pbtxt says beside the policy.
        forms: the shapes of clients' tensors, if they are not those of the graph.
        cache: what the APIs compute once for this version, by class.
        inflight: requests that have acquired it and not released it yet.
        retired: whether it is no longer served; the last request to release it closes it.
    """

    name: str
    version: int
    model: Model
    policy: Policy
    batcher: Batcher
    metrics: ModelMetrics
    fingerprint: Fingerprint
    triton: TritonSettings = NO_TRITON
    forms: TensorForms | None = None
    cache: dict[type, Any] = field(default_factory=dict)
    inflight: int = 0
    retired: bool = False

    def close(self) -> None:
        """Ends its threads and frees its sessions, even while something still refers to this object. Only when no request runs."""
        self.batcher.close()
        self.model.close()
        free_unused_memory()
        return_freed_memory()
