"""ResNet-18: published shapes and parameter counts, and initialisation."""

import pytest
import torch

from export.networks import architectures
from service.model.input_spec import InputSpec
from tests.unit.networks.shapes import COLOR32, COLOR224, parameters, shapes


@pytest.mark.parametrize(
    ("text", "spec", "classes", "count"),
    [
        ("resnet18", COLOR32, 10, 11_173_962),
        ("resnet18:stem=3x3", COLOR32, 10, 11_173_962),
        ("resnet18", COLOR224, 1000, 11_689_512),
        ("resnet18:stem=imagenet", InputSpec(height=64, width=64, channels=3), 1000, 11_689_512),
    ],
)
def test_resnet18_has_the_published_number_of_parameters(text: str, spec: InputSpec, classes: int, count: int) -> None:
    assert parameters(architectures.build(text, spec, classes)) == count


def test_resnet18_has_the_published_shapes_and_initialisation() -> None:
    network = architectures.build("resnet18", COLOR32, 10).eval()
    found = shapes(network, COLOR32)
    assert [found[f"stage{stage}_block2"] for stage in (1, 2, 3, 4)] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    large = shapes(architectures.build("resnet18", COLOR224, 10).eval(), COLOR224)
    assert (large["relu"], large["pool"], large["stage4_block2"]) == ((64, 112, 112), (64, 56, 56), (512, 7, 7))
    weight = network.get_submodule("stage4_block2.conv1").get_parameter("weight")
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)  # Kaiming, by fan-out
    x = torch.rand(2, 64, 8, 8)
    identity = architectures.build("resnet18:zero_init=yes", COLOR32, 10).get_submodule("stage1_block1")
    assert torch.equal(identity(x), x)
    assert not torch.equal(architectures.build("resnet18", COLOR32, 10).get_submodule("stage1_block1")(x), x)
