"""A session and its provider: batches in buffers of a few sizes, and providers that are not to be had."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from export.data.datasets import Dataset
from service.errors import InvalidModel, LoadError, UserError
from service.model.inference import Model, batch_sizes
from service.model.loading import load_model
from service.model.providers import ONNX_RUNTIME_NAMES, Provider
from service.model.session import Bucket, ModelContent, check_provider, open_session
from service.model.signature import contract_signature


def with_buckets(path: Path, max_items: int) -> Model:
    """A model that computes as on a GPU, with buffers that lie in main memory."""
    opened = open_session(ModelContent(path.read_bytes()), "cpu", 1)
    contract = load_model(path, "cpu", 1).contract
    signature = contract_signature(opened, contract)
    buckets = [Bucket(opened, signature, "cpu", items) for items in batch_sizes(max_items)]
    for bucket in buckets:
        bucket.warm_up(cuda_graphs=True)
    return Model(opened, signature, contract.labels, contract, "cpu", 1, "", buckets)


def test_buckets_of_a_few_sizes_serve_batches_of_any_size(model_file: Path, digits: Dataset) -> None:
    plain, bucketed = load_model(model_file, "cpu", 1), with_buckets(model_file, 6)
    assert [bucket.items for bucket in bucketed._buckets] == [1, 2, 4, 6]
    pixels = digits.test.pixels
    for items in (1, 3, 6, 5, 2, 13):  # fewer after more, so that old items lie behind them; and more than the largest holds
        outputs = [output.copy() for output in bucketed.predict(pixels[:items])]
        for output, expected in zip(outputs, plain.predict(pixels[:items]), strict=True):
            np.testing.assert_allclose(output, expected, atol=1e-6)


def test_padding_holds_no_items_of_an_earlier_batch(model_file: Path, digits: Dataset) -> None:
    bucketed = with_buckets(model_file, 8)
    for items in (7, 5):
        bucketed.predict(digits.test.pixels[:items])
    staging = bucketed._buckets[-1]._staging
    assert staging[:5].any()
    assert not staging[5:].any()


@pytest.mark.parametrize(
    ("operator", "attributes", "said"),
    [
        ("Cast", {"to": onnx.TensorProto.FLOAT16}, r"gives probabilities as tensor\(float16\) \[.*\]; tensor\(float\) \[N, K\] is"),
        ("ReduceMax", {"keepdims": 0}, r"gives probabilities as tensor\(float\) \[\]"),
    ],
)
def test_outputs_of_another_type_or_shape_are_refused(
    operator: str, attributes: dict[str, Any], said: str, model_file: Path, tmp_path: Path
) -> None:
    graph = onnx.load(model_file)
    for node in graph.graph.node:
        node.output[:] = ["before" if name == "probabilities" else name for name in node.output]
    graph.graph.node.append(onnx.helper.make_node(operator, ["before"], ["probabilities"], **attributes))
    [output] = [output for output in graph.graph.output if output.name == "probabilities"]
    output.type.CopyFrom(onnx.TypeProto())
    output.type.tensor_type.elem_type = attributes.get("to", onnx.TensorProto.FLOAT)
    onnx.save_model(graph, tmp_path / "model.onnx")
    with pytest.raises(InvalidModel, match=said):
        load_model(tmp_path / "model.onnx", "cpu", 1)


def test_batch_sizes_are_powers_of_two_and_the_largest() -> None:
    assert batch_sizes(1) == [1]
    assert batch_sizes(8) == [1, 2, 4, 8]
    assert batch_sizes(11) == [1, 2, 4, 8, 11]


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "openvino"])
def test_a_missing_provider_is_an_error_and_never_replaced_by_the_cpu(provider: Provider, model_file: Path) -> None:
    if ONNX_RUNTIME_NAMES[provider] in onnxruntime.get_available_providers():  # type: ignore[index]
        assert load_model(model_file, provider, 1).provider == provider
        return
    message = f"provider '{provider}' is not in the installed ONNX Runtime, which has "
    with pytest.raises(LoadError, match=message):
        load_model(model_file, provider, 1, None, 4)
    with pytest.raises(UserError, match=message):
        check_provider(provider)


def test_auto_takes_a_provider_that_works(model_file: Path) -> None:
    assert load_model(model_file, "auto", 1).provider in ("cuda", "cpu")
