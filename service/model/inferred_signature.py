"""The signature of a model without a contract: inferred by running its graph, because graphs often leave shapes open.

What its `serving.toml` says of it, which output holds the scores and what they are, is taken and checked. What can be decided only
by guessing is refused, with what to say there.
"""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import MAX_REASON_CHARACTERS, InvalidModel, first_line
from service.model.declared import Declared, bound_shape
from service.model.file_labels import labels_in_metadata
from service.model.graph_decoding import DecodingGraph
from service.model.png import write_png
from service.model.scores import ScoreKind, class_count, is_distribution, score_kind
from service.model.signature import DTYPES, OPEN, Node, Session, Signature, TensorSpec, picture_files

log = logging.getLogger(__name__)

_PROBE_BATCHES = (1, 2, 3)
"""Items in the batches that a graph is tried on: one that works for two items may fail for one, or for three."""

_PROBE_RANGES = (1, 255)
"""Random items are of 0 to this: what looks like probabilities of small numbers may be none of larger ones."""

_PROBE_SPREAD = 2000
"""Items on both sides of 0, this far apart: of them hardly a logit lies between 0 and 1, where few others would show it."""

_PROBE_PICTURES = ((48, 64, 3), (300, 200, 3))
"""[H,W,C] of the random pictures that a graph is tried on which decodes files."""

_BATCH_EFFECT = 0.02
"""Share of the largest score. Half precision, and inputs quantised by the range of a whole batch, stay below it."""

_TELLING_NAME = re.compile("logit|prob|softmax|score|pred", re.IGNORECASE)
_CHANNELS = (1, 3, 4)


class Inferred(NamedTuple):
    """What is known of a model without a contract.

    Attributes:
        labels: of the scores.
        kind: what the scores are.
        output_labels: by the name of each output that has one number a class: the labels, empty where nobody has named them.
    """

    signature: Signature
    labels: tuple[str, ...]
    kind: ScoreKind
    output_labels: Mapping[str, tuple[str, ...]]


def infer_signature(
    session: Session,
    labels: tuple[str, ...] | None = None,
    name: str = "model",
    declared: Declared = Declared(),  # noqa: B008 - it cannot change
    metadata: Mapping[str, str] | None = None,
) -> Inferred:
    """The signature of a model without a contract, and what its scores are, found by running it.

    Args:
        session: of the model.
        labels: of its scores, from a file that the user wrote.
        name: the model's name in log lines.
        declared: what its `serving.toml` says.
        metadata: of the ONNX file, which may hold labels.

    Raises:
        InvalidModel: the model cannot be served by tensor, or not without a word on what it gives.
    """
    taken, fixed_batch_items = _infer_input(session, declared)
    nodes = [node for node in session.get_outputs() if node.type in DTYPES]
    left_out = ", ".join(f"{node.type} {node.name!r}" for node in session.get_outputs() if node.type not in DTYPES)
    if not nodes:
        raise InvalidModel(f"the graph gives {left_out}; tensors of numbers are accepted{_output_hint(left_out)}")
    batches = (fixed_batch_items,) if fixed_batch_items else _PROBE_BATCHES
    outputs, *others = (_run_outputs(session, nodes, taken, items) for items in batches)
    for one, more in (pair for other in others for pair in zip(outputs, other, strict=True)):
        if one != more:
            raise InvalidModel(f"the graph gives {one.name!r} as {one} for one item, and as {more} for several")
    found = [output for output in outputs if is_vector(output)]
    if not found:
        given = ", ".join(f"{output.name} ({output})" for output in outputs)
        given += f", {left_out}" if left_out else ""
        raise InvalidModel(
            f"not a classifier: outputs {given}; expected one float output with one value per class{_output_hint(left_out)}"
        )
    trials = _trials(session, found, taken, fixed_batch_items)
    in_file = labels_in_metadata(metadata or {})
    named = labels or declared.labels.get("")
    scores = choose_scores(outputs, trials, declared, named or in_file)
    if left_out:
        log.warning("%s: outputs that are not tensors of numbers are not served: %s", name, left_out[:MAX_REASON_CHARACTERS])
    named = named or declared.labels.get(scores.name)
    kind, all_labels = _labelled(scores, trials[scores.name], declared, named, in_file)
    whence = "" if named else " of the file's metadata" if all_labels == in_file else ", their numbers"
    log.info("%s: %s in %r, %d labels%s", name, _said(kind), scores.name, len(all_labels), whence)
    signature = Signature(taken, (scores, *(output for output in outputs if output is not scores)), fixed_batch_items)
    return Inferred(signature, all_labels, kind, _output_labels(signature, all_labels, declared))


