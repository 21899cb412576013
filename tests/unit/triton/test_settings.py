"""How a model is served by its `config.pbtxt`, and by the `serving.toml` beside it."""

from pathlib import Path

import pytest

from service.errors import UserError
from service.policy import Policy
from service.triton import config_file
from service.triton.model_config import NO_TRITON, ConfiguredTensor, TritonSettings, WarmupSample
from service.triton.settings import ModelSettings, declare, model_file_name, read_settings
from tests.unit.triton import configs


def read(folder: Path, config: str | bytes, serving: str = "", name: str = "pets") -> ModelSettings:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "config.pbtxt").write_bytes(config if isinstance(config, bytes) else config.encode())
    if serving:
        (folder / name / "serving.toml").write_text(serving)
    return read_settings(folder, name)


def test_a_model_without_the_file_is_served_as_its_policy_says(tmp_path: Path) -> None:
    assert read_settings(tmp_path, "pets") == (Policy(), NO_TRITON, "serving.toml")
    assert read(tmp_path, "")[:2] == (Policy(max_queue_items=1024), TritonSettings(batches=False))


def test_densenet_whose_tensors_have_no_batch_dimension(tmp_path: Path) -> None:
    policy, triton, _ = read(tmp_path, configs.DENSENET, name="densenet")
    assert policy == Policy(max_request_items=1)
    assert triton == TritonSettings(
        label_files=(("fc6_1", "densenet_labels.txt"),),
        batches=False,
        inputs=(ConfiguredTensor("data_0", "TYPE_FP32", (3, 224, 224), (1, 3, 224, 224)),),
        outputs=(ConfiguredTensor("fc6_1", "TYPE_FP32", (1000,), (1, 1000, 1, 1)),),
    )


def test_resnet_with_versions_instances_and_a_file_of_another_name(tmp_path: Path) -> None:
    policy, triton, named_by = read(tmp_path, configs.RESNET)
    assert policy == Policy(max_batch_size=128, max_request_items=128, versions="1,3", instances=2, provider="cpu")
    assert (triton.model_file, triton.label_files, triton.batches) == ("resnet50.onnx", (("output", "labels.txt"),), True)
    assert triton.unused == ("parameters.execution_mode", "parameters.intra_op_thread_count")
    assert named_by == "config.pbtxt"
    assert model_file_name(tmp_path, "pets") == "resnet50.onnx"


def test_mobilenet_with_all_that_a_dynamic_batcher_has(tmp_path: Path) -> None:
    policy, triton, _ = read(tmp_path, configs.MOBILENET)
    assert policy == Policy(
        max_batch_size=16, max_request_items=32, max_queue_items=100, max_queue_delay_seconds=0.002, default_timeout_seconds=0.5,
        priority_levels=3, default_priority=2, instances=1, provider="tensorrt",
    )  # fmt: skip
    assert triton.warmup == (WarmupSample("zeros", "input", "TYPE_FP32", (3, 224, 224), 8, 2, "zero_data"),)
    assert triton.unused == (
        "dynamic_batching.preserve_ordering", "dynamic_batching.priority_queue_policy.max_queue_size", "name (the folder's counts)",
        "optimization.execution_accelerators.gpu_execution_accelerator.parameters.precision_mode", "optimization.graph",
        "response_cache",
    )  # fmt: skip


def test_a_config_that_leaves_nearly_all_out(tmp_path: Path) -> None:
    """As exporters write them: the graph says the rest."""
    policy, triton, _ = read(tmp_path, configs.FEW_FIELDS)
    assert policy == Policy()
    assert triton == TritonSettings(batches=False, unused=("accelerator tensorrt", *TENSORRT_OPTIONS, "parameters.metadata"))


ACCELERATOR = "optimization.execution_accelerators.gpu_execution_accelerator.parameters"
TENSORRT_OPTIONS = (f"{ACCELERATOR}.precision_mode", f"{ACCELERATOR}.trt_engine_cache_enable")


