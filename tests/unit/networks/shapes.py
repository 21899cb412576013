"""Inputs, parameter counts and layer shapes, for the tests of networks."""

import torch
from torch import nn

from service.model.input_spec import InputSpec

GRAY28 = InputSpec(height=28, width=28, channels=1)
COLOR32 = InputSpec(height=32, width=32, channels=3)
COLOR224 = InputSpec(height=224, width=224, channels=3)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def shapes(network: nn.Module, spec: InputSpec) -> dict[str, tuple[int, ...]]:
    x = torch.zeros(2, spec.channels, spec.height, spec.width)
    found = {}
    for name, layer in network.named_children():
        x = layer(x)
        found[name] = tuple(x.shape[1:])
    return found
