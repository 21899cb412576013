"""How one model is served, by its `config.pbtxt` and its policy file: a Policy, and what no key of a policy says.

Both files are optional. A key of the policy file (`serving.toml`) counts more than what config.pbtxt says of it.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from service.errors import ConvoyError, UserError
from service.model.declared import Declared
from service.model.repository_layout import MODEL_FILE, policy_path
from service.pb.inference.open_inference_pb2 import DataType, ModelConfig, ModelInstanceGroup, ModelQueuePolicy
from service.policy import MAX_TIMEOUT_SECONDS, Policy, make_policy, read_keys
from service.triton.config_file import CONFIG_FILE, config_path, read_config
from service.triton.model_config import MAX_RUNS, NO_TRITON, ConfiguredTensor, TritonSettings, WarmupSample
from service.triton.support import accelerator, check_supported, unused_fields

_MAX_BATCH_ITEMS = 4096
_KEY = re.compile(r"\b[a-z]+_[a-z_]+\b")
_QUEUE_ITEMS: int = Policy.model_fields["max_queue_items"].default


class ModelSettings(NamedTuple):
    """How one model is served.

    `named_by` are the names of the files that say so, for messages.
    """

    policy: Policy
    triton: TritonSettings = NO_TRITON
    named_by: str = ""


def settings_paths(repository: Path, name: str, policies: Path | None = None) -> tuple[Path, Path]:
    """The policy file of a model and its config.pbtxt, neither of which need exist."""
    return policy_path(repository, name, policies), config_path(repository, name)


def read_settings(repository: Path, name: str, policies: Path | None = None) -> ModelSettings:
    """How a model is served by the files in its folder, and by `<name>.toml` in `policies` in place of its `serving.toml`.

    Raises UserError that names the file, the key or field, and what is accepted.
    """
    policy_file, config_file = settings_paths(repository, name, policies)
    config = read_config(config_file)
    if config is None:
        return ModelSettings(make_policy(read_keys(policy_file), policy_file), named_by=policy_file.name)
    try:
        check_supported(config)
        given = _policy_keys(config)
        triton = _settings(config, name)
        Policy.model_validate(given)
    except ValidationError as error:
        raise UserError(f"{name}/{CONFIG_FILE}: {_wrong_key(error)}") from None
    except UserError as error:
        raise UserError(f"{name}/{CONFIG_FILE}: {error}") from None
    keys = read_keys(policy_file)
    if "default_timeout_seconds" in keys:
        triton = triton._replace(level_timeouts={})
    named_by = f"{CONFIG_FILE} or {policy_file.name}" if keys else CONFIG_FILE
    return ModelSettings(_merged(given, keys, config_file, policy_file), triton, named_by)


def declare(policy: Policy, triton: TritonSettings) -> Declared:
    """What is said of a model without a contract: by its policy and, where that says nothing, by its config."""
    sizes: tuple[int, ...] = ()
    if triton.inputs:
        whole = triton.inputs[0].dims if triton.inputs[0].reshape is None else triton.inputs[0].reshape
        sizes = whole if triton.batches else whole[1:]
    return policy.declared._replace(
        labelled=tuple(output for output, _ in triton.label_files),
        offered=tuple(output.name for output in triton.outputs),
        open_sizes=sizes if min(sizes, default=0) > 0 else (),
    )


def model_file_name(repository: Path, name: str) -> str:
    """The name of the model file in the folders of a model's versions; empty for a model that Convoy does not serve."""
    try:
        config = read_config(config_path(repository, name))
        if config is None:
            return MODEL_FILE
        check_supported(config)
        return _file_name("default_model_filename", config.default_model_filename) or MODEL_FILE
    except ConvoyError:
        return ""


