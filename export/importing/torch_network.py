"""A network of PyTorch as an ONNX graph, and what PyTorch itself makes of its inputs."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from export.importing.conversion import quiet
from service.errors import UserError, first_line

_ITEMS = 2
_BATCH_ITEMS = 8


class TorchNetwork:
    """A copy of a network on the CPU, in evaluation mode: dropout is off, and batch normalisation uses what training saw."""

    def __init__(self, network: nn.Module, height: int, width: int, channels: int) -> None:
        self.name = type(network).__name__
        self._scores = _Scores(copy.deepcopy(network).cpu()).eval()
        self._dtype = next((value.dtype for value in network.parameters() if value.is_floating_point()), torch.float32)
        self._shape = (channels, height, width)

    def scores(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """The network's scores, [n,...], of normalised pictures float32[n,C,H,W]. Raises UserError if it does not take them."""
        found = []
        for at in range(0, len(inputs), _BATCH_ITEMS):
            batch = torch.from_numpy(inputs[at : at + _BATCH_ITEMS]).to(self._dtype)
            try:
                with torch.inference_mode():
                    found.append(self._scores(batch).to(torch.float32).numpy())
            except Exception as error:  # noqa: BLE001 - the network is the user's, and may raise any error
                shape = ",".join(map(str, self._shape))
                raise UserError(f"{self.name}: it does not take float32 [N,{shape}]: {first_line(error)}") from None
        return np.concatenate(found)

    def to_onnx(self) -> onnx.ModelProto:
        """The graph, from `image` [N,C,H,W] to `scores`. Raises UserError if PyTorch's exporter fails."""
        example = torch.zeros((_ITEMS, *self._shape), dtype=self._dtype)
        try:
            with quiet():
                program: Any = torch.onnx.export(
                    self._scores, (example,), dynamo=True, external_data=False, verbose=False, input_names=["image"],
                    output_names=["scores"], dynamic_shapes=({0: torch.export.Dim("N")},),
                )  # fmt: skip
        except Exception as error:  # noqa: BLE001 - of the exporter, or of the network
            raise UserError(f"{self.name}: PyTorch cannot convert it to ONNX: {first_line(error)}") from None
        graph: onnx.ModelProto = program.model_proto
        return graph


def channels_of(network: nn.Module) -> int:
    """Of its first convolution; 0 if it has none."""
    return next((module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d)), 0)


class _Scores(nn.Module):
    """A network whose answer is a tensor: networks of Hugging Face give an object with `logits`, some others a table."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        answer: Any = self.network(image)
        if isinstance(answer, Mapping) and "logits" in answer:
            answer = answer["logits"]
        elif isinstance(answer, (tuple, list)):
            answer = answer[0]
        if not isinstance(answer, torch.Tensor):
            raise TypeError(f"its answer is {type(answer).__name__}; a tensor of scores is accepted")
        return answer
