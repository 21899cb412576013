"""A model for benchmarks, without a training: the graph of `article-cnn` with random weights, always the same, and a contract."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.model.contract import METADATA_KEY, Contract, Training, own_head
from service.model.input_spec import InputSpec

LABELS = tuple("0123456789")
SIDE = 28
"""Pictures are uint8[28,28,1]."""


def write(path: Path, filters: int = 32) -> None:
    """Writes the model file; its folder is made. `filters` are those of the first convolution: 32 as in `article-cnn`."""
    random = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return random.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32)

    wide = 2 * filters
    layers = {
        "conv1": (filters, 1, 3, 3), "conv2": (wide, filters, 3, 3), "conv3": (wide, wide, 3, 3), "hidden": (64, 9 * wide),
        "output": (10, 64),
    }  # fmt: skip
    constants: dict[str, np.ndarray] = {
        "mean": np.array([[[33.0]]], np.float32),
        "std": np.array([[[78.0]]], np.float32),
        "flat": np.array([-1, 9 * wide], np.int64),
        **{f"{name}.weight": weights(*shape) for name, shape in layers.items()},
        **{f"{name}.bias": np.zeros(shape[0], np.float32) for name, shape in layers.items()},
    }
    node = helper.make_node
    nodes = [
        node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
        node("Cast", ["planes"], ["values"], to=TensorProto.FLOAT),
        node("Sub", ["values", "mean"], ["centred"]),
        node("Div", ["centred", "std"], ["pooled0"]),
        *(
            each
            for index in (1, 2, 3)
            for each in (
                node("Conv", [f"pooled{index - 1}", f"conv{index}.weight", f"conv{index}.bias"], [f"conv{index}"]),
                node("Relu", [f"conv{index}"], [f"active{index}"]),
                node("MaxPool", [f"active{index}"], [f"pooled{index}"], kernel_shape=[2, 2], strides=[2, 2]),
            )
            if each.op_type != "MaxPool" or index < 3
        ),
        node("Reshape", ["active3", "flat"], ["rows"]),
        node("Gemm", ["rows", "hidden.weight", "hidden.bias"], ["hidden"], transB=1),
        node("Relu", ["hidden"], ["active4"]),
        node("Gemm", ["active4", "output.weight", "output.bias"], ["logits"], transB=1),
        node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small-cnn",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIDE, SIDE, 1])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", len(LABELS)]) for name in ("probabilities", "logits")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    contract = Contract(
        schema=2, name="digits", input=InputSpec(height=SIDE, width=SIDE, channels=1), heads=(own_head(LABELS),),
        precision="fp32", training=Training(data="none", network="article-cnn", epochs=0, seed=0), golden=(),
    )  # fmt: skip
    model.metadata_props.add(key=METADATA_KEY, value=contract.to_json())
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, path)
