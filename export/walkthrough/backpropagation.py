"""One step of gradient descent on one image: the loss, its gradient in every layer, and the loss after the step.

w' = w - rate x dL/dw on the cross-entropy L = -ln p(label). The network is in evaluation mode: batch norms use their running
statistics, since one image gives none. Losses and probabilities are computed from the logits in float64: in float32 a loss below
6e-8 is 0.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from export.training.checkpoint import Checkpoint
from export.training.normalization import Normalization

_RATES = 10.0 ** np.linspace(-5, 1, 37)


@dataclass(frozen=True)
class LayerGradient:
    """Euclidean norms of one layer's trained weights and of their gradient, before the step; `parameters` counts these weights."""

    name: str
    parameters: int
    gradient: float
    weights: float


@dataclass(frozen=True)
class GradientStep:
    """The result of one step.

    Attributes:
        label: the right class.
        rate: the learning rate.
        before: probabilities float64[K] before the step.
        after: probabilities float64[K] after the step.
        loss_before: in nats.
        loss_after: in nats.
        layers: the layers with trained weights, from the input to the output.
        rates: learning rates that were tried from the same weights.
        losses: the loss after a step with each of these rates.
    """

    label: int
    rate: float
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    loss_before: float
    loss_after: float
    layers: tuple[LayerGradient, ...]
    rates: NDArray[np.float64]
    losses: NDArray[np.float64]

    @property
    def norm(self) -> float:
        """The norm of the whole gradient."""
        return math.sqrt(sum(layer.gradient**2 for layer in self.layers))


def gradient_step(checkpoint: Checkpoint, pixels: NDArray[np.uint8], label: int, rate: float) -> GradientStep:
    """Takes a step. The weights of the checkpoint do not change.

    Args:
        checkpoint: the trained network.
        pixels: the image, uint8[H,W,C].
        label: the right class.
        rate: the learning rate, above 0.
    """
    network = checkpoint.network.eval()
    normalize = Normalization(checkpoint.mean, checkpoint.std, torch.device("cpu"))
    x = normalize(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])  # (1, C, H, W)
    target = torch.tensor([label])
    weights = {name: value for name, value in network.named_parameters() if value.requires_grad}
    logits = network(x).double()
    loss = functional.cross_entropy(logits, target)
    gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))

    @torch.no_grad()
    def after(tried: float) -> torch.Tensor:
        moved = {name: value - tried * gradients[name] for name, value in weights.items()}
        found: torch.Tensor = torch.func.functional_call(network, moved, (x,))
        return found.double()

    stepped = after(rate)
    losses = [functional.cross_entropy(after(tried), target).item() for tried in _RATES]
    return GradientStep(
        label=label,
        rate=rate,
        before=logits.detach().softmax(1)[0].numpy(),
        after=stepped.softmax(1)[0].numpy(),
        loss_before=loss.item(),
        loss_after=functional.cross_entropy(stepped, target).item(),
        layers=_by_layer(weights, gradients),
        rates=_RATES,
        losses=np.array(losses),
    )


def _by_layer(weights: dict[str, torch.nn.Parameter], gradients: dict[str, torch.Tensor]) -> tuple[LayerGradient, ...]:
    layers: dict[str, list[str]] = {}
    for name in weights:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    return tuple(
        LayerGradient(
            name=layer,
            parameters=sum(weights[name].numel() for name in names),
            gradient=math.sqrt(sum(gradients[name].square().sum().item() for name in names)),
            weights=math.sqrt(sum(weights[name].detach().square().sum().item() for name in names)),
        )
        for layer, names in layers.items()
    )
