"""Exported files beside the weights that they were made from."""

from pathlib import Path

import pytest
import torch
from torch import nn

from export.convert import contract_builder, publish
from export.convert.onnx_conversion import to_onnx
from export.convert.pytorch_reference import compare_with_pytorch
from export.data import datasets
from export.evaluation.gates import check_parity
from export.training.checkpoint import Checkpoint, load_checkpoint
from export.training.recipes import Settings
from service.errors import UserError
from service.model.input_spec import InputSpec
from tests.unit.convert.networks import last_layer


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


def test_a_network_of_ones_own_that_cannot_be_exported_is_refused_in_one_line() -> None:
    spec = InputSpec(height=1, width=2, channels=1)
    own = Checkpoint(Branches(), spec, ("a", "b"), "noise", (127.0,), (50.0,), Settings("/home/me/net.py:Net", 1), 1)
    with pytest.raises(
        UserError, match=r"^net\.py:Net: PyTorch's exporter cannot convert the network: .*data-dependent"
    ) as refused:
        to_onnx(own)
    assert "\n" not in str(refused.value)


def test_a_file_that_differs_from_its_network_fails_parity(run: Path, digits: datasets.Dataset, tmp_path: Path) -> None:
    """Parity fails for real: the graph is made from other weights than the checkpoint that it is compared with."""
    checkpoint = load_checkpoint(run)
    graph = to_onnx(checkpoint, 1.7)
    contract = contract_builder.build_contract(checkpoint, digits, "digits", 1.7)
    served = publish.write_model(graph, contract, tmp_path / "model.onnx")
    check_parity(compare_with_pytorch(served, checkpoint, digits))
    with torch.no_grad():
        last_layer(checkpoint).bias[3] += 1.0
    with pytest.raises(UserError, match="parity gate"):
        check_parity(compare_with_pytorch(served, checkpoint, digits))
