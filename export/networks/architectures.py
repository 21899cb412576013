"""The registry of networks: by name, with their options, described and built from `NAME` or `NAME:option=value,...`.

Networks of the user's own, `FILE.py:NAME` or `MODULE:NAME`, are built by `custom`.

Each network takes float32 (N, C, H, W), normalised, and gives logits float32 (N, K). Normalisation and softmax are added at export.

The option `head` is `softmax`, or for two classes `sigmoid`: a single unit z, the logit of the second class. The network then gives
the logits [0, z], whose softmax is [1 - sigmoid(z), sigmoid(z)] and whose cross-entropy is the binary cross-entropy of z, so that
training and export need no second case.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from export.networks import custom, resnet, tutorial
from export.networks.speed_net import WIDTHS, SpeedNet
from service.errors import UserError
from service.model.input_spec import InputSpec

Head = Literal["softmax", "sigmoid"]


class Network(nn.Sequential):
    """Named layers in a row, and how to read the logits."""

    head: Head = "softmax"


class ZeroLogit(nn.Module):
    """The logits [0, z] of a single unit z: (N, 1) to (N, 2)."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """(N, 1) to (N, 2)."""
        return functional.pad(z, (1, 0))


@dataclass(frozen=True)
class Architecture:
    """A kind of network.

    Attributes:
        build: `build(spec, units, **options)` gives a network with `units` outputs, as the layers of a `Network` or as a module.
        about: a line for `convoy train --help`.
        options: the values of each option, the default first.
        rename: our name of a weight that files of other libraries have by another one.
    """

    build: Callable[..., "OrderedDict[str, nn.Module] | nn.Module"]
    about: str
    options: dict[str, tuple[str, ...]] = field(default_factory=dict)
    rename: Callable[[str], str] = str


_HEAD = {"head": ("softmax", "sigmoid")}
_TUTORIAL = tutorial.OPTIONS | _HEAD

NETWORKS: dict[str, Architecture] = {
    "article-cnn": Architecture(tutorial.article_cnn, "three convolutions and a hidden layer; for images from 18x18", _TUTORIAL),
    "twelve-filters": Architecture(tutorial.twelve_filters, "one convolution of twelve filters: the smallest CNN", _TUTORIAL),
    "step-by-step": Architecture(tutorial.step_by_step, "one convolution of 32 filters and a hidden layer of 128", _TUTORIAL),
    "resnet18": Architecture(
        resnet.layers,
        "residual network; its stem depends on the images' size",
        resnet.OPTIONS | _HEAD,
        resnet.from_torchvision,
    ),
    "speed-net": Architecture(
        lambda spec, units, width: SpeedNet(spec, units, int(width)),
        "learns small photos in few operations",
        {"width": tuple(map(str, WIDTHS))},
    ),
}


def build(text: str, spec: InputSpec, classes: int) -> nn.Module:
    """Builds a network with fresh weights.

    Args:
        text: `NAME` or `NAME:option=value,...`; or a network of the user's own, as `custom` has it.
        spec: the images that it takes.
        classes: K, the number of logits that it gives.

    Raises:
        UserError: no such network, option or value; or the network does not fit the input or the number of classes.
    """
    if is_custom(text):
        return custom.build(text, spec, classes)
    check_head(text, classes)
    name, options = parse(text)
    head = options.pop("head", "softmax")
    built = NETWORKS[name].build(spec, 1 if head == "sigmoid" else classes, **options)
    if head == "softmax":
        return built if isinstance(built, nn.Module) else Network(built)
    layers = OrderedDict(network=built) if isinstance(built, nn.Module) else built
    network = Network(layers | {"pair": ZeroLogit()})
    network.head = "sigmoid"
    return network


def check_head(text: str, classes: int) -> None:
    """Raises UserError if a network of Convoy's has a head for another number of classes."""
    if is_custom(text):
        return
    name, options = parse(text)
    if options.get("head") == "sigmoid" and classes != 2:
        raise UserError(f"{name}: head=sigmoid is for two classes, and these data have {classes}")


def code(text: str) -> custom.Code | None:
    """Where the code of a network of the user's own is; None for a network of Convoy's.

    Raises:
        UserError: there is no such network, option or value; or the code is not found or cannot be imported.
    """
    if is_custom(text):
        return custom.find(text)
    parse(text)
    return None


def shown(text: str) -> str:
    """A network for tables and model cards: of a file, the name without its folder."""
    return Path(text).name if is_custom(text) else text


def activation(network: nn.Module) -> Head:
    """What makes probabilities of a network's logits: softmax for a network of the user's own, whatever its `head` is."""
    return network.head if isinstance(network, Network) else "softmax"


def rename(text: str) -> Callable[[str], str]:
    """The network's `Architecture.rename`."""
    return str if is_custom(text) else NETWORKS[parse(text)[0]].rename


def is_custom(text: str) -> bool:
    """Whether this is a network of the user's own."""
    return text.partition(":")[0] not in NETWORKS and custom.is_custom(text)


def describe() -> str:
    """The networks with their options, the default of each first, for `--help`."""
    lines = []
    for name, architecture in NETWORKS.items():
        lines.append(f"  {name:<16}{architecture.about}")
        lines += [f"{'':18}{option}={'|'.join(values)}" for option, values in architecture.options.items()]
    lines.append(f"  {custom.HOW:<28}your own: a class or function, called with the input and the number of classes")
    return "\n".join(lines)


def parse(text: str) -> tuple[str, dict[str, str]]:
    """The name of a network and the values of all its options, with defaults for those that are not given.

    Raises:
        UserError: no such network, option or value.
    """
    name, colon, rest = text.partition(":")
    if name not in NETWORKS:
        raise UserError(f"no network named {name!r}; the networks are {', '.join(NETWORKS)}, and your own: {custom.HOW}")
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
