"""ResNet-18 (He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", arXiv:1512.03385)."""

import re
from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional

from service.errors import UserError
from service.model.input_spec import InputSpec

OPTIONS = {"stem": ("auto", "3x3", "imagenet"), "zero_init": ("no", "yes")}
"""The values of each option, the default first."""

_TORCHVISION = (
    (r"layer(\d)\.(\d)\.", lambda match: f"stage{match[1]}_block{int(match[2]) + 1}."),
    (r"downsample\.0\.", "shortcut.conv."),
    (r"downsample\.1\.", "shortcut.norm."),
    (r"^conv1\.", "conv."),
    (r"^bn1\.", "norm."),
    (r"\.bn([12])\.", r".norm\1."),
    (r"^fc\.", "output."),
)
_WIDTHS = (64, 128, 256, 512)
_BLOCKS = 2
_SMALL_UP_TO = 64


class BasicBlock(nn.Module):
    """Two 3x3 convolutions whose output is added to the input: (N, c, H, W) to (N, f, H / stride, W / stride).

    If the shape changes, the input goes through a 1x1 convolution of the same stride first (option B of the paper).
    """

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(filters)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != filters:
            self.shortcut.add_module("conv", nn.Conv2d(channels, filters, 1, stride, bias=False))
            self.shortcut.add_module("norm", nn.BatchNorm2d(filters))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, c, H, W) to (N, f, H / stride, W / stride)."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class GlobalAverage(nn.Module):
    """Global average pooling as a mean, which is exported as one operator. Adaptive pooling becomes a dozen."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C)."""
        return x.mean((2, 3))


def layers(spec: InputSpec, units: int, stem: str, zero_init: str) -> "OrderedDict[str, nn.Module]":
    """The layers of ResNet-18, in order.

    Args:
        spec: the images that it takes.
        units: the number of outputs.
        stem: `3x3`, as for CIFAR-10 (11,173,962 parameters with ten classes); `imagenet`, a 7x7 convolution and a pooling that
            divide the image's sides by four (11,689,512 with a thousand); or `auto`: `3x3` for images up to 64x64.
        zero_init: `yes`: each block starts as the identity, as the scale of its last norm is 0 (Goyal et al., arXiv:1706.02677).

    Raises:
        UserError: the images are too small: a feature map would be a single pixel, from which a batch norm cannot learn.
    """
    small = stem == "3x3" or (stem == "auto" and max(spec.height, spec.width) <= _SMALL_UP_TO)
    least = 9 if small else 33
    if min(spec.height, spec.width) < least:
        raise UserError(
            f"resnet18 with the {'3x3' if small else 'ImageNet'} stem needs images of at least {least}x{least}; "
            f"the input is {spec.height}x{spec.width}"
        )
    found: OrderedDict[str, nn.Module] = OrderedDict()
    if small:  #                                                             (N,  3, 32, 32)
        found["conv"] = nn.Conv2d(spec.channels, 64, 3, padding=1, bias=False)
        found["norm"] = nn.BatchNorm2d(64)
        found["relu"] = nn.ReLU()  #                                         (N, 64, 32, 32)
    else:  #                                                                 (N,  3, 224, 224)
        found["conv"] = nn.Conv2d(spec.channels, 64, 7, stride=2, padding=3, bias=False)
        found["norm"] = nn.BatchNorm2d(64)
        found["relu"] = nn.ReLU()  #                                         (N, 64, 112, 112)
        found["pool"] = nn.MaxPool2d(3, stride=2, padding=1)  #              (N, 64, 56, 56)
    channels = 64
    # (N,  64, 32, 32), (N, 128, 16, 16), (N, 256,  8,  8), (N, 512, 4, 4) with the 3x3 stem;
    # (N,  64, 56, 56), (N, 128, 28, 28), (N, 256, 14, 14), (N, 512, 7, 7) with ImageNet's.
    for stage, filters in enumerate(_WIDTHS, start=1):
        for block in range(_BLOCKS):
            stride = 2 if stage > 1 and block == 0 else 1
            found[f"stage{stage}_block{block + 1}"] = BasicBlock(channels, filters, stride)
            channels = filters
    found["mean"] = GlobalAverage()  #                                       (N, 512)
    found["output"] = nn.Linear(512, units)  #                               (N, K)
    _initialise(found, zero_init == "yes")
    return found


def from_torchvision(name: str) -> str:
    """Our name of a weight of torchvision's or timm's ResNet-18; other names as they are."""
    for pattern, ours in _TORCHVISION:
        name = re.sub(pattern, ours, name)
    return name


def _initialise(found: "OrderedDict[str, nn.Module]", zero_init: bool) -> None:
    """Kaiming's initialisation of the convolutions (arXiv:1502.01852), by fan-out, as in the paper's own and torchvision's code."""
    for layer in found.values():
        for module in layer.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock) and zero_init:
                nn.init.zeros_(module.norm2.weight)
