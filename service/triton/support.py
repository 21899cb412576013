"""What of a `config.pbtxt` Convoy does not do: refused, because the model would answer otherwise, or left unused."""

from collections.abc import Iterator
from typing import Any

from service.errors import UserError
from service.model.providers import Provider
from service.pb.inference.open_inference_pb2 import ModelConfig, ModelInstanceGroup

BACKENDS = ("", "onnxruntime")
PLATFORMS = ("", "onnxruntime_onnx")

ACCELERATORS: dict[str, Provider] = {"tensorrt": "tensorrt", "cuda": "cuda", "openvino": "openvino"}
"""Providers by what Triton calls them."""

_REFUSED = {
    "ensemble_scheduling": "it is an ensemble (`convoy import` makes a model that takes pictures itself)",
    "sequence_batching": "it takes sequences of requests (sequence_batching)",
    "batch_input": "it takes inputs that the server makes (batch_input)",
    "batch_output": "it gives outputs of whole batches (batch_output)",
    "model_operations": "it needs operators from a library (model_operations)",
    "model_repository_agents": "it is loaded through agents (model_repository_agents)",
}

_USED = {
    "name", "platform", "backend", "max_batch_size", "default_model_filename",
    "version_policy",
    "input.name", "input.data_type", "input.format", "input.dims", "input.reshape",
    "output.name", "output.data_type", "output.dims", "output.reshape", "output.label_filename",
    "instance_group.name", "instance_group.count", "instance_group.kind", "instance_group.gpus", "instance_group.passive",
    "dynamic_batching.preferred_batch_size", "dynamic_batching.max_queue_delay_microseconds",
    "dynamic_batching.priority_levels", "dynamic_batching.default_priority_level",
    "dynamic_batching.default_queue_policy.timeout_action",
    "dynamic_batching.default_queue_policy.default_timeout_microseconds",
    "dynamic_batching.default_queue_policy.allow_timeout_override",  # a request may always
    "dynamic_batching.default_queue_policy.max_queue_size",
    "dynamic_batching.priority_queue_policy.timeout_action",
    "dynamic_batching.priority_queue_policy.default_timeout_microseconds",
    "dynamic_batching.priority_queue_policy.allow_timeout_override",
    "optimization.execution_accelerators.gpu_execution_accelerator.name",  # unless `_unused_accelerators`
    "optimization.execution_accelerators.cpu_execution_accelerator.name",
    "model_warmup",
    "model_transaction_policy",
}  # fmt: skip
"""Fields by their names from ModelConfig on; a message's name stands for all that is in it."""


def check_supported(config: ModelConfig) -> None:
    """Raises UserError for a model that Convoy cannot serve as Triton does, with the reason."""
    if config.platform == "ensemble":
        raise UserError(f"{_REFUSED['ensemble_scheduling']}, which Convoy does not serve")
    for field, _ in config.ListFields():
        if field.name in _REFUSED:
            raise UserError(f"{_REFUSED[field.name]}, which Convoy does not serve")
    if config.backend not in BACKENDS:
        raise UserError(f"backend {config.backend[:64]!r}: Convoy serves ONNX models; accepted is onnxruntime")
    if config.platform not in PLATFORMS:
        raise UserError(f"platform {config.platform[:64]!r}: Convoy serves ONNX models; accepted is onnxruntime_onnx")
    if config.model_transaction_policy.decoupled:
        raise UserError("it answers a request any number of times (decoupled), which Convoy does not serve")
    for tensor in config.input:
        if tensor.allow_ragged_batch:
            raise UserError(f"input {tensor.name[:64]!r}: allow_ragged_batch, which Convoy does not serve")


def unused_fields(config: ModelConfig, folder_name: str) -> tuple[str, ...]:
    """The fields that are set and not used, by their names from ModelConfig on, sorted."""
    found = set(_unused(config, ""))
    if config.name not in ("", folder_name):
        found.add("name (the folder's counts)")
    if any(gpu for group in config.instance_group for gpu in group.gpus):
        found.add("instance_group.gpus (the first visible GPU is used)")
    return tuple(sorted(found.union(_unused_accelerators(config))))


def accelerator(config: ModelConfig) -> Provider | None:
    """The first accelerator of the kind of device that the instances are on by name, of those that Convoy has."""
    accelerators = config.optimization.execution_accelerators
    kinds = {group.kind for group in config.instance_group if not group.passive}
    if ModelInstanceGroup.KIND_GPU in kinds:
        named = accelerators.gpu_execution_accelerator
    elif ModelInstanceGroup.KIND_CPU in kinds:
        named = accelerators.cpu_execution_accelerator
    else:
        return None
    return next((ACCELERATORS[each.name] for each in named if each.name in ACCELERATORS), None)


def _unused_accelerators(config: ModelConfig) -> Iterator[str]:
    accelerators, used = config.optimization.execution_accelerators, accelerator(config)
    for each in (*accelerators.gpu_execution_accelerator, *accelerators.cpu_execution_accelerator):
        if each.name != used:
            yield f"accelerator {each.name[:64]}"


def _unused(message: Any, prefix: str) -> Iterator[str]:
    for field, value in message.ListFields():
        path = prefix + field.name
        if path in _USED:
            continue
        if not any(used.startswith(f"{path}.") for used in _USED):
            yield from (f"{path}.{key}" for key in value) if hasattr(value, "keys") else [path]
        elif hasattr(value, "ListFields"):
            yield from _unused(value, f"{path}.")
        else:
            for each in value.values() if hasattr(value, "values") else value:
                yield from _unused(each, f"{path}.")
