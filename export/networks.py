"""The networks, by name. Each takes float32[N,C,H,W], normalised, and gives logits float32[N,K].

Knows nothing of normalisation, softmax or training: `onnx_export.Served` wraps the first two round a trained network.
"""

from collections.abc import Callable

from torch import nn

from export.speed_net import SpeedNet
from service.contract import InputSpec
from service.errors import UserError

Builder = Callable[[InputSpec, int], nn.Module]


def build(name: str, spec: InputSpec, classes: int) -> nn.Module:
    """A network with fresh weights.

    Raises:
        UserError: no network of that name, or the input is too small for it.
    """
    if name not in NETWORKS:
        raise UserError(f"no network named {name!r}; the networks are {', '.join(NETWORKS)}")
    return NETWORKS[name](spec, classes)


def article_cnn(spec: InputSpec, classes: int) -> nn.Sequential:
    """The tutorials' CNN: three 3x3 convolutions of 32, 64 and 64 filters with ReLU, two 2x2 max poolings, a hidden layer of 64.

    No padding, as in the Keras tutorials, so the picture shrinks by two at every convolution. 93,322 parameters for 28x28x1
    and ten classes.
    """
    height, width = (((side - 2) // 2 - 2) // 2 - 2 for side in (spec.height, spec.width))
    if min(height, width) < 1:
        raise UserError(f"article-cnn needs pictures of at least 18x18; the input is {spec.height}x{spec.width}")
    return nn.Sequential(
        # shapes for 28x28x1                               (N,  1, 28, 28)
        nn.Conv2d(spec.channels, 32, kernel_size=3),  #    (N, 32, 26, 26)
        nn.ReLU(),
        nn.MaxPool2d(2),  #                                (N, 32, 13, 13)
        nn.Conv2d(32, 64, kernel_size=3),  #               (N, 64, 11, 11)
        nn.ReLU(),
        nn.MaxPool2d(2),  #                                (N, 64,  5,  5)
        nn.Conv2d(64, 64, kernel_size=3),  #               (N, 64,  3,  3)
        nn.ReLU(),
        nn.Flatten(),  #                                   (N, 576)
        nn.Linear(64 * height * width, 64),  #             (N, 64)
        nn.ReLU(),
        nn.Linear(64, classes),  #                         (N, K)
    )


NETWORKS: dict[str, Builder] = {"article-cnn": article_cnn, "speed-net": SpeedNet}
