"""Metadata, configuration and statistics of the server and its models, as the Open Inference Protocol has them.

Each is a dict with the protocol's field names: the JSON of REST, and the fields of gRPC's messages.
"""

import json
from collections.abc import Callable
from typing import Any

from service import convoy_version
from service.engine.decoding import tensors_only
from service.engine.repository import Repository
from service.engine.served_version import ServedVersion
from service.errors import RequestError
from service.model.signature import TensorSpec
from service.observability.histogram import CountAndSum
from service.observability.request_metrics import Statistics
from service.open_inference.conversion import client_shape, offered_outputs
from service.open_inference.tensors import BYTES, DATATYPES, InputTensor, elements_from_bytes

EXTENSIONS = (
    "classification",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
    "binary_tensor_data",
)
SHARED_MEMORY = "system_shared_memory"
_IDLE = "nothing asks for it to be served"  # a state that Triton does not have

PLATFORM = "onnxruntime_onnx"

_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*", b"P5", b"P6")
"""What the files of most formats begin with."""

_PHASES = {"queue": "queue", "decode": "compute_input", "inference": "compute_infer", "encode": "compute_output"}
_KINDS = {"cpu": "KIND_CPU", "openvino": "KIND_CPU", "cuda": "KIND_GPU", "tensorrt": "KIND_GPU"}


class ServerMetadata:
    """Metadata of a server and the models of its repository. For any thread."""

    def __init__(
        self, repository: Repository, ready: Callable[[], bool], live: Callable[[], bool], *, shared_memory: bool = False
    ) -> None:
        """The metadata of a server.

        Args:
            repository: has the models.
            ready: returns whether the server accepts requests.
            live: returns False if only a new process can help.
            shared_memory: whether clients can register regions.
        """
        self._extensions = [*EXTENSIONS, *([SHARED_MEMORY] if shared_memory else [])]
        self._repository = repository
        self.ready = ready
        self.live = live

    def server_metadata(self) -> dict[str, Any]:
        """Name and version of the server, and its extensions of the protocol."""
        return {"name": "convoy", "version": convoy_version(), "extensions": self._extensions}

    def model_ready(self, name: str, version: str) -> bool:
        """Whether requests to a model are answered now; False for an unknown model."""
        try:
            self._served(name, version)
        except RequestError:
            return False
        return self.ready()

    def model_metadata(self, name: str, version: str) -> dict[str, Any]:
        """Versions, inputs and outputs of a model. Raises NotFound."""
        served = self._served(name, version)
        model = served.model
        versions = [served] if version else self._repository.served.get(name, (served,))
        return {
            "name": name,
            "versions": [str(each.version) for each in reversed(versions)],
            "platform": PLATFORM,
            "inputs": [_tensor_metadata(served, model.input)],
            "outputs": [_tensor_metadata(served, spec) for spec in offered_outputs(served)],
        }

    def model_config(self, name: str, version: str) -> dict[str, Any]:
        """The policy of a model as Triton's model configuration. Raises NotFound."""
        served = self._served(name, version)
        model, policy = served.model, served.policy
        image_format = {"format": "FORMAT_NHWC"} if model.has_contract else {}
        label_files = {} if model.has_contract else dict(served.triton.label_files)
        outputs = [_tensor_config(served, spec) for spec in offered_outputs(served)]
        parameters = {
            "labels": json.dumps(model.labels, ensure_ascii=False),
            "aliases": json.dumps(self._repository.aliases(name)),
            "shares": json.dumps(self._repository.routing(name).shares()),
            "provider": model.provider,
            "precision": model.precision,
            "digest": model.digest,
            **({"signer": model.signer} if model.signer else {}),
        }
        return {
            "name": name,
            "platform": PLATFORM,
            "backend": "onnxruntime",
            "default_model_filename": served.triton.model_file,
            "version_policy": _version_policy(policy.versions),
            "max_batch_size": 0 if _is_whole(served) else policy.max_request_items,
            "input": [_tensor_config(served, model.input) | image_format],
            "output": [
                each | ({"label_filename": label_files[each["name"]]} if each["name"] in label_files else {}) for each in outputs
            ],
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
                **_level_policies(served),
            },
            "parameters": {key: {"string_value": value} for key, value in parameters.items()},
        }

    def model_names(self) -> list[str]:
        """The names of the models that have a served version, sorted."""
        return sorted(self._repository.served)

    def parse_binary_body(self, name: str, version: str, body: bytes) -> InputTensor:
        """The input of a request whose body is the input alone: an image file, or one item's bytes for a model without a contract.

        Raises NotFound, and InvalidRequest if it does not have the bytes of an item, or is a picture where none is taken.
        """
        served = self._served(name, version)
        model = served.model
        spec = model.input
        shape = [abs(size) for size in client_shape(served, spec)]  # one item
        datatype, shape = (BYTES, [1]) if model.takes_pictures else (DATATYPES[spec.dtype], shape)
        size = spec.size_bytes * ((served.forms.items if served.forms is not None else 0) or 1)
        if not model.takes_pictures and len(body) != size and _is_picture(body):
            raise tensors_only(served, "inputs[0]")
        elements = [body] if model.takes_pictures else elements_from_bytes(datatype, shape, body)
        return InputTensor(spec.name, datatype, shape, elements)

    def model_statistics(self, name: str, version: str) -> dict[str, Any]:
        """Counts and times of past requests: of one version, of all versions of a model, or with an empty name of all models.

        Raises NotFound.
        """
        served = self._repository.served
        if version or (name and name not in served):
            found = [self._served(name, version)]
        else:
            found = [each for model in (sorted(served) if not name else [name]) for each in reversed(served[model])]
        return {"model_stats": [_version_statistics(each, each.metrics.statistics()) for each in found]}

    def repository_index(self, *, ready_only: bool) -> list[dict[str, str]]:
        """Every version in the repository, and those that were in it and are still served."""
        return [
            {"name": entry.name, "version": entry.number, "state": state, "reason": reason}
            for entry in self._repository.index()
            for state, reason in [("UNAVAILABLE", _IDLE) if entry.state == "IDLE" else (entry.state, entry.reason)]
            if state == "READY" or not ready_only
        ]

    def _served(self, name: str, version: str) -> ServedVersion:
        served = self._repository.acquire(name, version)
        self._repository.release(served)
        return served


