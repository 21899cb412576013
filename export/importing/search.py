"""Tries the usual ways to prepare pictures on labelled ones: for those who have a file and do not know what it takes.

Every combination of channel order, scaling, resize and filter is measured on the same pictures with the source's own graph. The
way that the training took is usually ahead of the others; where it is not clear, the table says so.
"""

from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.data.labelled_pictures import LabelledPictures
from export.data.sample_size import accuracy_interval
from export.importing import onnx_graph, outputs
from export.importing.network_input import NetworkInput
from export.importing.pictures import intact_pictures, require_labels
from export.importing.recipe import Recipe
from export.importing.reference import served_pixels
from export.importing.score_head import LINEAR
from export.importing.source_graph import SourceGraph
from export.progress import OnProgress, ignore_progress
from service.model.input_spec import InputSpec

SEARCH_ITEMS = 256

_RESIZED = 256 / 224
_FILTERS = ("bilinear", "bicubic", "cv2-linear")


@dataclass(frozen=True)
class Scaling:
    """Numbers that many networks take, and the flags that say them."""

    flags: str
    scale: float
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


_GRAY_SCALINGS = (Scaling("--scale 255", 255.0), Scaling("--scale 1", 1.0), Scaling("--scale 127.5 --mean 1", 127.5, (1.0,)))
_SCALINGS = (
    *_GRAY_SCALINGS,
    Scaling("--scale 255 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225", 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    Scaling("--scale 1 --mean 103.939,116.779,123.68", 1.0, (103.939, 116.779, 123.68)),
)


@dataclass(frozen=True)
class Trial:
    """One way, as flags, and how many of the pictures were right with it."""

    flags: str
    correct: int
    items: int

    @property
    def accuracy(self) -> float:
        """Fraction of right answers."""
        return self.correct / self.items

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the accuracy."""
        return accuracy_interval(self.correct, self.items)


def search(
    model: onnx.ModelProto, network: NetworkInput, value: str, labels: tuple[str, ...], folder: LabelledPictures,
    on_progress: OnProgress = ignore_progress,
) -> list[Trial]:  # fmt: skip
    """Every way, the best first. `value` is the output that holds the scores. Raises UserError as `require_labels`."""
    node = onnx_graph.deciding_node(model, value)
    may_be_probability = node is None or node.op_type not in LINEAR
    intact = intact_pictures(folder, np.random.default_rng(0).permutation(len(folder)))
    chosen, encoded = zip(*islice(intact, SEARCH_ITEMS), strict=True)
    truth = require_labels(folder, labels)[list(chosen)]
    ways = list(product(_fits(network), _FILTERS))
    numbers = [
        scaling
        for scaling in (_SCALINGS if network.channels == 3 else _GRAY_SCALINGS)
        if network.dtype.kind == "f" or scaling.scale == 1.0
    ]
    orders: tuple[Any, ...] = ("rgb", "bgr") if network.channels == 3 else ("rgb",)
    graph = SourceGraph(model, network, Recipe(_spec(network)), [value])
    trials, done, total = [], 0, len(ways) * len(numbers) * len(orders)
    for (fit_flags, fields), filter_name in ways:
        spec = _spec(network, filter=filter_name, **fields)
        pixels = served_pixels(encoded, Recipe(spec))
        for scaling, channels in product(numbers, orders):
            recipe = Recipe(spec, scaling.scale, scaling.mean, scaling.std, channels)
            found = outputs.as_rows(graph.with_recipe(recipe).run(pixels)[value])
            flags = f"--channels {channels} " if len(orders) > 1 else ""
            flags += f"{scaling.flags} {fit_flags} --filter {filter_name}"
            trials.append(Trial(flags, int((_answers(found, may_be_probability) == truth).sum()), len(truth)))
            done += 1
            on_progress("trying ways to prepare pictures", done, total)
    return sorted(trials, key=lambda trial: -trial.correct)


def _spec(network: NetworkInput, **fields: Any) -> InputSpec:
    """An input of the network's size; the contract's defaults where `fields` do not say it otherwise."""
    return InputSpec(height=network.height, width=network.width, channels=1 if network.channels == 1 else 3, **fields)


def _fits(network: NetworkInput) -> list[tuple[str, dict[str, Any]]]:
    """Ways to fit a picture: flags, and fields of the contract."""
    fits: list[tuple[str, dict[str, Any]]] = [("--resize stretch", {}), ("--resize pad", {"resize": "pad"})]
    if network.height == network.width:
        side = round(network.height * _RESIZED)
        fits.append((f"--resize short:{side} --crop {network.height}", {"resize": f"short:{side}", "crop": "center"}))
        fits.append(
            (f"--resize short:{network.height} --crop {network.height}", {"resize": f"short:{network.height}", "crop": "center"})
        )
    return fits


def _answers(raw: NDArray[Any], may_be_probability: bool) -> NDArray[np.int64]:
    """The best class of each row, -1 where there is none; of one unit, a probability or a logit, the second from the middle on."""
    if raw.shape[1] > 1:
        found = raw.argmax(axis=1)
    else:
        middle = 0.5 if may_be_probability and ((raw >= 0) & (raw <= 1)).all() else 0.0
        found = raw[:, 0] > middle
    return np.where(np.isnan(raw).any(axis=1), -1, found.astype(np.int64))
