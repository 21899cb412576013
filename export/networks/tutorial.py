"""The networks of the tutorials: `article-cnn`, `twelve-filters` and `step-by-step`.

Each function takes the input, the number of outputs and the options, and gives the layers by name, with fresh weights.
"""

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from service.errors import UserError
from service.model.input_spec import InputSpec

Layers = OrderedDict[str, nn.Module]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
POOLINGS: dict[str, Callable[[int], nn.Module]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
OPTIONS = {"pool": tuple(POOLINGS), "kernel": ("3", "5", "7"), "activation": tuple(ACTIVATIONS)}
"""The values of each option, the default first."""


def article_cnn(spec: InputSpec, units: int, pool: str, kernel: str, activation: str) -> Layers:
    """Three 3x3 convolutions of 32, 64 and 64 filters with ReLU, two 2x2 max poolings and a hidden layer of 64 units.

    As in the Keras tutorials there is no padding: each convolution makes the image smaller by two pixels. Larger kernels are
    padded to give the same shapes. 93,322 parameters for 28x28x1 and ten classes.

    Raises:
        UserError: the images are too small.
    """
    height, width = (((side - 2) // 2 - 2) // 2 - 2 for side in (spec.height, spec.width))
    if min(height, width) < 1:
        raise UserError(f"article-cnn needs images of at least 18x18; the input is {spec.height}x{spec.width}")
    side, act, pooling = int(kernel), ACTIVATIONS[activation], POOLINGS[pool]
    pad = (side - 3) // 2
    return OrderedDict(
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


def twelve_filters(spec: InputSpec, units: int, pool: str, kernel: str, activation: str) -> Layers:
    """One convolution of twelve filters, a pooling and an output layer: the smallest CNN, and the example of CS231n.

    31,066 parameters for 32x32x3 and ten classes.

    Raises:
        UserError: the images are too small.
    """
    if min(spec.height, spec.width) < 2:
        raise UserError(f"twelve-filters needs images of at least 2x2; the input is {spec.height}x{spec.width}")
    side = int(kernel)
    return OrderedDict(
        # shapes for 32x32x3                                             (N,  3, 32, 32)
        conv=nn.Conv2d(spec.channels, 12, side, padding=side // 2),  #   (N, 12, 32, 32)
        activation=ACTIVATIONS[activation](),
        pool=POOLINGS[pool](2),  #                                       (N, 12, 16, 16)
        flatten=nn.Flatten(),  #                                         (N, 3072)
        output=nn.Linear(12 * (spec.height // 2) * (spec.width // 2), units),  # (N, K)
    )


def step_by_step(spec: InputSpec, units: int, pool: str, kernel: str, activation: str) -> Layers:
    """One convolution of 32 filters, a pooling and a hidden layer of 128 units: the tutorials' first CNN.

    923,914 parameters for 32x32x3 and ten classes.

    Raises:
        UserError: the images are too small.
    """
    height, width = (spec.height - 2) // 2, (spec.width - 2) // 2
    if min(height, width) < 1:
        raise UserError(f"step-by-step needs images of at least 4x4; the input is {spec.height}x{spec.width}")
    side, act = int(kernel), ACTIVATIONS[activation]
    return OrderedDict(
        # shapes for 32x32x3                                                 (N,  3, 32, 32)
        conv=nn.Conv2d(spec.channels, 32, side, padding=(side - 3) // 2),  # (N, 32, 30, 30)
        activation1=act(),
        pool=POOLINGS[pool](2),  #                                           (N, 32, 15, 15)
        flatten=nn.Flatten(),  #                                             (N, 7200)
        hidden=nn.Linear(32 * height * width, 128),  #                       (N, 128)
        activation2=act(),
        output=nn.Linear(128, units),  #                                     (N, K)
    )
