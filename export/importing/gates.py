"""The gates of an import: what must be shown before a foreign model is published.

Graph: it gives the same for the same picture, and items do not change each other. Parity: the wrapped file, through the code that
serves it, gives what the source's own graph gives for numbers that numpy prepared. Pixels: they are those of a reference, if there
is one. Accuracy: on a labelled folder, if there is one. The golden samples are replayed when the file is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.convert.precision import Precision
from export.evaluation.scores import Scores
from export.importing import onnx_graph
from export.importing.outputs import as_rows
from export.importing.source_graph import SourceGraph
from export.importing.wrapping import WrappedHead
from service.errors import UserError
from service.model.inference import Model

_SAME = 1e-5
_EFFECT = 1e-3
_COARSE_EFFECT = 0.02
"""Share of the largest score. Half precision, and ranges that are taken of a whole batch, are coarse."""

_BATCH_ITEMS = 8
_SURE = 1e-6
_BLIND = 0.1
"""Standard deviation over pictures, in log-odds. Of networks that see them it is 1 and more."""
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
_EVAL = "export it in inference mode: model.eval() in PyTorch, training=False in Keras"


@dataclass(frozen=True)
class Gate:
    """A gate that was passed, or could not be tried: its name and what was seen."""

    name: str
    seen: str
    proved: bool = True


def check_graph(model: onnx.ModelProto, graph: SourceGraph, pixels: NDArray[Any], batch_items: int) -> Gate:
    """Raises UserError if the graph gives something else the second time, or if an item changes with its batch.

    Args:
        model: the graph.
        graph: a session of it.
        pixels: [n,H,W,C] of different pictures.
        batch_items: of every batch; 0 for any number.
    """
    first, again = graph.run(pixels), graph.run(pixels)
    _check_finite(first)
    if (changed := _largest_change(first, again)) > _SAME:
        raise UserError(
            f"graph gate: the same pictures give other scores the second time (by up to {changed:.1%}){_training_nodes(model)}; "
            f"{_EVAL}"
        )
    alone = graph.run(pixels, 1) if not batch_items else graph.run(pixels[::-1].copy())
    alone = alone if not batch_items else {name: value[::-1] for name, value in alone.items()}
    coarse = any(node.op_type == "DynamicQuantizeLinear" for node in model.graph.node) or _is_half(first)
    if (changed := _largest_change(first, alone)) > (_COARSE_EFFECT if coarse else _EFFECT):
        raise UserError(
            f"graph gate: the scores of a picture change with the others in its batch (by up to {changed:.1%})"
            f"{_training_nodes(model)}; {_EVAL}"
        )
    if all(np.array_equal(value, np.broadcast_to(value[:1], value.shape)) for value in first.values()):
        raise UserError(
            "graph gate: every picture gives the same scores: its pixels do not reach them, or are not scaled as the network takes "
            "them"
        )
    return Gate(
        "graph", f"the same twice, alone and in a batch, on {len(pixels)} pictures; largest change {changed:.1e} of the scores"
    )


def check_effect(heads: Sequence[WrappedHead], source: SourceGraph, pixels: NDArray[Any]) -> Gate | None:
    """What is seen if the answers are all but the same for all pictures, as of pixels in other units; else None.

    Scores that are almost 0 or 1 tell little, so their log-odds are compared.
    """
    raw = source.run(pixels)
    spreads = []
    for wrapped in heads:
        likely = np.clip(wrapped.head.probabilities(as_rows(raw[wrapped.head.value])), _SURE, 1 - _SURE)
        spreads.append(float(np.log(likely / (1 - likely)).std(axis=0).max()))
    if max(spreads) >= _BLIND:
        return None
    return Gate(
        "pictures",
        f"WARNING: {len(pixels)} different pictures get all but the same scores (log-odds differ by {max(spreads):.2g}), as "
        "happens with pixels scaled otherwise than in the training: compare --scale, --mean and --std with it, or give --data",
        proved=False,
    )


def predict(served: Model, pixels: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Each output of a loaded file, [n,K], for pixels [n,H,W,C], in small batches."""
    parts = [served.predict(pixels[at : at + _BATCH_ITEMS]) for at in range(0, len(pixels), _BATCH_ITEMS)]
    return {output.name: np.concatenate([part[at] for part in parts]) for at, output in enumerate(served.outputs)}


