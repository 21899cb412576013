"""Which pixels mattered for an answer: class activation maps and occlusion maps.

The formulas are those that a server explains its answers with: `service.model.class_activation` and `service.model.occlusion`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.inspection.activations import Activations
from export.inspection.average_pooling import average_pooling
from export.progress import OnCount, ignore_progress
from service.model.class_activation import class_activation_map
from service.model.occlusion import grid_of, hide, log_odds, mean_falls


@dataclass(frozen=True)
class Occlusion:
    """The effect of hiding parts of an image on an answer.

    Attributes:
        heat: float32[H,W], the mean fall of the answer's log-odds over all patches that hid a pixel.
        patch: side of the patch in pixels.
        tried: number of places of the patch.
        worst: the image [H,W,C] with the patch where the answer fell most.
    """

    heat: NDArray[np.float32]
    patch: int
    tried: int
    worst: NDArray[np.generic]


def class_activation(activations: Activations, scores: str, index: int) -> NDArray[np.float32] | None:
    """The class activation map float32[h,w] of class `index`, before any temperature; None if the network has none.

    Args:
        activations: of the network.
        scores: name of its output of K logits or probabilities.
        index: the class.
    """
    found = average_pooling(activations, scores)
    return None if found is None else class_activation_map(activations.value(found.maps)[0], found.weights, index)


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
    grid = grid_of(height, width)
    hidden = np.concatenate([pixels[np.newaxis], hide(pixels, grid.places, grid.patch)])  # the first is the image itself
    batches = []
    done = 0
    for logits in run(hidden):
        batches.append(logits)
        done += len(logits)
        on_count(done, len(hidden))
    logits = np.concatenate(batches)
    odds = logits[:, index].astype(np.float64) if is_multilabel else log_odds(logits, index)
    falls = odds[0] - odds[1:]
    heat = mean_falls(falls, grid, height, width)
    worst = int(falls.argmax()) + 1
    return Occlusion(heat, grid.patch, len(grid.places), hidden[worst])
