"""Converts a checkpoint to an ONNX graph from pixels to probabilities, with PyTorch's exporter."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

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

    With `keep_norms` it gives the input of every batch norm as well: the exporter folds no norm into a convolution whose own output
    is wanted.
    """

    def __init__(self, checkpoint: Checkpoint, temperature: float, dtype: torch.dtype, keep_norms: bool = False) -> None:
        super().__init__()
        self.network = copy.deepcopy(checkpoint.network).to(dtype)
        self.dtype = dtype
        self.temperature = temperature
        self.keep_norms = keep_norms
        self.register_buffer("mean", torch.tensor(checkpoint.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(checkpoint.std)[:, None, None])
        self.mean: torch.Tensor
        self.std: torch.Tensor

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Preprocessing is part of the graph, so that no client can get it wrong."""
        x = image.permute(0, 3, 1, 2).to(torch.float32)  # (N, C, H, W)
        with _inputs_of_norms(self.network if self.keep_norms else nn.Identity()) as inputs:
            logits = self.network(((x - self.mean) / self.std).to(self.dtype)).to(torch.float32)  # (N, K)
        if self.temperature != 1.0:
            logits = logits / self.temperature
        return logits.softmax(dim=1), logits, *inputs


def to_onnx(
    checkpoint: Checkpoint, temperature: float = 1.0, dtype: torch.dtype = torch.float32, *, keep_norms: bool = False
) -> onnx.ModelProto:
    """The checked graph, without a contract. Its layers compute in `dtype`; normalisation, temperature and softmax in float32.

    Batch norms are folded into the convolutions before them, unless `keep_norms`: then every layer is as it was trained.

    Raises:
        UserError: a network of the user's own does what cannot be exported, such as a branch on the values of an image.
    """
    served = ServedNetwork(checkpoint, temperature, dtype, keep_norms).eval()
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
    del graph.graph.output[2:]  # the inputs of norms
    onnx.checker.check_model(graph, full_check=True)
    return graph


@contextmanager
def _inputs_of_norms(network: nn.Module) -> Iterator[list[torch.Tensor]]:
    """While it is open, what each batch norm of the network is called with is appended to the list."""
    found: list[torch.Tensor] = []
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0])) for norm in norms]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _first(error: Exception) -> Exception:
    """The error that the exporter wrapped in pages of its own."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _caused_by_interrupt(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
