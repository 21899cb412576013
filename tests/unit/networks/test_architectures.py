"""The registry of networks: options, heads, errors, export and help."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

from export.networks import architectures
from export.networks.architectures import Architecture
from service.errors import UserError
from service.model.input_spec import InputSpec
from tests.unit.networks.shapes import COLOR32, GRAY28


@pytest.mark.parametrize("name", architectures.NETWORKS)
def test_every_value_of_every_option_gives_a_network(name: str) -> None:
    for option, values in architectures.NETWORKS[name].options.items():
        for value in values:
            spec = InputSpec(height=36, width=40, channels=3)
            network = architectures.build(f"{name}:{option}={value}", spec, 2).eval()
            with torch.no_grad():
                assert network(torch.zeros(3, 3, 36, 40)).shape == (3, 2), value


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


def test_a_module_of_its_own_can_have_a_sigmoid_unit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def tiny(spec: InputSpec, units: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(spec.height * spec.width * spec.channels, units))

    monkeypatch.setitem(architectures.NETWORKS, "tiny", Architecture(tiny, "one layer", {"head": ("softmax", "sigmoid")}))
    for head in ("softmax", "sigmoid"):
        network = architectures.build(f"tiny:head={head}", GRAY28, 2)
        assert getattr(network, "head", "softmax") == head
        logits = network(torch.zeros(3, 1, 28, 28))
        assert logits.shape == (3, 2)
        assert bool((logits[:, 0] == 0).all()) is (head == "sigmoid")


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
        ("resnet18:stem=imagenet", 10, "with the ImageNet stem needs images of at least 33x33; the input is 28x28"),
        ("article-cnn:head=sigmoid", 10, "head=sigmoid is for two classes, and these data have 10"),
    ],
)
def test_an_invalid_network_is_refused(text: str, classes: int, message: str) -> None:
    with pytest.raises(UserError) as raised:
        architectures.build(text, GRAY28, classes)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("article-cnn", 17, "at least 18x18; the input is 17x28"),
        ("twelve-filters", 1, "at least 2x2"),
        ("step-by-step", 3, "at least 4x4"),
        ("resnet18", 8, "with the 3x3 stem needs images of at least 9x9"),
    ],
)
def test_the_smallest_picture(name: str, side: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        architectures.build(name, InputSpec(height=side, width=28, channels=1), 2)
    spec = InputSpec(height=side + 1, width=28, channels=1)
    assert architectures.build(name, spec, 2).train()(torch.zeros(1, 1, side + 1, 28)).shape == (1, 2)


@pytest.mark.usefixtures("known_operators")
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
