"""The networks: the shapes and counts that were published, their options, and what cannot be."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

from export.networks import architectures
from service.errors import UserError
from service.model.contract import InputSpec

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


def test_the_articles_cnn_is_the_one_of_the_articles() -> None:
    network = architectures.build("article-cnn", GRAY28, 10)
    assert parameters(network) == 93_322
    assert list(shapes(network, GRAY28).values()) == [
        (32, 26, 26), (32, 26, 26), (32, 13, 13), (64, 11, 11), (64, 11, 11), (64, 5, 5), (64, 3, 3), (64, 3, 3),
        (576,), (64,), (64,), (10,),
    ]  # fmt: skip


def test_the_articles_other_shapes() -> None:
    twelve = architectures.build("twelve-filters", COLOR32, 10)
    found = shapes(twelve, COLOR32)
    assert [found[name] for name in ("conv", "pool", "flatten", "output")] == [(12, 32, 32), (12, 16, 16), (3072,), (10,)]
    assert parameters(twelve) == 31_066
    step = architectures.build("step-by-step", COLOR32, 10)
    found = shapes(step, COLOR32)
    assert [found[name] for name in ("conv", "pool", "flatten", "hidden", "output")] == [
        (32, 30, 30), (32, 15, 15), (7200,), (128,), (10,),
    ]  # fmt: skip
    assert parameters(step) == 923_914


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


def test_resnet18_shrinks_as_published_and_starts_as_it_should() -> None:
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


@pytest.mark.parametrize("name", architectures.NETWORKS)
def test_every_value_of_every_option_gives_a_network(name: str) -> None:
    for option, values in architectures.NETWORKS[name].options.items():
        for value in values:
            spec = InputSpec(height=36, width=40, channels=3)
            network = architectures.build(f"{name}:{option}={value}", spec, 2).eval()
            with torch.no_grad():
                assert network(torch.zeros(3, 3, 36, 40)).shape == (3, 2), value


def test_options_are_what_they_say() -> None:
    network = architectures.build("article-cnn:pool=average,kernel=5,activation=tanh", GRAY28, 10)
    kinds = {name: type(layer) for name, layer in network.named_children()}
    assert (kinds["pool1"], kinds["activation1"], kinds["activation4"]) == (nn.AvgPool2d, nn.Tanh, nn.Tanh)
    assert network.get_parameter("conv2.weight").shape == (64, 32, 5, 5)
    for kernel in (3, 5, 7):  # a larger kernel changes no shape
        assert shapes(architectures.build(f"article-cnn:kernel={kernel}", GRAY28, 10), GRAY28)["flatten"] == (576,)


def test_a_sigmoid_unit_is_a_pair_of_logits() -> None:
    torch.manual_seed(0)
    network = architectures.build("article-cnn:head=sigmoid", GRAY28, 2)
    assert getattr(network, "head") == "sigmoid"  # noqa: B009 - as the export looks it up
    assert getattr(architectures.build("article-cnn", GRAY28, 2), "head") == "softmax"  # noqa: B009
    assert network.get_parameter("output.weight").shape == (1, 64)
    x = torch.randn(5, 1, 28, 28)
    logits = network(x)
    z = logits[:, 1]
    assert torch.equal(logits[:, 0], torch.zeros(5))
    torch.testing.assert_close(logits.softmax(1), torch.stack([1 - z.sigmoid(), z.sigmoid()], 1))
    y = torch.tensor([0, 1, 1, 0, 1])
    torch.testing.assert_close(functional.cross_entropy(logits, y), functional.binary_cross_entropy_with_logits(z, y.float()))


@pytest.mark.parametrize(
    ("text", "classes", "message"),
    [
        ("lenet", 10, "no network named 'lenet'; the networks are article-cnn, twelve-filters, step-by-step, resnet18"),
        ("", 10, "no network named ''"),
        ("article-cnn:", 10, "article-cnn: no option ''; it takes pool=max|average; kernel=3|5|7"),
        ("article-cnn:stride=2", 10, "article-cnn: no option 'stride=2'; it takes pool=max|average"),
        ("article-cnn:pool", 10, "article-cnn: no option 'pool'"),
        ("article-cnn:kernel=4", 10, "article-cnn: kernel=4 is not one of 3, 5, 7"),
        ("article-cnn:kernel=3,kernel=5", 10, "article-cnn: kernel is given twice"),
        ("resnet18:stem=1x1", 10, "resnet18: stem=1x1 is not one of auto, 3x3, imagenet"),
        ("resnet18:stem=imagenet", 10, "with the ImageNet stem needs pictures of at least 33x33; the input is 28x28"),
        ("article-cnn:head=sigmoid", 10, "head=sigmoid tells two classes apart, and these data have 10"),
    ],
)
def test_what_cannot_be_is_said(text: str, classes: int, message: str) -> None:
    with pytest.raises(UserError) as raised:
        architectures.build(text, GRAY28, classes)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("article-cnn", 17, "at least 18x18; the input is 17x28"),
        ("twelve-filters", 1, "at least 2x2"),
        ("step-by-step", 3, "at least 4x4"),
        ("resnet18", 8, "with the 3x3 stem needs pictures of at least 9x9"),
    ],
)
def test_the_least_picture(name: str, side: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        architectures.build(name, InputSpec(height=side, width=28, channels=1), 2)
    spec = InputSpec(height=side + 1, width=28, channels=1)
    assert architectures.build(name, spec, 2).train()(torch.zeros(1, 1, side + 1, 28)).shape == (1, 2)


@pytest.mark.parametrize("text", ["twelve-filters:head=sigmoid", "step-by-step:pool=average", "resnet18"])
def test_networks_are_exported_for_any_batch(text: str) -> None:
    network = architectures.build(text, COLOR32, 2).eval()
    example = (torch.zeros(2, 3, 32, 32),)
    program = torch.onnx.export(network, example, dynamo=True, verbose=False, dynamic_shapes=({0: torch.export.Dim("N")},))
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = torch.randn(5, 3, 32, 32)
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, network(x).numpy(), atol=1e-4)


def test_help_lists_every_network_with_its_options() -> None:
    text = architectures.describe()
    for name, architecture in architectures.NETWORKS.items():
        assert name in text
        assert all(f"{option}={'|'.join(values)}" in text for option, values in architecture.options.items())
