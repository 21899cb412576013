"""Quantises an imported graph to int8, as an export of Convoy's own does: on labelled pictures, layer by layer, with a gate.

The pictures of the folder are split by chance: ranges come from one half, decisions from the other. The gate looks at all of them.
"""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.convert import quantization
from export.convert.publish import write_model
from export.convert.quantization import Quantization
from export.data.labelled_pictures import LabelledPictures
from export.importing import onnx_graph
from export.importing.pictures import intact_pictures, require_labels
from export.importing.recipe import Recipe
from export.importing.reference import served_pixels
from export.importing.wrapping import QUANTIZED_OPSET, raise_versions
from export.progress import OnProgress, ignore_progress
from service.errors import UserError
from service.model.contract import Contract
from service.model.inference import Model

MIN_ITEMS = 20

_VALIDATION_ITEMS = 1024
_BATCH_ITEMS = 16


def to_int8(
    graph: onnx.ModelProto, contract: Contract, recipe: Recipe, folder: LabelledPictures | None, max_loss: float, scratch: Path,
    on_progress: OnProgress = ignore_progress,
) -> tuple[onnx.ModelProto, Quantization]:  # fmt: skip
    """A wrapped fp32 graph in int8, and how it was made.

    Args:
        graph: the graph; it is not changed.
        contract: its contract.
        recipe: what happens to pixels.
        folder: labelled pictures, at least MIN_ITEMS.
        max_loss: the fraction of them that may be lost. Half of it may be lost of those that the decisions are made on.
        scratch: a folder for temporary files.
        on_progress: called with each step.

    Raises:
        UserError: there are too few pictures, or as `quantization.quantize`.
    """
    if folder is None or len(folder) < MIN_ITEMS:
        raise UserError(
            f"--precision int8 needs --data with at least {MIN_ITEMS} labelled pictures: ranges and layers are chosen on them"
        )
    prepared = onnx.ModelProto()
    prepared.CopyFrom(graph)
    prepared = raise_versions(prepared, QUANTIZED_OPSET)
    onnx_graph.constants_as_weights(prepared)
    onnx_graph.name_nodes(prepared)
    bare = contract.model_copy(update={"precision": "int8", "golden": ()})

    def run(candidate: onnx.ModelProto, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        copy = onnx.ModelProto()
        copy.CopyFrom(candidate)
        return _probabilities(write_model(copy, bare, scratch / "candidate.onnx"), pixels)

    half = min(quantization.CALIBRATION_ITEMS, len(folder) // 2)
    intact = intact_pictures(folder, np.random.default_rng(0).permutation(len(folder)))
    chosen, checked = list(islice(intact, half)), list(islice(intact, _VALIDATION_ITEMS))
    calibration, validation = (served_pixels([encoded for _, encoded in part], recipe) for part in (chosen, checked))
    truth = require_labels(folder, contract.labels)[[index for index, _ in checked]]
    return quantization.quantize(prepared, calibration, validation, truth, run, max_loss / 2, on_progress)


def layers_in_int8(quantization: Quantization) -> str:
    """How many layers are int8, in words."""
    quantized = sum(row.quantized for row in quantization.layers)
    return f"{quantized} of {len(quantization.layers)} layers are int8"


def _probabilities(served: Model, pixels: NDArray[Any]) -> NDArray[np.float32]:
    return np.concatenate([served.probabilities(pixels[at : at + _BATCH_ITEMS]) for at in range(0, len(pixels), _BATCH_ITEMS)])
