"""Exported files beside the weights that they were made from."""

from pathlib import Path

import pytest
import torch

from export.convert import contract_builder, publish
from export.convert.onnx_conversion import to_onnx
from export.convert.pytorch_reference import compare_with_pytorch
from export.data import datasets
from export.evaluation.gates import check_parity
from export.training.checkpoint import load_checkpoint
from service.errors import UserError
from tests.unit.convert.networks import last_layer


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
