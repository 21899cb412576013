"""What the Open Inference Protocol says of a server and its models: metadata, configuration, statistics, index.

Each answer is a plain dict with the protocol's own field names: JSON for REST as it is, and a message for gRPC.
"""

import json
from collections.abc import Callable
from importlib.metadata import version as installed
from typing import Any

from service import DISTRIBUTION
from service.engine.repository import Repository
from service.engine.served_model import ServedModel
from service.errors import RequestError
from service.model.repository_layout import MODEL_FILE
from service.observability.histogram import Total
from service.observability.request_metrics import Statistics
from service.open_inference.tensors import BYTES, DATATYPES, Input, elements_of_raw

EXTENSIONS = (
    "classification",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
    "system_shared_memory",
    "binary_tensor_data",
)
PLATFORM = "onnxruntime_onnx"

_PHASES = {"queue": "queue", "decode": "compute_input", "inference": "compute_infer", "encode": "compute_output"}
_KINDS = {"cpu": "KIND_CPU", "openvino": "KIND_CPU", "cuda": "KIND_GPU", "tensorrt": "KIND_GPU"}


class ServerMetadata:
    """Answers questions about a server and its models. For any thread."""

    def __init__(self, repository: Repository, ready: Callable[[], bool]) -> None:
        """`ready` says whether the server takes requests."""
        self._repository = repository
        self.ready = ready

    def server(self) -> dict[str, Any]:
        """What the server is, and the extensions that it offers."""
        return {"name": "convoy", "version": installed(DISTRIBUTION), "extensions": list(EXTENSIONS)}

    def model_ready(self, name: str, version: str) -> bool:
        """Whether requests to a model are answered now. One that nobody knows is not ready."""
        try:
            self._served(name, version)
        except RequestError:
            return False
        return self.ready()

    def metadata(self, name: str, version: str) -> dict[str, Any]:
        """What a model takes and gives. Raises NotFound."""
        served = self._served(name, version)
        model = served.model
        versions = [served] if version else self._repository.served.get(name, (served,))
        return {
            "name": name,
            "versions": [str(each.version) for each in reversed(versions)],
            "platform": PLATFORM,
            "inputs": [_metadata(model.input)],
            "outputs": [_metadata(spec) for spec in model.outputs],
        }

    def config(self, name: str, version: str) -> dict[str, Any]:
        """How a model is served, in the form of Triton's model configuration. Raises NotFound."""
        served = self._served(name, version)
        model, policy = served.model, served.policy
        image_format = {"format": "FORMAT_NHWC"} if model.has_contract else {}
        parameters = {
            "labels": json.dumps(model.labels, ensure_ascii=False),
            "aliases": json.dumps(self._repository.aliases(name)),
            "provider": model.provider,
            "precision": model.precision,
            "digest": model.digest,
        }
        return {
            "name": name,
            "platform": PLATFORM,
            "backend": "onnxruntime",
            "default_model_filename": MODEL_FILE,
            "version_policy": _version_policy(policy.versions),
            "max_batch_size": policy.max_request_items,
            "input": [_config(model.input) | image_format],
            "output": [_config(spec) for spec in model.outputs],
            "instance_group": [{"name": name, "count": policy.instances, "kind": _KINDS[model.provider]}],
            "dynamic_batching": {
                "preferred_batch_size": [served.batcher.max_batch_items],
                "max_queue_delay_microseconds": round(1e6 * policy.max_queue_delay_seconds),
                "preserve_ordering": False,
                "priority_levels": policy.priority_levels,
                "default_priority_level": policy.default_priority,
                "default_queue_policy": {
                    "timeout_action": "REJECT",
                    "default_timeout_microseconds": round(1e6 * policy.default_timeout_seconds),
                    "allow_timeout_override": True,
                    "max_queue_size": policy.max_queue_items,
                },
            },
            "parameters": {key: {"string_value": value} for key, value in parameters.items()},
        }

    def lone_input(self, name: str, version: str, body: bytes) -> Input:
        """A request's body that is nothing but the input: an image file or, for a foreign model, the bytes of one item.

        Raises NotFound, and InvalidRequest if it is not as long as an item.
        """
        model = self._served(name, version).model
        spec = model.input
        datatype, shape = (BYTES, [1]) if model.has_contract else (DATATYPES[spec.dtype], [1, *spec.shape])
        elements = [body] if model.has_contract else elements_of_raw(datatype, shape, body)
        return Input(spec.name, datatype, shape, elements)

    def statistics(self, name: str, version: str) -> dict[str, Any]:
        """What happened to requests so far: of one version, of all versions of a model, or with an empty name of all models.

        Raises NotFound.
        """
        served = self._repository.served
        if version or (name and name not in served):
            found = [self._served(name, version)]
        else:
            found = [each for model in (sorted(served) if not name else [name]) for each in reversed(served[model])]
        return {"model_stats": [_statistics(each, each.metrics.statistics()) for each in found]}

    def index(self, *, ready_only: bool) -> list[dict[str, str]]:
        """Every version that is served, being loaded, could not be loaded or was unloaded."""
        return [
            {"name": entry.name, "version": str(entry.version), "state": entry.state, "reason": entry.reason}
            for entry in self._repository.index()
            if entry.state == "READY" or not ready_only
        ]

    def _served(self, name: str, version: str) -> ServedModel:
        served = self._repository.acquire(name, version)
        self._repository.release(served)
        return served


def _metadata(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": [-1, *spec.shape]}


def _config(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "data_type": f"TYPE_{DATATYPES[spec.dtype]}", "dims": list(spec.shape)}


def _version_policy(versions: str) -> dict[str, Any]:
    """As `serving.toml` has it: "latest:N", "all" or a list of versions."""
    if versions == "all":
        return {"all": {}}
    if versions.startswith("latest:"):
        return {"latest": {"num_versions": int(versions.removeprefix("latest:"))}}
    return {"specific": {"versions": [int(version) for version in versions.split(",")]}}


def _statistics(served: ServedModel, found: Statistics) -> dict[str, Any]:
    failed, answered = found.failures.values(), found.phases.values()
    count = found.phases["encode"].count
    return {
        "name": served.name,
        "version": str(served.version),
        "last_inference": round(1000 * found.last_batch),
        "inference_count": found.items,
        "execution_count": sum(total.count for total in found.batches.values()),
        "inference_stats": {
            "success": _total(Total(count, sum(total.seconds for total in answered))),
            "fail": _total(Total(sum(total.count for total in failed), sum(total.seconds for total in failed))),
            # All of one count, as NVIDIA's clients demand: where there was nothing to decode, no time went into it.
            **{field: _total(Total(count, found.phases[phase].seconds)) for phase, field in _PHASES.items()},
            "fail_by_reason": {reason: _total(total) for reason, total in sorted(found.failures.items())},
        },
        "batch_stats": [{"batch_size": items, "compute_infer": _total(total)} for items, total in sorted(found.batches.items())],
    }


def _total(total: Total) -> dict[str, int]:
    return {"count": total.count, "ns": round(1e9 * total.seconds)}