def test_tensors_of_whole_shapes(tmp_path: Path) -> None:
    policy, triton, _ = read(tmp_path, configs.YOLO_CLS)
    assert policy == Policy(max_request_items=1, versions="latest:2")
    assert triton.inputs == (ConfiguredTensor("images", "TYPE_FP32", (1, 3, 224, 224)),)
    assert read(tmp_path, configs.OPEN_BATCH).policy == Policy(versions="all")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (configs.ENSEMBLE, "it is an ensemble .*, which Convoy does not serve"),
        (configs.ENSEMBLE.replace('platform: "ensemble"', ""), "it is an ensemble .*, which Convoy does not serve"),
        (configs.PYTHON, "backend 'python': Convoy serves ONNX models; accepted is onnxruntime"),
        (configs.TENSORRT, "platform 'tensorrt_plan': Convoy serves ONNX models; accepted is onnxruntime_onnx"),
        (configs.SEQUENCE, r"it takes sequences of requests \(sequence_batching\), which Convoy does not serve"),
        ("sequence_batching { }", "it takes sequences"),
        (configs.DECOUPLED, r"it answers a request any number of times \(decoupled\)"),
        ("batch_input [ { target_name: 'x' } ]", r"it takes inputs that the server makes \(batch_input\)"),
        ("batch_output [ { target_name: 'x' } ]", r"it gives outputs of whole batches \(batch_output\)"),
        ("model_operations { op_library_filename: 'x.so' }", r"it needs operators from a library"),
        ("model_repository_agents { agents [ { name: 'checksum' } ] }", r"it is loaded through agents"),
        ("input [ { name: 'x' dims: 1 allow_ragged_batch: true } ]", "input 'x': allow_ragged_batch"),
    ],
)
def test_what_convoy_does_not_do_is_refused_by_name(config: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^pets/config.pbtxt: {reason}"):
        read(tmp_path, config)
    assert model_file_name(tmp_path, "pets") == "", "its folders are not looked into"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ('max_batch: 3\nname: "a"', "line 1: Triton's ModelConfig has no field 'max_batch'"),
        ('name: "a"\ninput [ { nme: "b" } ]', "line 2: Triton's ModelInput has no field 'nme'"),
        ("max_batch_size: many", "line 1: Couldn't parse integer: many"),
        ("input { data_type: TYPE_FLOAT }", 'line 1: Enum type "inference.DataType" has no value named TYPE_FLOAT'),
        ('name: "a', "line 1: String missing ending quote"),
        ("max_batch_size: -1", "max_batch_size -1: accepted is 0, for tensors without a batch dimension, or more"),
        ("version_policy { specific { } }", "version_policy: specific names no versions"),
        ("version_policy { specific { versions: 0 } }", "version_policy: accepted are"),
        ("instance_group [ { count: 99 } ]", "instance_group.count: Input should be less than or equal to 64"),
        ("instance_group [ { kind: KIND_CPU }, { kind: KIND_GPU } ]", "instance_group: .* accepted is one kind for all groups"),
        ("dynamic_batching { max_queue_delay_microseconds: 61000000 }", "max_queue_delay_microseconds: accepted is 0 to 60000000$"),
        (
            "dynamic_batching { default_queue_policy { timeout_action: REJECT default_timeout_microseconds: 2000000000000000 } }",
            "default_timeout_microseconds: accepted is 0 to 1000000000000000$",
        ),
        (
            "dynamic_batching { priority_levels: 2 default_priority_level: 3 }",
            r"default_priority_level \(3\) is above priority_levels",
        ),
        ("max_batch_size: 8 dynamic_batching { preferred_batch_size: 16 }", "preferred_batch_size: accepted are 1 to .* 8"),
        ("default_model_filename: '../other/1/model.onnx'", "default_model_filename '../other/1/model.onnx': accepted is the name"),
        ("output [ { name: 'x' dims: 3 label_filename: '/etc/passwd' } ]", "label_filename '/etc/passwd': accepted is the name"),
        ("input [ { name: 'x' } ]", "tensor 'x': a tensor has a name and dims"),
        ("input [ { name: 'x' dims: [ 3, 0 ] } ]", "tensor 'x': accepted as dimensions are 1 or more"),
        ("model_warmup [ { name: 'w' } ]", "model_warmup 'w': it has 0 inputs"),
        ("model_warmup [ { name: 'w' inputs { key: 'x' value { dims: 3 } } } ]", "model_warmup 'w': accepted are zero_data"),
        ("model_warmup [ { batch_size: 2 inputs { key: 'x' value { zero_data: true } } } ]", ".*batch_size 2 is above max_batch_"),
        ("model_warmup [ { count: 1001 inputs { key: 'x' value { zero_data: true } } } ]", "model_warmup: all samples together"),
        (
            "model_warmup [ { inputs { key: 'x' value { input_data_file: '../x' } } } ]",
            "input_data_file '../x': accepted is the name of a file",
        ),
        (b"\xff\xfe\x00", "the file is UTF-16; save it as UTF-8"),
        (b"name: '\\377'", ""),
        (b"#" * (config_file.MAX_BYTES + 1), "larger than 262144 bytes"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_field(config: str | bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^pets/config.pbtxt: {reason}") as refused:
        read(tmp_path, config)
    assert "\n" not in str(refused.value)


OPENVINO = "optimization { execution_accelerators { cpu_execution_accelerator: [ { name: 'openvino' } ] } }"
TENSORRT = "optimization { execution_accelerators { gpu_execution_accelerator { name: 'tensorrt' } } }"


@pytest.mark.parametrize(
    ("config", "provider"),
    [
        ("instance_group [ { kind: KIND_GPU } ]", None),
        ("instance_group [ { kind: KIND_CPU } ]", "cpu"),
        ("instance_group [ { count: 1 } ]", None),
        ("instance_group [ { kind: KIND_MODEL } ]", None),
        ("instance_group [ { kind: KIND_CPU }, { kind: KIND_GPU passive: true } ]", "cpu"),
        (f"instance_group [ {{ kind: KIND_CPU }} ] {OPENVINO}", "openvino"),
        (f"instance_group [ {{ kind: KIND_GPU }} ] {OPENVINO}", None),
        (OPENVINO, None),
        (f"instance_group [ {{ kind: KIND_GPU }} ] {TENSORRT}", "tensorrt"),
        (f"instance_group [ {{ kind: KIND_CPU }} ] {TENSORRT}", "cpu"),
        (TENSORRT, None),
        (f"instance_group [ {{ kind: KIND_GPU }} ] {TENSORRT.replace('tensorrt', 'gpu_io')}", None),
    ],
)
def test_groups_and_accelerators_say_where_it_computes(config: str, provider: str | None, tmp_path: Path) -> None:
    policy, triton, _ = read(tmp_path, config)
    assert policy.provider == provider
    assert triton.accelerator == ("" if provider == "cpu" else provider or "")
    accelerators = {name for name in ("openvino", "tensorrt", "gpu_io") if name in config}
    assert set(triton.unused) == {f"accelerator {name}" for name in accelerators - {provider}}


def test_a_priority_level_may_have_a_timeout_of_its_own(tmp_path: Path) -> None:
    batching = "priority_levels: 3 default_queue_policy { default_timeout_microseconds: 500000 } priority_queue_policy %s"
    own = "[ { key: 1 value { default_timeout_microseconds: 20000 } }, { key: 3 value { timeout_action: DELAY } } ]"
    config = f"dynamic_batching {{ {batching % own} }}"
    policy, triton, _ = read(tmp_path, config)
    assert (policy.default_timeout_seconds, triton.level_timeouts, triton.unused) == (0.5, {1: 0.02, 3: 0.0}, ())
    policy, triton, _ = read(tmp_path, config, "default_timeout_seconds = 2.0")
    assert (policy.default_timeout_seconds, triton.level_timeouts) == (2.0, {})
    for wrong, said in (
        ("{ key: 4 value { } }", "priority_queue_policy: level 4; accepted is 1 to priority_levels, 3$"),
        ("{ key: 2 value { default_timeout_microseconds: 2000000000000000 } }", "of level 2: .*accepted is 0 to 1000000000000000$"),
    ):
        with pytest.raises(UserError, match=said):
            read(tmp_path, f"dynamic_batching {{ {batching % wrong} }}")


def test_requests_that_are_to_be_delayed_get_no_timeout_after_which_they_are_refused(tmp_path: Path) -> None:
    queue = "default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 1000 }"
    assert read(tmp_path, f"dynamic_batching {{ {queue} }}").policy.default_timeout_seconds == 0


def test_a_queue_takes_the_largest_request_and_a_batch_no_more_than_a_policy_may_have(tmp_path: Path) -> None:
    batching = "dynamic_batching { default_queue_policy { max_queue_size: 10 } }"
    policy = read(tmp_path, f"max_batch_size: 5000 {batching}").policy
    assert (policy.max_batch_size, policy.max_request_items, policy.max_queue_items) == (4096, 5000, 5000)
    policy = read(tmp_path, batching).policy
    assert (policy.max_request_items, policy.max_queue_items) == (10, 10)


def test_a_key_of_serving_toml_counts_more(tmp_path: Path) -> None:
    policy, triton, named_by = read(tmp_path, configs.MOBILENET, 'provider = "auto"\nmax_batch_size = 8\n[aliases]\nstable = 1\n')
    assert (policy.provider, policy.max_batch_size, policy.aliases) == ("auto", 8, {"stable": 1})
    assert (policy.max_request_items, policy.default_timeout_seconds) == (32, 0.5)
    assert named_by == "config.pbtxt or serving.toml"
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "pets.toml").write_text("max_batch_size = 4")
    policy, again, _ = read_settings(tmp_path, "pets", tmp_path / "policies")
    assert (policy.provider, policy.max_batch_size, again) == ("tensorrt", 4, triton)
    with pytest.raises(UserError, match=r"^pets/serving.toml: max_queue_items: .*greater than or equal to 1"):
        read(tmp_path, configs.MOBILENET, "max_queue_items = 0")


def test_what_the_config_says_leaves_room_for_a_key_of_serving_toml(tmp_path: Path) -> None:
    policy = read(tmp_path, "max_batch_size: 256", "max_queue_items = 100").policy
    assert (policy.max_queue_items, policy.max_request_items) == (100, 100)
    policy = read(tmp_path, configs.MOBILENET, "priority_levels = 1").policy
    assert (policy.priority_levels, policy.default_priority) == (1, 1)


@pytest.mark.parametrize(
    ("serving", "said"),
    [
        ("max_request_items = 101", r"config.pbtxt and serving.toml: max_request_items \(101\) is above max_queue_items \(100\)"),
        ("default_priority = 4", r"config.pbtxt and serving.toml: default_priority \(4\) is above priority_levels \(3\)"),
        ("max_queue_items = 9\nmax_request_items = 10", r"serving.toml: max_request_items \(10\) is above max_queue_items \(9\)"),
    ],
)
def test_files_that_disagree_are_both_named(serving: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^pets/{said}$"):
        read(tmp_path, configs.MOBILENET, serving)


def test_a_changed_file_is_read_again_and_another_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(tmp_path, "max_batch_size: 8").policy.max_batch_size == 8
    read_texts = []

    def read_text(path: Path, _: int) -> str:
        read_texts.append(path)
        return "max_batch_size: 9"

    monkeypatch.setattr(config_file, "read_text", read_text)
    assert read_settings(tmp_path, "pets").policy.max_batch_size == 8
    assert read(tmp_path, "max_batch_size: 16").policy.max_batch_size == 9
    assert len(read_texts) == 1


def test_a_broken_file_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="has no field 'x'"):
        read(tmp_path, "x: 1")
    monkeypatch.delattr(config_file, "text_format")
    with pytest.raises(UserError, match="has no field 'x'"):
        read_settings(tmp_path, "pets")


def test_the_config_says_which_output_has_labels_and_what_the_graph_leaves_open(tmp_path: Path) -> None:
    policy, triton, _ = read(tmp_path, configs.TWO_HEADS)
    declared = declare(policy, triton)
    assert (declared.labelled, declared.offered, declared.open_sizes) == (("article", "color"), ("article", "color"), (3, 224, 224))
    policy, triton, _ = read(tmp_path, configs.DENSENET, "scores = 'logits'\ninput_shape = [32, 32]")
    declared = declare(policy, triton)
    assert (declared.scores, declared.input_shape, declared.open_sizes) == ("logits", (32, 32), (3, 224, 224))
    assert declare(*read(tmp_path, configs.TWO_HEADS.replace("[ 3, 224, 224 ]", "[ 3, -1, -1 ]"))[:2]).open_sizes == ()
