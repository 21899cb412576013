"""The settings of a training run, and the recipe of each network: the default settings.

Does not import torch, so that `convoy train --help` is quick.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

OptimizerName = Literal["adam", "adamw", "sgd"]
ScheduleName = Literal["one-cycle", "constant"]
AutocastName = Literal["auto", "off", "bf16"]
OPTIMIZERS: tuple[str, ...] = get_args(OptimizerName)
SCHEDULES: tuple[str, ...] = get_args(ScheduleName)
AUTOCASTS: tuple[str, ...] = get_args(AutocastName)

SMALL_ITEMS = 10_000
SMALL_BATCH = 32
"""The batch size below SMALL_ITEMS training images."""


@dataclass(frozen=True)
class Settings:
    """All settings of a training run.

    Attributes:
        network: NAME or NAME:option=value,...
        epochs: passes over the training part, at most.
        batch_size: images a step, over all processes.
        learning_rate: the highest of the schedule.
        seed: of the weights, the shuffling and the augmentation.
        optimizer: Adam, AdamW (weight decay separate from the gradient) or SGD with Nesterov momentum.
        schedule: one cycle up to the learning rate and down to nearly 0, or constant.
        weight_decay: of the weights of convolutions and linear layers; norms and biases have none.
        label_smoothing: share of each target that is spread over all classes, in [0, 1).
        ema_decay: decay a step of an exponential moving average of the weights, which is then measured and kept in place of the
            weights; 0: no average.
        patience: training stops after so many epochs without a lower validation loss; 0: never.
        autocast: whether convolutions and matrix products compute in bfloat16; auto: where that is faster.
        weights: the file that the weights started from, with its digest; empty: none.
        freeze: weights whose names start with one of these are not trained, and norms among them keep their statistics.
        head_learning_rate: the highest of the schedule for the last layer; 0: the same as for the others.
        mean: subtracted from pixels of 0 to 1, by channel; empty: the mean of the training images.
        std: what they are then divided by; empty: the standard deviation of the training images.
        class_weights: of each class in the loss; empty: every image weighs the same.
        balanced_sampling: an epoch has as many images of every class.
    """

    network: str
    epochs: int
    batch_size: int = 32
    learning_rate: float = 2e-3
    seed: int = 0
    optimizer: OptimizerName = "adam"
    schedule: ScheduleName = "one-cycle"
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    patience: int = 0
    autocast: AutocastName = "auto"
    weights: str = ""
    freeze: tuple[str, ...] = ()
    head_learning_rate: float = 0.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    class_weights: tuple[float, ...] = ()
    balanced_sampling: bool = False

    def given(self) -> dict[str, object]:
        """All settings by name, without those of this training that are not used."""
        unused = ("weights", "freeze", "head_learning_rate", "mean", "std", "class_weights", "balanced_sampling")
        return {name: value for name, value in asdict(self).items() if value or name not in unused}


@dataclass(frozen=True)
class Recipe:
    """Default settings of a network, for SMALL_ITEMS training images or more."""

    epochs: int
    batch_size: int
    optimizer: OptimizerName
    learning_rate: float
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    schedule: ScheduleName = "one-cycle"
    shift_pixels: int | None = None
    """How far training images are shifted; None: the data set's default."""
    flip: bool | None = None
    """Whether half of the training images are mirrored; None: the data set's default."""
    is_fixed: bool = False
    """Whether batch size and learning rate are these, whatever the number of images and the other settings."""
    only_divides: bool = False
    """Whether pixels are divided by 255, and that is all."""


RECIPES = {
    # Adam as in the articles. One cycle and label smoothing take MNIST to 99.5 % in the five epochs that take their Keras code to
    # 99.1 %; the smoothing is worth half a point on the digits, where it keeps the choice of the epoch from being a lottery.
    "article-cnn": Recipe(20, 128, "adam", 4e-3, label_smoothing=0.1),
    # He and others, arXiv:1512.03385, with the decay and the schedule with which it has since been trained to 95 % on CIFAR-10.
    "resnet18": Recipe(30, 128, "sgd", 0.1, weight_decay=5e-4, label_smoothing=0.1),
    # Keller Jordan's airbench, arXiv:2404.00498, for batches that two CPU cores like.
    "speed-net": Recipe(12, 256, "sgd", 0.3, weight_decay=1e-3, label_smoothing=0.2, ema_decay=0.99, shift_pixels=2),
}
ARTICLE = Recipe(5, 64, "adam", 1e-3, schedule="constant", shift_pixels=0, flip=False, is_fixed=True, only_divides=True)
"""The settings of the articles' Keras code, with which the tutorials' networks learn what the articles print."""
NAMED = {"article": ARTICLE}
"""Recipes for any network, by the value of `--recipe`."""

