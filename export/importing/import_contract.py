"""Builds the contract of an imported model: input, heads, where it came from, and golden samples."""

import contextlib
import importlib.metadata
from collections.abc import Sequence

import numpy as np
import onnx

from export.convert.precision import TOLERANCE, Precision
from export.evaluation.scores import Scores
from export.importing.outputs import as_rows
from export.importing.pictures import small_png
from export.importing.recipe import Recipe
from export.importing.reference import served_pixels
from export.importing.source import Source
from export.importing.source_graph import SourceGraph
from export.importing.wrapping import WrappedHead
from service import convoy_version
from service.model.contract import Contract, Golden, Origin
from service.model.preprocessing import pixels_digest

GOLDEN_SAMPLES = 3

_GOLDEN_SIDE = 1.3  # of the input's: so that the picture must be resized
_PACKAGES = ("onnx", "onnxruntime", "numpy", "pillow")
_INT8_OPERATORS = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger", "QLinearMatMul")


def build_contract(
    name: str, source: Source, recipe: Recipe, heads: Sequence[WrappedHead], graph: SourceGraph, pictures: Sequence[bytes],
    batch_items: int, command: str,
) -> Contract:  # fmt: skip
    """The contract of a wrapped graph, not measured yet, with golden samples whose answers are those of the source's own graph."""
    precision = precision_of(source.model)
    return Contract(
        schema=2,
        name=name,
        input=recipe.input,
        heads=tuple(
            wrapped.head.in_contract(wrapped.head.value if len(heads) > 1 else wrapped.output, wrapped.output) for wrapped in heads
        ),
        precision=precision,
        batch_items=batch_items,
        origin=Origin(
            source=source.path.name, digest=source.digest, framework=source.framework, command=command, versions=_versions()
        ),
        golden=_golden_samples(recipe, heads, graph, pictures, precision),
    )


def precision_of(model: onnx.ModelProto) -> Precision:
    """What most of a graph's weights are."""
    if any(node.op_type in _INT8_OPERATORS for node in model.graph.node):
        return "int8"
    elements: dict[int, int] = {onnx.TensorProto.FLOAT: 0, onnx.TensorProto.FLOAT16: 0}
    for tensor in model.graph.initializer:
        if tensor.data_type in elements:
            elements[tensor.data_type] += int(np.prod(tensor.dims, dtype=np.int64))
    return "fp16" if elements[onnx.TensorProto.FLOAT16] > elements[onnx.TensorProto.FLOAT] else "fp32"


def measured(contract: Contract, pixels: str, data: str, data_digest: str, scores: Scores | None) -> Contract:
    """The contract with what the gates found."""
    assert contract.origin is not None  # noqa: S101 - an imported one has it
    found: dict[str, object] = {"pixels": pixels, "data": data, "data_digest": data_digest}
    if scores is not None:
        found |= {
            "accuracy": scores.accuracy,
            "accuracy_interval": scores.accuracy_interval,
            "calibration_error": scores.reliability.error,
        }
    return contract.model_copy(update={"origin": contract.origin.model_copy(update=found)})


def _golden_samples(
    recipe: Recipe, heads: Sequence[WrappedHead], graph: SourceGraph, pictures: Sequence[bytes], precision: Precision
) -> tuple[Golden, ...]:
    side = max(32, round(_GOLDEN_SIDE * max(recipe.input.height, recipe.input.width)))
    chosen = [small_png(picture, side) for picture in pictures[:: max(1, len(pictures) // GOLDEN_SAMPLES)][:GOLDEN_SAMPLES]]
    pixels = served_pixels(chosen, recipe)
    raw = graph.run(pixels)
    answers = [wrapped.head.probabilities(as_rows(raw[wrapped.head.value])) for wrapped in heads]
    return tuple(
        Golden.model_construct(
            image=image,
            pixels_sha256=pixels_digest(pixels[at]),
            probabilities=tuple(tuple(map(float, answer[at])) for answer in answers),
            tolerance=TOLERANCE[precision],
        )
        for at, image in enumerate(chosen)
    )


def _versions() -> dict[str, str]:
    versions = {"convoy": convoy_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