def _infer_input(session: Session, declared: Declared) -> tuple[TensorSpec, int]:
    """The input, and the batch size if it is fixed, else 0."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise InvalidModel(f"the graph takes {len(inputs)} inputs ({', '.join(node.name for node in inputs)}); one is accepted")
    [node] = inputs
    given = [size if isinstance(size, int) and size > 0 else 0 for size in node.shape]
    dtype = DTYPES.get(node.type)
    if dtype is None or not (dtype.kind == "f" or dtype == np.uint8):
        hint = _input_hint(node.type, len(given))
        raise InvalidModel(f"the graph takes {node.type} {node.name!r}; float16, float32, float64 and uint8 are accepted{hint}")
    if isinstance(session, DecodingGraph):
        return TensorSpec(node.name, dtype, OPEN), 1
    if _lacks_batch(given, session.get_outputs()):
        raise InvalidModel(_no_batch(given))
    shape = bound_shape(tuple(given[1:]), declared.input_shape)
    if shape is None:
        said = f"input_shape = {list(declared.input_shape)}"
        raise InvalidModel(f"{said}: the graph takes {node.shape}; the sizes of what is open there are accepted")
    if 0 in shape:
        shape = bound_shape(shape, declared.open_sizes) or shape
    if not shape or 0 in shape:
        hint = ""
        if shape:
            example = ", ".join(["224"] * shape.count(0))
            hint = f": input_shape = [{example}] in serving.toml, with the sizes that the model is for, fixes what is open"
        raise InvalidModel(
            f"the graph takes {node.shape}; every dimension but the first, of the batch, must be there and be fixed{hint}"
        )
    return TensorSpec(node.name, dtype, shape), node.shape[0] if isinstance(node.shape[0], int) else 0


def _input_hint(kind: str, dimensions: int) -> str:
    if kind in ("tensor(int32)", "tensor(int64)") and dimensions <= 2:
        return ". Such numbers are those of words, not of a picture, and Convoy serves classifiers of pictures"
    return ". A Cast in the graph, before anything else, lets it take one of these"


def _output_hint(left_out: str) -> str:
    if "map(" in left_out:
        return " (a scikit-learn export with zipmap=False gives a tensor)"
    return " (a Cast in the graph makes float32 of bfloat16)" if "bfloat16" in left_out else ""


def _lacks_batch(given: Sequence[int], outputs: Sequence[Node]) -> bool:
    """Whether the input is one picture, and each output of one dimension, its classes."""
    is_picture = len(given) == 3 and given[0] in _CHANNELS and min(given) > 0
    return is_picture and all(len(output.shape) == 1 for output in outputs)


def _no_batch(given: Sequence[int]) -> str:
    sides = ", ".join(map(str, given))
    return f"the graph takes one item, [{sides}], without a dimension of the batch; export it with one: [N, {sides}]"


def _run_outputs(session: Session, nodes: Sequence[Node], taken: TensorSpec, items: int) -> list[TensorSpec]:
    try:
        arrays = session.run([node.name for node in nodes], {taken.name: taken.zeros(items)})
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class
        tried = "a black picture" if taken.is_picture_file else f"a batch of {items}, all zeros"
        raise InvalidModel(f"the graph fails on {tried}: {first_line(error)}") from None
    for node, array in zip(nodes, arrays, strict=True):
        if array.ndim < 1 or len(array) != items:
            if items in _CHANNELS and len(taken.shape) == 2:
                raise InvalidModel(_no_batch((items, *taken.shape)))
            raise InvalidModel(f"the graph gives {node.name!r} {array.shape} for a batch of {items}; one row an item is accepted")
    return [TensorSpec(node.name, array.dtype, array.shape[1:]) for node, array in zip(nodes, arrays, strict=True)]


def is_vector(output: TensorSpec) -> bool:
    """Whether an output has one number a class."""
    return output.dtype.kind == "f" and 0 < math.prod(output.shape) == max(output.shape, default=1)


def _trials(
    session: Session, outputs: Sequence[TensorSpec], taken: TensorSpec, fixed_batch_items: int
) -> dict[str, list[NDArray[Any]]]:
    """What the graph gives in each output, floating[n,K], for random items and zeros; without batches that it rejects."""
    random = np.random.default_rng(1)
    shape = (fixed_batch_items or 2, *taken.shape)
    if taken.is_picture_file:
        batches = [picture_files([write_png(random.integers(0, 256, size, np.uint8))]) for size in _PROBE_PICTURES]
    else:
        ranges = _PROBE_RANGES if taken.dtype.kind == "f" else (256,)
        batches = [(random.random(shape) * largest).astype(taken.dtype) for largest in ranges]
    if taken.dtype.kind == "f":
        batches.append(((random.random(shape) - 0.5) * _PROBE_SPREAD).astype(taken.dtype))
    found: dict[str, list[NDArray[Any]]] = {output.name: [np.empty((0, math.prod(output.shape)))] for output in outputs}
    for batch in (*batches, taken.zeros(shape[0])):
        try:
            arrays = session.run(list(found), {taken.name: batch})
        except Exception:  # noqa: BLE001, S112 - such as an index out of range; zeros have worked before
            continue
        for trials, array in zip(found.values(), arrays, strict=True):
            trials.append(array.reshape(len(array), -1))
    return found


def choose_scores(
    outputs: Sequence[TensorSpec], trials: Mapping[str, Sequence[NDArray[Any]]], declared: Declared, labels: tuple[str, ...]
) -> TensorSpec:
    """The output that holds the scores, of those that may.

    `trials` has, by the name of each output that may hold them, what the graph gave in it, floating[n,K]. Raises InvalidModel if
    nothing tells which it is.
    """
    found = [output for output in outputs if output.name in trials]
    names = [output.name for output in outputs]
    if declared.output:
        chosen = next((output for output in found if output.name == declared.output), None)
        if chosen is None:
            what = "gives it no floats, one a class" if declared.output in names else "does not give it"
            raise InvalidModel(
                f"output = {declared.output!r} in serving.toml: the graph {what}; "
                f"accepted are {', '.join(output.name for output in found)}"
            )
        return chosen
    labelled = next((output for name in declared.labelled for output in found if output.name == name), None)
    if labelled is not None:
        return labelled
    found = [output for output in found if output.name in declared.offered] or found
    indices = {output.shape for output in outputs if output.dtype.kind in "iu" and output.shape}
    likely = [output for output in found if output.shape not in indices]
    if not likely:
        best = found[0]
        raise InvalidModel(
            f"the graph gives the best {math.prod(best.shape)} scores, {best.name!r}, and their classes, and no score for each "
            f'class: export it without TopK. With output = "{best.name}" in serving.toml it is served by tensor as it is'
        )
    likely = [output for output in likely if math.prod(output.shape) == len(labels)] or likely
    by_name = [output for output in likely if _TELLING_NAME.search(output.name)]
    probable = [output for output in likely if is_distribution(np.concatenate(trials[output.name]).astype(np.float64))]
    if len({output.shape for output in likely}) == 1:
        return (probable or likely)[0]
    if probable:
        return probable[0]
    if len({output.shape for output in by_name}) == 1:
        return by_name[0]
    if declared.offered:
        return min(likely, key=lambda output: (*declared.offered, output.name).index(output.name))
    given = ", ".join(f"{output.name} ({math.prod(output.shape)})" for output in likely)
    raise InvalidModel(
        f"several outputs may be the scores: {given}. Say which in serving.toml, such as "
        f'output = "{likely[-1].name}", or give labels.txt, a line for each class'
    )


def _labelled(
    scores: TensorSpec, trials: Sequence[NDArray[Any]], declared: Declared, named: tuple[str, ...] | None, in_file: tuple[str, ...]
) -> tuple[ScoreKind, tuple[str, ...]]:
    """What the scores are, and the labels: those that the user named, those in the file if they are as many, or numbers."""
    numbers = math.prod(scores.shape)
    if named is None and in_file and len(in_file) in (numbers, 2 if numbers == 1 else numbers):
        try:
            return score_kind(declared.scores, trials, len(in_file), scores.name), in_file
        except InvalidModel:
            if declared.scores != "auto":
                raise
    kind = score_kind(declared.scores, trials, None if named is None else len(named), scores.name)
    classes = class_count(kind, numbers)
    if named is None:
        return kind, tuple(map(str, range(classes)))
    if len(named) != classes:
        where = declared.labels_from if named in declared.labels.values() else "labels.txt"
        raise InvalidModel(f"{where} has {len(named)} labels; the graph gives {classes} classes in {scores.name!r}")
    return kind, named


def _said(kind: ScoreKind) -> str:
    said = {"scores": "scores, of which nothing says that they are probabilities,", "unit": "probability of the second label"}
    return said.get(kind, f"scores ({kind})")


def _output_labels(signature: Signature, labels: tuple[str, ...], declared: Declared) -> dict[str, tuple[str, ...]]:
    """Raises InvalidModel for labels of an output that is not there, or has another number of classes."""
    sizes = {output.name: math.prod(output.shape) for output in signature.outputs}
    others = {output: names for output, names in declared.labels.items() if output not in ("", signature.outputs[0].name)}
    where = declared.labels_from
    for output, names in others.items():
        if output not in sizes:
            raise InvalidModel(f"labels in {where}: the graph gives no {output!r}; accepted are {', '.join(sizes)}")
        if len(names) != sizes[output]:
            raise InvalidModel(f"labels in {where}: {len(names)} of {output!r}, of which the graph gives {sizes[output]}")
    as_many = {name for name, size in sizes.items() if size == len(labels) and name not in declared.labelled}
    same = {output.name: labels if output.name in as_many else () for output in signature.outputs if is_vector(output)}
    return same | others | {signature.outputs[0].name: labels}


def depends_on_batch(session: Session, signature: Signature) -> bool:
    """Whether an item's scores change with the rest of its batch. Tried on random items; False if the graph rejects them."""
    if signature.input.is_picture_file:
        return False  # each is a batch of its own
    random = np.random.default_rng(0)
    shape = (signature.fixed_batch_items or 2, *signature.input.shape)
    items = random.integers(0, 256, shape, np.uint8) if signature.input.dtype == np.uint8 else random.random(shape)
    items = items.astype(signature.input.dtype)
    changed = items.copy()
    changed[1:] = 0
    try:
        found = [session.run([signature.outputs[0].name], {signature.input.name: batch})[0][0] for batch in (items, changed)]
    except Exception:  # noqa: BLE001 - such as an index out of range
        return False
    first, second = (scores.astype(np.float64) for scores in found)
    with np.errstate(all="ignore"):  # NaN and infinity compare as unchanged
        return bool((np.abs(first - second) > _BATCH_EFFECT * np.abs(first).max()).any())
