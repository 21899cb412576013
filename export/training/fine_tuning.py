"""Fine-tuning: weights that are not trained, and the last layer, which is trained faster."""

from collections.abc import Iterable

import torch
from torch import nn

from export.text import first_of
from service.errors import UserError

_SHOWN = 12
_Norm = nn.modules.batchnorm._NormBase


def freeze(network: nn.Module, prefixes: Iterable[str]) -> list[nn.Module]:
    """Stops the training of weights whose names start with one of the prefixes.

    Returns:
        The norms among them, which must be in evaluation while the others train: else their statistics go on changing.

    Raises:
        UserError: no weight has such a name, or all are frozen.
    """
    prefixes = tuple(prefixes)
    names = [name for name, _ in network.named_parameters()]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            parts = dict.fromkeys(name.partition(".")[0] for name in names)
            raise UserError(
                f"--freeze {prefix}: no weight has a name that starts so; they start with {first_of(list(parts), _SHOWN)}"
            )
    for name, parameter in network.named_parameters():
        if name.startswith(prefixes):
            parameter.requires_grad_(False)
    if prefixes and not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError(f"--freeze {' --freeze '.join(prefixes)}: nothing is left to train")
    return [layer for name, layer in network.named_modules() if isinstance(layer, _Norm) and f"{name}.".startswith(prefixes)]


@torch.no_grad()
def last_layer(network: nn.Module, images: torch.Tensor) -> nn.Module:
    """The layer with weights that is computed last.

    Args:
        network: whose mode is left in evaluation.
        images: float32 (N, C, H, W) that it takes.

    Raises:
        UserError: the network has no layer of weights, as when it computes with parameters of its own; or that layer is frozen.
    """
    called: list[nn.Module] = []
    layers = [layer for layer in network.modules() if not list(layer.children()) and any(True for _ in layer.parameters())]
    hooks = [layer.register_forward_hook(lambda layer, *_: called.append(layer)) for layer in layers]
    try:
        network.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not called:
        raise UserError("--head-learning-rate: the network has no last layer")
    if not any(parameter.requires_grad for parameter in called[-1].parameters()):
        raise UserError("--head-learning-rate: the last layer is frozen by --freeze, and has no rate; give --learning-rate alone")
    return called[-1]
