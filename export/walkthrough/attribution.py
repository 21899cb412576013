"""Which pixels mattered for an answer: class activation maps and occlusion maps.

Class activation maps (Zhou et al., arXiv:1512.04150) need a network that ends in global average pooling and a linear layer: up to
the bias, the logit is the mean of a map over all places, so the map shows the contribution of each place. Occlusion (Zeiler and
Fergus, arXiv:1311.2901) works for every network: a patch is moved over the image, and the map shows how much weaker the answer is
with the patch there.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from export.progress import OnCount, ignore_progress
from export.walkthrough.activations import Activations
from export.walkthrough.layer_text import attributes

_PATCHES_ALONG = 18
_PATCH_SHARE = 5
_AVERAGES = ("GlobalAveragePool", "ReduceMean", "AveragePool")
_AFTER_PRODUCT = ("Softmax", "LogSoftmax", "Pad", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Div", "Mul", "Add")
_AFTER_POOLING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class Occlusion:
    """The effect of hiding parts of an image on an answer.

    Attributes:
        heat: float32[H,W], the mean fall of the answer's log-odds over all patches that hid a pixel.
        patch: side of the patch in pixels.
        tried: number of places of the patch.
        worst: the image [H,W,C] with the patch where the answer fell most.
        worst_logits: the logits of that image, float32[K].
    """

    heat: NDArray[np.float32]
    patch: int
    tried: int
    worst: NDArray[np.generic]
    worst_logits: NDArray[np.float32]


def class_activation(activations: Activations, scores: str, index: int) -> NDArray[np.float32] | None:
    """The class activation map float32[h,w] of class `index`, before any temperature; None if the network has none.

    For a head of a single unit z, whose logits are [0, z], the second class has the map of z and the first its negative.

    Args:
        activations: of the network.
        scores: name of its output of K logits or probabilities.
        index: the class.
    """
    product = _source_before(activations, activations.source(scores), _AFTER_PRODUCT)
    if product is None:
        return None
    if product.op_type in ("Gemm", "MatMul"):
        weights = activations.constant(product.input[1])  # [K,C] or [C,K]
        pooling = _source_before(activations, activations.source(product.input[0]), _AFTER_POOLING)
        if weights is None or weights.ndim != 2:
            return None
        if not attributes(product).get("transB", 0):
            weights = weights.T
    elif product.op_type in _AVERAGES:  # the maps are those of the classes
        weights, pooling = None, product
    else:
        return None
    if pooling is None or pooling.op_type not in _AVERAGES:
        return None
    maps, means = activations.value(pooling.input[0]), activations.value(pooling.output[0]).ravel()
    if (
        maps.ndim != 4
        or maps.shape[1] != len(means)
        or np.prod(maps.shape[2:]) == 1
        or not np.allclose(maps.mean((0, 2, 3)), means, rtol=1e-2, atol=1e-3)
    ):
        return None
    if weights is None:
        weights = np.eye(len(means), dtype=np.float32)
    if weights.shape[1] != len(means):
        return None
    if len(weights) == 1:
        weights = np.concatenate([-weights, weights])
    found: NDArray[np.float32] = np.tensordot(weights[index], maps[0], axes=1)
    return found


def occlusion(
    run: Callable[[NDArray[np.generic]], Iterable[NDArray[np.float32]]],
    pixels: NDArray[np.generic],
    index: int,
    on_count: OnCount = ignore_progress,
    *,
    is_multilabel: bool = False,
) -> Occlusion:
    """Moves a patch over an image, a fifth of its side and of its mean colour, and runs the network each time.

    Args:
        run: gives logits float32[n,K] of images [N,H,W,C], batch after batch.
        pixels: the image, [H,W,C] as the model takes it.
        index: the class whose log-odds are measured.
        is_multilabel: whether each logit is the log-odds of its label, whatever the others.
        on_count: called with the number of images after each batch.
    """
    height, width = pixels.shape[:2]
    patch = max(1, round(min(height, width) / _PATCH_SHARE))
    places = [(top, left) for top in _starts(height, patch) for left in _starts(width, patch)]
    hidden = np.repeat(pixels[np.newaxis], len(places) + 1, axis=0)  # the first is the image itself
    colour = pixels.mean((0, 1)).round().astype(pixels.dtype)
    for picture, (top, left) in zip(hidden[1:], places, strict=True):
        picture[max(0, top) : top + patch, max(0, left) : left + patch] = colour
    batches = []
    done = 0
    for logits in run(hidden):
        batches.append(logits)
        done += len(logits)
        on_count(done, len(hidden))
    logits = np.concatenate(batches)
    odds = logits[:, index].astype(np.float64) if is_multilabel else log_odds(logits, index)
    falls = odds[0] - odds[1:]
    total, covered = np.zeros((2, height, width))
    for fall, (top, left) in zip(falls, places, strict=True):
        window = np.s_[max(0, top) : top + patch, max(0, left) : left + patch]
        total[window] += fall
        covered[window] += 1
    worst = int(falls.argmax()) + 1
    return Occlusion((total / covered).astype(np.float32), patch, len(places), hidden[worst], logits[worst])


def log_odds(logits: NDArray[np.float32], index: int) -> NDArray[np.float64]:
    """log(p / (1 - p)) of class `index` for logits [n,K], precise even where p rounds to 1."""
    values = logits.astype(np.float64)
    others = np.delete(values, index, axis=1)
    largest = others.max(axis=1, keepdims=True)
    found: NDArray[np.float64] = values[:, index] - (largest[:, 0] + np.log(np.exp(others - largest).sum(axis=1)))
    return found


def _starts(length: int, patch: int) -> list[int]:
    """Starts of the patch along a side, evenly spaced so that every pixel is hidden; at the ends half of the patch is outside."""
    first, last = -(patch // 2), length - (patch + 1) // 2
    stride = max(1, -(-(last - first) // (_PATCHES_ALONG - 1)))
    return sorted({*range(first, last, stride), last})


def _source_before(activations: Activations, node: onnx.NodeProto | None, skipped: tuple[str, ...]) -> onnx.NodeProto | None:
    """Goes back over `skipped` operators, which only scale, shift or lay out their one computed input, to the node before them."""
    while node is not None and node.op_type in skipped:
        inputs = activations.computed_inputs(node)
        node = activations.source(inputs[0]) if len(inputs) == 1 else None
    return node
