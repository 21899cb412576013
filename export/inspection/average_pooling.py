"""The end of a network: its last linear layer, and global average pooling before it.

Class activation maps need both; an embedding is what the linear layer takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from export.inspection.activations import Activations

_AVERAGES = ("GlobalAveragePool", "ReduceMean", "AveragePool")
_AFTER_PRODUCT = (
    "Softmax", "LogSoftmax", "Sigmoid", "Log", "Max", "Pad", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Div", "Mul", "Add",
)  # fmt: skip
_AFTER_POOLING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_LINEAR = (*_AFTER_POOLING, "Mul", "Div", "Add")
"""Of those after the product: whose results are, for each class, a multiple of what the product gave, but for a bias."""


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
    end, passed = _back_over(activations, activations.source(scores), _AFTER_PRODUCT)
    factors = _factors(activations, passed)
    if factors is None:
        return None
    product = _as_linear(activations, end)
    weights = None
    if product is not None:
        weights = activations.constant(product.input[1])  # [K,C], [C,K] or [K,C,1,1]
        pooling = _source_before(activations, activations.source(product.input[0]), _AFTER_POOLING)
        if weights is None:
            return None
        if product.op_type == "Conv":
            weights = weights.reshape(weights.shape[:2])
        elif not _attribute(product, "transB", 0):
            weights = weights.T
        factors = factors * np.float32(_attribute(product, "alpha", 1.0))
        if len(factors) not in (1, len(weights)):
            return None
        weights = weights * factors[:, np.newaxis]
    else:  # the maps are those of the classes
        pooling = end
        if not (factors == 1).all():
            return None
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
    return _as_linear(activations, _source_before(activations, activations.source(scores), _AFTER_PRODUCT))


def _as_linear(activations: Activations, product: onnx.NodeProto | None) -> onnx.NodeProto | None:
    """The node, if it is a linear layer."""
    if product is None or product.op_type not in ("Gemm", "MatMul", "Conv"):
        return None
    weights = activations.constant(product.input[1])
    if weights is None:
        return None
    if product.op_type == "Conv":
        is_linear = weights.ndim == 4 and weights.shape[2:] == (1, 1) and activations.value(product.input[0]).shape[2:] == (1, 1)
        return product if is_linear else None
    return product if weights.ndim == 2 else None


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    """Of a matrix product; a MatMul has none."""
    found = [helper.get_attribute_value(attribute) for attribute in node.attribute if attribute.name == name]
    return float(found[0]) if found else default


def _factors(activations: Activations, passed: Sequence[onnx.NodeProto]) -> NDArray[np.float32] | None:
    """What the scores of the classes are multiplied by in these nodes, the last first: float32[1] or [K].

    A positive factor of all classes, as a temperature is, counts as 1: it changes no map but its scale. None if a class is given
    another one where the scores are no multiple of what the linear layer gave, as after a softmax.
    """
    factors = np.ones(1, np.float32)
    is_linear = True
    for node in reversed(passed):
        is_linear &= node.op_type in _LINEAR
        if node.op_type not in ("Mul", "Div"):
            continue
        by = node.input[1] if node.op_type == "Div" or activations.constant(node.input[0]) is None else node.input[0]
        factor = activations.constant(by)
        if factor is None or not factor.size:
            return None
        factor = factor.ravel()
        if factor[0] > 0 and np.allclose(factor, factor[0]):
            continue
        if not is_linear or not factor.all() or (len(factors) > 1 and len(factor) not in (1, len(factors))):
            return None
        factors = factors * factor if node.op_type == "Mul" else factors / factor
    return factors


def _source_before(activations: Activations, node: onnx.NodeProto | None, skipped: tuple[str, ...]) -> onnx.NodeProto | None:
    """See `_back_over`."""
    return _back_over(activations, node, skipped)[0]


def _back_over(
    activations: Activations, node: onnx.NodeProto | None, skipped: tuple[str, ...]
) -> tuple[onnx.NodeProto | None, list[onnx.NodeProto]]:
    """Goes back over `skipped` operators: the node before them, and those passed, the last of the graph first.

    They only scale, shift or lay out their one computed input; a sigmoid unit z also becomes the logits [0, z].
    """
    passed = []
    while node is not None and (node.op_type in skipped or _is_pair(activations, node)):
        passed.append(node)
        inputs = activations.computed_inputs(node)
        is_clear = len(inputs) == 1 or node.op_type == "Concat"
        node = activations.source(inputs[-1]) if inputs and is_clear else None
    return node, passed


def _is_pair(activations: Activations, node: onnx.NodeProto) -> bool:
    return node.op_type == "Concat" and len(node.input) == 2 and activations.value(node.output[0]).shape[1:] == (2,)
