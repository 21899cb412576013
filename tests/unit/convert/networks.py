"""Changes to networks, and exported graphs to look into."""

import copy
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper

from export.training.checkpoint import Checkpoint


def last_layer(checkpoint: Checkpoint) -> torch.nn.Linear:
    return [layer for layer in checkpoint.network.modules() if isinstance(layer, torch.nn.Linear)][-1]


def outlier(network: torch.nn.Module, first: str, second: str, factor: float) -> torch.nn.Module:
    """The same function, but the first channel between two layers is `factor` as large: ReLU and pooling do not mind."""
    changed = copy.deepcopy(network)
    before, after = changed.get_submodule(first), changed.get_submodule(second)
    assert isinstance(before.weight, torch.Tensor)
    assert isinstance(before.bias, torch.Tensor)
    assert isinstance(after.weight, torch.Tensor)
    share = after.weight.shape[1] // len(before.weight)  # a flattened channel is several inputs
    with torch.no_grad():
        before.weight[0] *= factor
        before.bias[0] *= factor
        after.weight[:, :share] /= factor
    return changed


class Graph:
    """A graph, by the names of its values."""

    def __init__(self, path: Path) -> None:
        graph = onnx.load(path).graph
        self.nodes = list(graph.node)
        self.made_by = {name: node for node in graph.node for name in node.output}
        self.weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}

    def of(self, *operators: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in operators]