def _merged(given: dict[str, Any], keys: dict[str, Any], config_file: Path, policy_file: Path) -> Policy:
    """The policy of what a config says, and of a policy file's keys, which count more.

    What the config says that a key leaves no room for yields to it, so far as what is left is served: a largest request below the
    queue's size, a default priority among the levels. Raises UserError that names the file at fault, or both if they disagree.
    """
    agreed = given | keys
    for bounded, bound in (("max_request_items", "max_queue_items"), ("default_priority", "priority_levels")):
        limit = keys.get(bound)
        if bounded in given and bounded not in keys and type(limit) is int and given[bounded] > limit >= 1:
            agreed.pop(bounded)
    try:
        return Policy.model_validate(agreed)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if first["loc"] or all(key in keys for key in _KEY.findall(message)):
            return make_policy(agreed, policy_file)  # raises what names this file alone
        raise UserError(f"{config_file.parent.name}/{config_file.name} and {policy_file.name}: {message}") from None


def _policy_keys(config: ModelConfig) -> dict[str, Any]:
    """What a config says, as keys of `serving.toml`."""
    keys: dict[str, Any] = {}
    limit = config.max_batch_size
    if limit < 0:
        raise UserError(f"max_batch_size {limit}: accepted is 0, for tensors without a batch dimension, or more")
    if limit:
        keys |= {"max_batch_size": min(limit, _MAX_BATCH_ITEMS), "max_request_items": limit}
    elif config.input and (whole := tuple(config.input[0].reshape.shape or config.input[0].dims)) and whole[0] > 0:
        keys["max_request_items"] = whole[0]
    keys["max_queue_items"] = max(_QUEUE_ITEMS, keys.get("max_request_items", 0))
    keys |= _versions(config) | _instances(config)
    if config.HasField("dynamic_batching"):
        keys |= _batching(config, keys)
    return keys


def _versions(config: ModelConfig) -> dict[str, Any]:
    policy = config.version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return {"versions": "all"}
        case "latest":
            return {"versions": f"latest:{policy.latest.num_versions or 1}"}
        case "specific":
            if not policy.specific.versions:
                raise UserError("version_policy: specific names no versions")
            return {"versions": ",".join(map(str, policy.specific.versions))}
    return {}


def _instances(config: ModelConfig) -> dict[str, Any]:
    groups = [group for group in config.instance_group if not group.passive]
    kinds = {ModelInstanceGroup.KIND_AUTO if group.kind == ModelInstanceGroup.KIND_MODEL else group.kind for group in groups}
    if len(kinds) > 1:
        raise UserError("instance_group: instances of one model compute on one kind of device; accepted is one kind for all groups")
    keys: dict[str, Any] = {"instances": sum(max(1, group.count) for group in groups)} if groups else {}
    provider = accelerator(config) or ("cpu" if ModelInstanceGroup.KIND_CPU in kinds else None)
    # KIND_GPU says where its author's machine computes it: where there is no GPU, --provider decides as for any model.
    return keys | ({"provider": provider} if provider else {})


def _batching(config: ModelConfig, given: dict[str, Any]) -> dict[str, Any]:
    batching = config.dynamic_batching
    keys: dict[str, Any] = {"max_queue_delay_seconds": batching.max_queue_delay_microseconds / 1e6}
    if batching.preferred_batch_size:
        largest = max(batching.preferred_batch_size)
        if min(batching.preferred_batch_size) < 1 or largest > config.max_batch_size:
            raise UserError(f"preferred_batch_size: accepted are 1 to max_batch_size, {config.max_batch_size}")
        keys["max_batch_size"] = min(largest, _MAX_BATCH_ITEMS)
    if batching.priority_levels:
        keys["priority_levels"] = batching.priority_levels
        if batching.default_priority_level:
            keys["default_priority"] = batching.default_priority_level
    queue = batching.default_queue_policy
    if queue.timeout_action == ModelQueuePolicy.REJECT:
        keys["default_timeout_seconds"] = _timeout_seconds(queue)
    if queue.max_queue_size:
        keys["max_queue_items"] = max(queue.max_queue_size, given.get("max_request_items", 0))
        if "max_request_items" not in given:
            keys["max_request_items"] = min(512, keys["max_queue_items"])
    return keys


def _timeout_seconds(queue: ModelQueuePolicy) -> float:
    """Of requests that set none; 0 for no limit, as where late ones are only delayed."""
    return queue.default_timeout_microseconds / 1e6 if queue.timeout_action == ModelQueuePolicy.REJECT else 0.0


