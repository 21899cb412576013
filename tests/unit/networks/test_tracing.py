"""Networks that PyTorch cannot trace are refused before they are trained, and the refusal is all that is printed."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from export.data import datasets
from export.networks import architectures
from export.networks.tracing import check_traceable
from export.training import loop
from export.training.recipes import Settings
from service.errors import UserError
from service.model.input_spec import InputSpec

CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.last = nn.LazyLinear(classes)

    def forward(self, x):
        return self.last(x.flatten(1) if x.sum() > -1e9 else -x.flatten(1))
"""
SPEC = InputSpec(height=4, width=6, channels=1)


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last, self.drop, self.norm = nn.Linear(24, 3), nn.Dropout(), nn.BatchNorm2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        last: torch.Tensor = self.last(self.drop(self.norm(x)).flatten(1))
        return last


class CountsItems(Flat):
    """Traced in the second way alone: the first takes the number of items as a constant."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).view(int(x.shape[0]), -1)


class Branches(Flat):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.sum() > 0 else -x)


@pytest.mark.parametrize("make", [Flat, CountsItems])
def test_what_can_be_traced_is_left_as_it_was(make: type[Flat]) -> None:
    network = make().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    check_traceable("net.py:Net", network, SPEC)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_branch_on_the_values_of_an_image_is_refused_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"^net\.py:Net: PyTorch cannot trace the network, .*data-dependent.*nothing was trained$"):
        check_traceable("net.py:Net", Branches(), SPEC)
    assert capfd.readouterr() == ("", "")


def test_it_is_refused_before_the_first_epoch(tmp_path: Path, digits: datasets.Dataset) -> None:
    (tmp_path / "net.py").write_text(CODE)
    found = architectures.code(f"{tmp_path}/net.py:Net")
    assert found is not None
    few = dataclasses.replace(digits.training, pixels=digits.training.pixels[:64], labels=digits.training.labels[:64])
    with pytest.raises(UserError, match=r"net\.py:Net: PyTorch cannot trace the network"):
        loop.train(dataclasses.replace(digits, training=few), Settings(found.network, epochs=1), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["net.py"]
