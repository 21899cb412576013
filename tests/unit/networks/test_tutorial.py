"""The tutorials' networks: published shapes and parameter counts, and options."""

from torch import nn

from export.networks import architectures
from tests.unit.networks.shapes import COLOR32, GRAY28, parameters, shapes


def test_article_cnn_has_the_published_shapes() -> None:
    network = architectures.build("article-cnn", GRAY28, 10)
    assert parameters(network) == 93_322
    assert list(shapes(network, GRAY28).values()) == [
        (32, 26, 26), (32, 26, 26), (32, 13, 13), (64, 11, 11), (64, 11, 11), (64, 5, 5), (64, 3, 3), (64, 3, 3),
        (576,), (64,), (64,), (10,),
    ]  # fmt: skip


def test_the_other_networks_have_the_published_shapes() -> None:
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


def test_options_change_the_layers() -> None:
    network = architectures.build("article-cnn:pool=average,kernel=5,activation=tanh", GRAY28, 10)
    kinds = {name: type(layer) for name, layer in network.named_children()}
    assert (kinds["pool1"], kinds["activation1"], kinds["activation4"]) == (nn.AvgPool2d, nn.Tanh, nn.Tanh)
    assert network.get_parameter("conv2.weight").shape == (64, 32, 5, 5)
    for kernel in (3, 5, 7):  # a larger kernel changes no shape
        assert shapes(architectures.build(f"article-cnn:kernel={kernel}", GRAY28, 10), GRAY28)["flatten"] == (576,)
