"""The networks, by name. Each takes float32[N,C,H,W], normalised, and gives logits float32[N,K].

A network is asked for as `NAME` or `NAME:option=value,...`. The option `head` is `softmax`, or for two classes `sigmoid`: a
single unit z that answers for the second class. Its logits are [0, z], whose softmax is [1 - sigmoid(z), sigmoid(z)] and whose
cross-entropy is the binary cross-entropy of z, so that whatever trains, exports or checks a network sees one kind.

Knows nothing of normalisation, softmax or training: `convert.onnx_conversion` wraps a trained network in the first two.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from export.networks import resnet
from export.networks.speed_net import SpeedNet
from service.errors import UserError
from service.model.contract import InputSpec

Head = Literal["softmax", "sigmoid"]


class Network(nn.Sequential):
    """Layers with names, and how the last one is to be read."""

    head: Head = "softmax"


@dataclass(frozen=True)
class Architecture:
    """How a network is made: `build(spec, units, **options)` gives it with `units` outputs.

    `options` has the values that each option accepts, the default first; `about` is a line for `convoy train --help`. Only what
    gives a `Network` can have the option `head`.
    """

    build: Callable[..., nn.Module]
    about: str
    options: dict[str, tuple[str, ...]] = field(default_factory=dict)


def build(text: str, spec: InputSpec, classes: int) -> nn.Module:
    """A network with fresh weights. Its attribute `head`, if it has one, says whether it ends in a softmax or a sigmoid unit.

    Args:
        text: `NAME` or `NAME:option=value,...`.
        spec: what it takes.
        classes: K, the number of logits that it gives.

    Raises:
        UserError: no such network, option or value; or the network does not fit the input or the number of classes.
    """
    name, options = parse(text)
    head = options.pop("head", "softmax")
    if head == "softmax":
        return NETWORKS[name].build(spec, classes, **options)
    if classes != 2:
        raise UserError(f"{name}: head=sigmoid tells two classes apart, and these data have {classes}")
    network = NETWORKS[name].build(spec, 1, **options)
    if not isinstance(network, Network):
        raise TypeError(f"{name} has the option head, but is not made of layers in a row")
    network.add_module("pair", AgainstZero())
    network.head = "sigmoid"
    return network


def describe() -> str:
    """The networks with their options, the default of each first, for `--help`."""
    lines = []
    for name, architecture in NETWORKS.items():
        lines.append(f"  {name:<16}{architecture.about}")
        lines += [f"{'':18}{option}={'|'.join(values)}" for option, values in architecture.options.items()]
    return "\n".join(lines)


def parse(text: str) -> tuple[str, dict[str, str]]:
    """The name of a network and the values of all its options, those not given by default. Raises UserError as `build`."""
    name, colon, rest = text.partition(":")
    if name not in NETWORKS:
        raise UserError(f"no network named {name!r}; the networks are {', '.join(NETWORKS)}")
    accepted = NETWORKS[name].options
    options = {option: values[0] for option, values in accepted.items()}
    given = set()
    for part in rest.split(",") if colon else ():
        option, equals, value = (word.strip() for word in part.partition("="))
        if option not in accepted or not equals:
            listed = "; ".join(f"{option}={'|'.join(values)}" for option, values in accepted.items())
            raise UserError(f"{name}: no option {part.strip()!r}; it takes {listed or 'none'}")
        if value not in accepted[option]:
            raise UserError(f"{name}: {option}={value} is not one of {', '.join(accepted[option])}")
        if option in given:
            raise UserError(f"{name}: {option} is given twice")
        given.add(option)
        options[option] = value
    return name, options


class AgainstZero(nn.Module):
    """The logits [0, z] of a single unit z: (N, 1) to (N, 2)."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """(N, 1) to (N, 2)."""
        return functional.pad(z, (1, 0))  # a column of zeros before it


def article_cnn(spec: InputSpec, units: int, pool: str, kernel: str, activation: str) -> Network:
    """The tutorials' CNN: three 3x3 convolutions of 32, 64 and 64 filters with ReLU, two 2x2 max poolings, a hidden layer of 64.

    No padding, as in the Keras tutorials, so the picture shrinks by two at every convolution; larger kernels are padded so that
    it shrinks by no more. 93,322 parameters for 28x28x1 and ten classes.
    """
    height, width = (((side - 2) // 2 - 2) // 2 - 2 for side in (spec.height, spec.width))
    if min(height, width) < 1:
        raise UserError(f"article-cnn needs pictures of at least 18x18; the input is {spec.height}x{spec.width}")
    side, act, pooling = int(kernel), ACTIVATIONS[activation], POOLINGS[pool]
    pad = (side - 3) // 2
    return _network(
        # shapes for 28x28x1                                             (N,  1, 28, 28)
        conv1=nn.Conv2d(spec.channels, 32, side, padding=pad),  #        (N, 32, 26, 26)
        activation1=act(),
        pool1=pooling(2),  #                                             (N, 32, 13, 13)
        conv2=nn.Conv2d(32, 64, side, padding=pad),  #                   (N, 64, 11, 11)
        activation2=act(),
        pool2=pooling(2),  #                                             (N, 64,  5,  5)
        conv3=nn.Conv2d(64, 64, side, padding=pad),  #                   (N, 64,  3,  3)
        activation3=act(),
        flatten=nn.Flatten(),  #                                         (N, 576)
        hidden=nn.Linear(64 * height * width, 64),  #                    (N, 64)
        activation4=act(),
        output=nn.Linear(64, units),  #                                  (N, K)
    )


def twelve_filters(spec: InputSpec, units: int, pool: str, kernel: str, activation: str) -> Network:
    """The least of the articles' shapes, and CS231n's example: one convolution of twelve filters, a pooling, an output layer.

    31,066 parameters for 32x32x3 and ten classes.
    """
    if min(spec.height, spec.width) < 2:
        raise UserError(f"twelve-filters needs pictures of at least 2x2; the input is {spec.height}x{spec.width}")
    side = int(kernel)
    return _network(
        # shapes for 32x32x3                                             (N,  3, 32, 32)
        conv=nn.Conv2d(spec.channels, 12, side, padding=side // 2),  #   (N, 12, 32, 32)
        activation=ACTIVATIONS[activation](),
        pool=POOLINGS[pool](2),  #                                       (N, 12, 16, 16)
        flatten=nn.Flatten(),  #                                         (N, 3072)
        output=nn.Linear(12 * (spec.height // 2) * (spec.width // 2), units),  # (N, K)
    )


def step_by_step(spec: InputSpec, units: int, pool: str, kernel: str, activation: str) -> Network:
    """The articles' shape for a first CNN of one's own: a convolution of 32 filters, a pooling, a hidden layer of 128.

    923,914 parameters for 32x32x3 and ten classes.
    """
    height, width = (spec.height - 2) // 2, (spec.width - 2) // 2
    if min(height, width) < 1:
        raise UserError(f"step-by-step needs pictures of at least 4x4; the input is {spec.height}x{spec.width}")
    side, act = int(kernel), ACTIVATIONS[activation]
    return _network(
        # shapes for 32x32x3                                                 (N,  3, 32, 32)
        conv=nn.Conv2d(spec.channels, 32, side, padding=(side - 3) // 2),  # (N, 32, 30, 30)
        activation1=act(),
        pool=POOLINGS[pool](2),  #                                           (N, 32, 15, 15)
        flatten=nn.Flatten(),  #                                             (N, 7200)
        hidden=nn.Linear(32 * height * width, 128),  #                       (N, 128)
        activation2=act(),
        output=nn.Linear(128, units),  #                                     (N, K)
    )


def resnet18(spec: InputSpec, units: int, stem: str, zero_init: str) -> Network:
    """ResNet-18: see `resnet.layers`."""
    return Network(resnet.layers(spec, units, stem, zero_init == "yes"))


def speed_net(spec: InputSpec, units: int, width: str) -> SpeedNet:
    """See `speed_net`."""
    return SpeedNet(spec, units, int(width))


def _network(**layers: nn.Module) -> Network:
    return Network(OrderedDict(layers))


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
POOLINGS: dict[str, Callable[[int], nn.Module]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
_HEAD = {"head": ("softmax", "sigmoid")}
_ARTICLES = {"pool": tuple(POOLINGS), "kernel": ("3", "5", "7"), "activation": tuple(ACTIVATIONS), **_HEAD}

NETWORKS: dict[str, Architecture] = {
    "article-cnn": Architecture(article_cnn, "three convolutions and a hidden layer; for pictures from 18x18", _ARTICLES),
    "twelve-filters": Architecture(twelve_filters, "one convolution of twelve filters: the least that is a CNN", _ARTICLES),
    "step-by-step": Architecture(step_by_step, "one convolution of 32 filters and a hidden layer of 128", _ARTICLES),
    "resnet18": Architecture(
        resnet18,
        "residual network; its stem goes by the pictures' size",
        {"stem": resnet.STEMS, "zero_init": ("no", "yes"), **_HEAD},
    ),
    "speed-net": Architecture(speed_net, "made to learn small photos in few operations", {"width": ("48", "32", "40", "64")}),
}
