"""Converts a checkpoint to an ONNX graph from pixels to probabilities, with PyTorch's exporter."""

import copy

import onnx
import torch
from torch import nn

from export.networks import architectures
from export.networks.tracing import quiet
from export.training.checkpoint import Checkpoint
from service.errors import UserError, first_line
from service.model.contract import INPUT_NAME, LOGITS_NAME, PROBABILITIES_NAME


class ServedNetwork(nn.Module):
    """The module that is exported: a network with its normalisation, layout change, temperature and softmax.

    Takes pixels uint8[N,H,W,C], gives probabilities and logits, both float32[N,K]. The network computes in `dtype`.
    """

    def __init__(self, checkpoint: Checkpoint, temperature: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = copy.deepcopy(checkpoint.network).to(dtype)
        self.dtype = dtype
        self.temperature = temperature
        self.register_buffer("mean", torch.tensor(checkpoint.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(checkpoint.std)[:, None, None])
        self.mean: torch.Tensor
        self.std: torch.Tensor

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Preprocessing is part of the graph, so that no client can get it wrong."""
        x = image.permute(0, 3, 1, 2).to(torch.float32)  # (N, C, H, W)
        logits = self.network(((x - self.mean) / self.std).to(self.dtype)).to(torch.float32)  # (N, K)
        if self.temperature != 1.0:
            logits = logits / self.temperature
        return logits.softmax(dim=1), logits


def to_onnx(checkpoint: Checkpoint, temperature: float = 1.0, dtype: torch.dtype = torch.float32) -> onnx.ModelProto:
    """The checked graph, without a contract. Its layers compute in `dtype`; normalisation, temperature and softmax in float32.

    Raises:
        UserError: a network of the user's own does what cannot be exported, such as a branch on the values of an image.
    """
    served = ServedNetwork(checkpoint, temperature, dtype).eval()
    example = torch.zeros((2, *checkpoint.input.shape), dtype=torch.uint8)
    with quiet():  # the exporter warns of its own deprecated parts, and of torchvision, which no network here uses
        try:
            program = torch.onnx.export(
                served,
                (example,),
                dynamo=True,
                external_data=False,
                verbose=False,
                input_names=[INPUT_NAME],
                output_names=[PROBABILITIES_NAME, LOGITS_NAME],
                dynamic_shapes={"image": {0: torch.export.Dim("N")}},
            )
        except Exception as error:
            if _caused_by_interrupt(error):  # the exporter wraps Ctrl-C in an error of its own
                raise KeyboardInterrupt from None
            network = checkpoint.settings.network
            if not architectures.is_custom(network):
                raise
            raise UserError(
                f"{architectures.shown(network)}: PyTorch's exporter cannot convert the network: {first_line(_first(error))}"
            ) from None
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    graph = program.model_proto
    onnx.checker.check_model(graph, full_check=True)
    return graph


def _first(error: Exception) -> Exception:
    """The error that the exporter wrapped in pages of its own."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _caused_by_interrupt(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