def _level_timeouts(config: ModelConfig) -> dict[int, float]:
    found = {level: _timeout_seconds(queue) for level, queue in sorted(config.dynamic_batching.priority_queue_policy.items())}
    for level, seconds in found.items():
        if not 1 <= level <= config.dynamic_batching.priority_levels:
            raise UserError(
                f"priority_queue_policy: level {level}; accepted is 1 to priority_levels, {config.dynamic_batching.priority_levels}"
            )
        if seconds > MAX_TIMEOUT_SECONDS:
            most = f"{MAX_TIMEOUT_SECONDS * 1e6:.0f}"
            raise UserError(f"priority_queue_policy of level {level}: default_timeout_microseconds: accepted is 0 to {most}")
    return found


def _settings(config: ModelConfig, name: str) -> TritonSettings:
    return TritonSettings(
        model_file=_file_name("default_model_filename", config.default_model_filename) or MODEL_FILE,
        label_files=tuple(
            (output.name, _file_name("label_filename", output.label_filename)) for output in config.output if output.label_filename
        ),
        batches=config.max_batch_size > 0,
        inputs=tuple(map(_tensor, config.input)),
        outputs=tuple(map(_tensor, config.output)),
        warmup=_warmup(config),
        accelerator=accelerator(config) or "",
        level_timeouts=_level_timeouts(config),
        unused=unused_fields(config, name),
    )


def _file_name(field: str, name: str) -> str:
    """Raises UserError unless it names a file of the folder that it is looked for in."""
    if "/" in name or "\\" in name or "\0" in name or name in (".", "..") or len(name) > 255:
        raise UserError(f"{field} {name[:64]!r}: accepted is the name of a file, without folders")
    return name


def _tensor(tensor: Any) -> ConfiguredTensor:
    if not tensor.name or not tensor.dims:
        raise UserError(f"tensor {tensor.name[:64]!r}: a tensor has a name and dims")
    reshape = tuple(tensor.reshape.shape) if tensor.HasField("reshape") else None
    if any(size < 1 and size != -1 for size in (*tensor.dims, *(reshape or ()))):
        raise UserError(f"tensor {tensor.name[:64]!r}: accepted as dimensions are 1 or more, and -1 for any")
    return ConfiguredTensor(tensor.name, DataType.Name(tensor.data_type), tuple(tensor.dims), reshape)


def _warmup(config: ModelConfig) -> tuple[WarmupSample, ...]:
    samples = []
    for sample in config.model_warmup:
        where = f"model_warmup {sample.name[:64]!r}"
        if len(sample.inputs) != 1:
            raise UserError(f"{where}: it has {len(sample.inputs)} inputs; a model here takes 1")
        [(name, given)] = sample.inputs.items()
        kind = given.WhichOneof("input_data_type")
        if kind is None:
            raise UserError(f"{where}: accepted are zero_data, random_data and input_data_file")
        file = _file_name("input_data_file", given.input_data_file) if kind == "input_data_file" else ""
        items = max(1, sample.batch_size)
        if items > max(1, config.max_batch_size):
            raise UserError(f"{where}: batch_size {items} is above max_batch_size, {config.max_batch_size}")
        data_type = DataType.Name(given.data_type)
        samples.append(WarmupSample(sample.name, name, data_type, tuple(given.dims), items, max(1, sample.count), kind, file))
    if sum(sample.runs for sample in samples) > MAX_RUNS:
        raise UserError(f"model_warmup: all samples together are run at most {MAX_RUNS} times")
    return tuple(samples)


_FIELDS = {
    "max_queue_delay_seconds": "max_queue_delay_microseconds", "default_timeout_seconds": "default_timeout_microseconds",
    "default_priority": "default_priority_level", "instances": "instance_group.count", "versions": "version_policy",
}  # fmt: skip
"""What Triton calls that which a policy's key says; the others have the same name."""


def _wrong_key(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(step) for step in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    field = _FIELDS.get(key, key)
    if field.endswith("_microseconds"):
        message = f"accepted is 0 to {first['ctx']['le'] * 1e6:.0f}"  # integers without a sign: only too large ones are wrong
    return f"{field}: {message}" if key else _KEY.sub(lambda found: _FIELDS.get(found[0], found[0]), message)
