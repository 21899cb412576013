"""Tries whether PyTorch can trace a network, as its export needs: before a training of hours, not after it."""

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import torch
from torch import nn

from service.errors import UserError, first_line
from service.model.input_spec import InputSpec


def check_traceable(name: str, network: nn.Module, spec: InputSpec) -> None:
    """Traces a network, for batches of any size, in the two ways that PyTorch's ONNX exporter tries.

    Args:
        name: of the network, for the message.
        network: on the CPU; it is not changed.
        spec: the images that it takes.

    Raises:
        UserError: neither way works, as when the network branches on the values of an image.
    """
    images, dimension = torch.zeros(2, spec.channels, spec.height, spec.width), torch.export.Dim("N")
    refusal: Exception | None = None
    for strict in (False, True):
        try:
            with quiet():
                evaluated = copy.deepcopy(network).eval()
                torch.export.export(evaluated, (images,), dynamic_shapes=({0: dimension},), strict=strict)
        except Exception as error:  # noqa: BLE001 - of the network's own code, or of PyTorch's tracing
            refusal = refusal or error
        else:
            return
    if refusal is not None:
        raise UserError(
            f"{name}: PyTorch cannot trace the network, and could not export it: {first_line(refusal)}; nothing was trained"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Without what PyTorch prints of a trace that fails, its graph by pages, and without its warnings about itself."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