def check_parity(
    served: Model, source: SourceGraph, heads: Sequence[WrappedHead], pixels: NDArray[Any], allowed: float, name: str = "parity"
) -> Gate:  # fmt: skip
    """Raises UserError unless the loaded file gives each head's probabilities as the source does. `name` is the gate's."""
    raw = source.run(pixels)
    found = predict(served, pixels)
    largest, same = 0.0, len(pixels)
    for wrapped in heads:
        expected = wrapped.head.probabilities(as_rows(raw[wrapped.head.value]))
        largest = float(np.maximum(largest, np.abs(expected - found[wrapped.output]).max()))  # np.maximum keeps NaN
        same = min(same, int((expected.argmax(axis=1) == found[wrapped.output].argmax(axis=1)).sum()))
    if not largest <= allowed:
        raise UserError(
            f"{name} gate: the wrapped file differs from its source by up to {largest:.2g} (allowed: {allowed:.0e}) and agrees on "
            f"{same} of {len(pixels)} pictures; nothing was written"
        )
    return Gate(name, f"largest difference from the source {largest:.1e}, same first label on {same} of {len(pixels)} pictures")


def compare_further_heads(
    served: Model, source: SourceGraph, heads: Sequence[WrappedHead], pixels: NDArray[Any], name: str
) -> Gate | None:  # fmt: skip
    """How often the heads after the first, which no labelled picture tests, agree with the source; None without them."""
    raw, found, seen = source.run(pixels), predict(served, pixels), []
    for wrapped in heads[1:]:
        expected = wrapped.head.probabilities(as_rows(raw[wrapped.head.value]))
        same = int((expected.argmax(axis=1) == found[wrapped.output].argmax(axis=1)).sum())
        seen.append(f"{wrapped.head.value}: the source's first label on {same} of {len(pixels)} pictures")
    return Gate(name, f"not measured on labelled pictures; {', '.join(seen)}", proved=False) if seen else None


def _check_finite(given: dict[str, NDArray[Any]]) -> None:
    for name, value in given.items():
        if np.isnan(value).any():
            raise UserError(
                f"graph gate: {name!r} is not a number (NaN) for some pictures: the pixels are not scaled as the network takes them"
            )


def _largest_change(first: dict[str, NDArray[Any]], second: dict[str, NDArray[Any]]) -> float:
    """The largest difference, as a share of the largest number of its output."""
    changes = [0.0]
    for name, value in first.items():
        before, after = value.astype(np.float64), second[name].astype(np.float64)
        both = np.isfinite(before) & np.isfinite(after)
        if not both.any():
            continue
        largest = float(np.abs(before[both]).max())
        changes.append(float(np.abs(before - after)[both].max()) / largest if largest else 0.0)
    return max(changes)


def _is_half(given: dict[str, NDArray[Any]]) -> bool:
    return any(value.dtype == np.float16 for value in given.values())


def _training_nodes(model: onnx.ModelProto) -> str:
    """Nodes that compute something else in training, for a message."""
    found = {
        node.op_type
        for node in model.graph.node
        if node.op_type in _RANDOM
        or (node.op_type == "Dropout" and len(node.input) > 2 and node.input[2])
        or (node.op_type == "BatchNormalization" and onnx_graph.attribute(node, "training_mode"))
    }
    return f"; it has {', '.join(sorted(found))} in training mode" if found else ""


def check_folder(scores: Scores, folder: str, minimum: float, name: str = "accuracy") -> Gate:
    """Raises UserError if fewer of a folder's pictures are right than `minimum`, a fraction. `name` is the gate's."""
    low, high = scores.accuracy_interval
    seen = f"{scores.accuracy:.2%} of {scores.items:,} pictures of {folder} are right (95 % interval {low:.1%} to {high:.1%})"
    if scores.accuracy < minimum:
        raise UserError(f"{name} gate: {seen}, below the minimum of {minimum:.2%}; nothing was written")
    return Gate(name, f"{seen}; {f'the minimum is {minimum:.2%}' if minimum else 'no minimum is set (--minimum-accuracy)'}")


def check_loss(precision: Precision, fp32: Scores, lower: Scores, max_loss: float) -> Gate:
    """Raises UserError if a lower precision is less accurate than fp32 by more than `max_loss`, a fraction of the pictures."""
    lost = fp32.accuracy - lower.accuracy
    seen = (
        f"{lower.accuracy:.2%} of {lower.items:,} pictures are right in {precision}, {fp32.accuracy:.2%} in fp32: "
        f"{100 * lost:.2f} points lost (allowed: {100 * max_loss:g})"
    )
    if lost > max_loss + 1e-9:
        raise UserError(f"{precision} gate: {seen}; nothing was written")
    return Gate(precision, seen)
