"""The end of a network: its last linear layer, and global average pooling before it.

Class activation maps need both; an embedding is what the linear layer takes.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from export.inspection.activations import Activations

_AVERAGES = ("GlobalAveragePool", "ReduceMean", "AveragePool")
_AFTER_PRODUCT = (
    "Softmax", "LogSoftmax", "Sigmoid", "Log", "Max", "Pad", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Div", "Mul", "Add",
)  # fmt: skip
_AFTER_POOLING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class AveragePooling:
    """What class activation maps are made of.

    Attributes:
        maps: the value in the graph that is averaged, [N,C,h,w].
        weights: of the linear layer, float32[K,C]; None if the C averages are the scores of the classes. Of a head of a single
            unit z, whose logits are [0, z], the second class has the weights of z and the first their negative.
    """

    maps: str
    weights: NDArray[np.float32] | None


def average_pooling(activations: Activations, scores: str) -> AveragePooling | None:
    """The global average pooling that the output `scores` of logits or probabilities ends in; None if it does not."""
    product = last_product(activations, scores)
    weights = None
    if product is not None:
        weights = activations.constant(product.input[1])  # [K,C], [C,K] or [K,C,1,1]
        pooling = _source_before(activations, activations.source(product.input[0]), _AFTER_POOLING)
        if weights is None:
            return None
        if product.op_type == "Conv":
            weights = weights.reshape(weights.shape[:2])
        elif not _is_transposed(product):
            weights = weights.T
    else:  # the maps are those of the classes
        pooling = _source_before(activations, activations.source(scores), _AFTER_PRODUCT)
    if pooling is None or pooling.op_type not in _AVERAGES:
        return None
    maps, means = activations.value(pooling.input[0]), activations.value(pooling.output[0]).ravel()
    if (
        maps.ndim != 4
        or maps.shape[1] != len(means)
        or np.prod(maps.shape[2:]) == 1
        or not np.allclose(maps.mean((0, 2, 3)), means, rtol=1e-2, atol=1e-3)
        or (weights is not None and weights.shape[1] != len(means))
    ):
        return None
    if weights is not None and len(weights) == 1:
        weights = np.concatenate([-weights, weights])
    return AveragePooling(pooling.input[0], weights)


def last_product(activations: Activations, scores: str) -> onnx.NodeProto | None:
    """The linear layer that gives `scores`, a matrix product or a convolution of one place; None if another operator does."""
    product = _source_before(activations, activations.source(scores), _AFTER_PRODUCT)
    if product is None or product.op_type not in ("Gemm", "MatMul", "Conv"):
        return None
    weights = activations.constant(product.input[1])
    if weights is None:
        return None
    if product.op_type == "Conv":
        is_linear = weights.ndim == 4 and weights.shape[2:] == (1, 1) and activations.value(product.input[0]).shape[2:] == (1, 1)
        return product if is_linear else None
    return product if weights.ndim == 2 else None


def _is_transposed(product: onnx.NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in product.attribute)


def _source_before(activations: Activations, node: onnx.NodeProto | None, skipped: tuple[str, ...]) -> onnx.NodeProto | None:
    """Goes back over `skipped` operators to the node before them.

    They only scale, shift or lay out their one computed input; a sigmoid unit z also becomes the logits [0, z].
    """
    while node is not None and (node.op_type in skipped or _is_pair(activations, node)):
        inputs = activations.computed_inputs(node)
        is_clear = len(inputs) == 1 or node.op_type == "Concat"
        node = activations.source(inputs[-1]) if inputs and is_clear else None
    return node


def _is_pair(activations: Activations, node: onnx.NodeProto) -> bool:
    return node.op_type == "Concat" and len(node.input) == 2 and activations.value(node.output[0]).shape[1:] == (2,)