OTHERS = "article-cnn"
"""The network whose recipe all networks without one take."""

FINE_TUNING = 0.1
"""The default learning rate of weights that come from a file, as a share of the recipe's; the last layer takes the recipe's own."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of pixels of 0 to 1, by channel, as torchvision, timm and most others have them."""


def recipe(network: str, name: str | None = None) -> Recipe:
    """The recipe of this name, of NAMED; else that of the network, given as NAME or NAME:option=value,..."""
    if name is not None:
        return NAMED[name]
    return RECIPES.get(network.partition(":")[0], RECIPES[OTHERS])


def settings(network: str, training_items: int, base: Recipe | None = None, channels: int = 1, **given: Any) -> Settings:
    """The recipe `base`, else that of the network, with the given values (other than None) in place of its own.

    Below SMALL_ITEMS training images the default batch size is SMALL_BATCH, so that an epoch still has enough steps. If the batch
    size differs from the recipe's, the default learning rate is scaled: by the square root of the ratio for Adam and AdamW (Malladi
    et al., arXiv:2205.10287), in proportion for SGD (Goyal et al., arXiv:1706.02677). If the optimiser differs from the recipe's,
    the default learning rate is from a recipe with that optimiser. With weights from a file it is for the last layer, and
    FINE_TUNING of it for the others. The rate of a recipe that `is_fixed` is not scaled. `channels` are those of the input.
    """
    base = base or recipe(network)
    given = {name: value for name, value in given.items() if value is not None}
    chosen = {name: value for name, value in vars(base).items() if name in Settings.__dataclass_fields__} | given
    if base.only_divides:
        chosen |= {"mean": given.get("mean") or (0.0,) * channels, "std": given.get("std") or (1.0,) * channels}
    if "batch_size" not in given and training_items < SMALL_ITEMS and not base.is_fixed:
        chosen["batch_size"] = min(base.batch_size, SMALL_BATCH)
    if "learning_rate" not in given:
        like = base if chosen["optimizer"] == base.optimizer else RECIPES["resnet18" if chosen["optimizer"] == "sgd" else OTHERS]
        ratio = chosen["batch_size"] / like.batch_size
        scale = ratio if chosen["optimizer"] == "sgd" else math.sqrt(ratio)
        if base.is_fixed and like is base:
            scale = 1.0
        rate = float(f"{like.learning_rate * scale:.3g}")
        if chosen.get("weights"):
            chosen.setdefault("head_learning_rate", rate)
            rate = float(f"{rate * FINE_TUNING:.3g}")
        chosen["learning_rate"] = rate
    return Settings(network, **chosen)


def describe() -> str:
    """The recipes as a table, for `--help`."""
    row = "  {:<14}{:>7}{:>7}{:>11}{:>15}{:>14}{:>11}{:>9}".format
    lines = [row("", "epochs", "batch", "optimizer", "learning rate", "weight decay", "smoothing", "average")]
    for name, each in RECIPES.items():
        numbers = (each.learning_rate, each.weight_decay, each.label_smoothing, each.ema_decay)
        lines.append(row(name, each.epochs, each.batch_size, each.optimizer, *(f"{number:g}" for number in numbers)))
    lines.append(
        f"  The recipe article, for any network: {ARTICLE.optimizer}, a constant learning rate of {ARTICLE.learning_rate:g},\n"
        f"  batches of {ARTICLE.batch_size}, {ARTICLE.epochs} epochs, pixels divided by 255, neither shifted nor mirrored: the "
        "settings of the articles' Keras code."
    )
    lines.append(f"  Other networks: as {OTHERS}. Below {SMALL_ITEMS:,} training images the batch size is {SMALL_BATCH}.")
    lines.append("  The learning rate scales with the batch size: with its square root for Adam, in proportion for SGD.")
    lines.append(f"  With --weights it is the last layer's; that of the others is {FINE_TUNING:g} of it.")
    return "\n".join(lines)