def _is_picture(content: bytes) -> bool:
    """By its first bytes."""
    return content.startswith(_PICTURES) or content[4:8] == b"ftyp"


def _tensor_metadata(served: ServedVersion, spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": client_shape(served, spec)}


def _tensor_config(served: ServedVersion, spec: TensorSpec) -> dict[str, Any]:
    """`dims`, and `reshape` if the graph has another shape; whole shapes if clients send none with a batch dimension."""
    forms = served.forms
    whole = _is_whole(served)
    dims = client_shape(served, spec)[0 if whole else 1 :]
    if served.model.input.is_picture_file:
        return {"name": spec.name, "data_type": f"TYPE_{DATATYPES[spec.dtype]}", "dims": dims}
    graph = [forms.items, *spec.shape] if forms is not None and whole else list(spec.shape)
    reshape = {"reshape": {"shape": graph}} if dims != graph else {}
    return {"name": spec.name, "data_type": f"TYPE_{DATATYPES[spec.dtype]}", "dims": dims} | reshape


def _level_policies(served: ServedVersion) -> dict[str, Any]:
    """Priority levels with a timeout of their own; the queue that they share is that of `default_queue_policy`."""
    found = {
        str(level): {"default_timeout_microseconds": round(1e6 * seconds), "allow_timeout_override": True}
        for level, seconds in served.triton.level_timeouts.items()
    }
    return {"priority_queue_policy": found} if found else {}


def _is_whole(served: ServedVersion) -> bool:
    """Whether clients send one tensor of the whole shape that the config has, and no batch."""
    return served.model.input.is_picture_file or (served.forms is not None and bool(served.forms.items))


def _version_policy(versions: str) -> dict[str, Any]:
    """Triton's version policy for the `versions` of serving.toml: "latest:N", "all" or a list."""
    if versions == "all":
        return {"all": {}}
    if versions.startswith("latest:"):
        return {"latest": {"num_versions": int(versions.removeprefix("latest:"))}}
    return {"specific": {"versions": [int(version) for version in versions.split(",")]}}


def _version_statistics(served: ServedVersion, found: Statistics) -> dict[str, Any]:
    failed, answered = found.failures.values(), found.phases.values()
    count = found.phases["encode"].count
    return {
        "name": served.name,
        "version": str(served.version),
        "last_inference": round(1000 * found.last_batch),
        "inference_count": found.items,
        "execution_count": sum(total.count for total in found.batches.values()),
        "inference_stats": {
            "success": _duration(CountAndSum(count, sum(total.seconds for total in answered))),
            "fail": _duration(CountAndSum(sum(total.count for total in failed), sum(total.seconds for total in failed))),
            # All with one count, as NVIDIA's clients demand: requests without decoding add no time to it.
            **{field: _duration(CountAndSum(count, found.phases[phase].seconds)) for phase, field in _PHASES.items()},
            "fail_by_reason": {reason: _duration(total) for reason, total in sorted(found.failures.items())},
        },
        "batch_stats": [{"batch_size": items, "compute_infer": _duration(total)} for items, total in sorted(found.batches.items())],
    }


def _duration(total: CountAndSum) -> dict[str, int]:
    return {"count": total.count, "ns": round(1e9 * total.seconds)}
