"""The options of `convoy train`, and its help: options in groups, recipes, networks and examples."""

from pathlib import Path
from typing import get_args

import click

from export.cli.options import CROP_PCT, DATA, DATA_DIR
from export.cli.parameters import ChannelValues
from export.data.input_choice import SHORT_FORMS
from export.training import recipes
from service.cli.parameters import FiniteFloat, ImageSize
from service.model.input_spec import Filter

_LARGEST_SIDE = 4096
_RECIPE = "the recipe's"

OPTION_GROUPS: dict[str, tuple[click.Option, ...]] = {
    "Data and network": (
        click.Option(["--data"], required=True, metavar=DATA,
                     help="A data set by name, or a folder of images: DIR/<class>/*.jpg, or DIR/train/<class>/*.jpg with "
                          "DIR/test and DIR/val beside it. Missing parts are split off the training part."),
        click.Option(["--data-dir"], **DATA_DIR),
        click.Option(["--network"], show_default="article-cnn, or that of --init-from",
                     metavar="NAME[:option=value,...]|FILE.py:NAME",
                     help="The network to train; see below. FILE.py:NAME, or MODULE:NAME, is a class or function of your own."),
        click.Option(["--image-size"], type=ImageSize(_LARGEST_SIDE), metavar="N|HxW",
                     help="The network's input in pixels.",
                     show_default="the images' own size; for a folder only if it is the same for all and at most 64, else 32, "
                                  "64, 128 or 224 by their median size"),
        click.Option(["--resize"], metavar="MODE[:N|:HxW]", show_default="stretch",
                     help="How images of another size become the input, in training and serving: stretch; pad, with a border; "
                          "cover, with what is too much cut off; short:N, the shorter side to N pixels; or none."),
        click.Option(["--crop"], type=ImageSize(_LARGEST_SIDE), metavar="N|HxW",
                     help="What is cut from the middle of the resized image, such as 224 after --resize short:256."),
        click.Option(["--crop-pct"], **CROP_PCT),
        click.Option(["--filter", "filter_name"], type=click.Choice(get_args(Filter)), show_default="bilinear",
                     help="Of the resize."),
        click.Option(["--fit"], type=click.Choice(list(SHORT_FORMS)),
                     help="Short for --resize stretch, cover (fit crop) or pad."),
        click.Option(["--channels"], type=click.Choice(["gray", "rgb"]), show_default="the images' own",
                     help="Colours of the network's input."),
    ),
    "Weights to start from": (
        click.Option(["--weights"], type=click.Path(path_type=Path), metavar="FILE",
                     help="A state dict (.pth, .pt, .safetensors), an ONNX file, or the checkpoint.pt of a run: what has the same "
                          "name and shape is loaded, and what is not is shown. The last layer is new where the classes differ."),
        click.Option(["--init-from"], type=click.Path(path_type=Path), metavar="RUN",
                     help="Start from a run, finished or not: its weights, and, unless they are given, its network, input, mean "
                          "and std. If the classes are the same, the training goes on with a tenth of the recipe's rate."),
        click.Option(["--freeze"], multiple=True, metavar="PREFIX",
                     help="Do not train weights whose names start so; may be repeated."),
        click.Option(["--head-learning-rate"], type=FiniteFloat(0, 10, min_open=True), metavar="RATE",
                     show_default="--learning-rate; with weights for other classes and without --learning-rate ten times that",
                     help="The highest of the schedule for the last layer."),
        click.Option(["--mean"], type=ChannelValues({"imagenet": recipes.IMAGENET_MEAN}), metavar="R,G,B|imagenet",
                     show_default="that of the training images",
                     help="Subtracted from pixels of 0 to 1: weights need the values that they were trained with."),
        click.Option(["--std"], type=ChannelValues({"imagenet": recipes.IMAGENET_STD}, low_open=True), metavar="R,G,B|imagenet",
                     show_default="that of the training images", help="What pixels are divided by after that."),
    ),
    "Training": (
        click.Option(["--recipe"], type=click.Choice(list(recipes.NAMED)), show_default="the network's own",
                     help="The defaults of all options below. article: the settings of the articles' Keras code, for any network."),
        click.Option(["--epochs"], type=click.IntRange(1, 100_000), metavar="N", show_default=_RECIPE,
                     help="Passes over the training part."),
        click.Option(["--batch-size"], type=click.IntRange(1, 1_000_000), metavar="N", show_default=_RECIPE,
                     help="Images a step. Another size than the recipe's scales the default learning rate."),
        click.Option(["--optimizer"], type=click.Choice(recipes.OPTIMIZERS), show_default=_RECIPE,
                     help="Adam; AdamW, with weight decay separate from the gradient; SGD with Nesterov momentum."),
        click.Option(["--learning-rate", "--lr"], type=FiniteFloat(0, 10, min_open=True), metavar="RATE", show_default=_RECIPE,
                     help="The highest of the schedule. Too high, and the loss jumps or diverges; too low, and it falls slowly."),
        click.Option(["--schedule"], type=click.Choice(recipes.SCHEDULES), show_default=_RECIPE,
                     help="one-cycle: up to the learning rate and down to nearly 0 over all epochs; or constant."),
        click.Option(["--weight-decay"], type=FiniteFloat(0, 1), metavar="RATE", show_default=_RECIPE,
                     help="Pulls the weights towards 0, against overfitting; norms and biases are left out."),
        click.Option(["--label-smoothing"], type=FiniteFloat(0, 1, max_open=True), metavar="SHARE", show_default=_RECIPE,
                     help="Share of each label that is spread over all classes: 0.1 makes a network less confident."),
        click.Option(["--ema-decay"], type=FiniteFloat(0, 1, max_open=True), metavar="DECAY", show_default=_RECIPE,
                     help="Measure and keep a moving average of the weights with this decay a step, such as 0.99; 0: no average."),
        click.Option(["--class-weights"], metavar="auto|FILE", show_default="every image weighs the same",
                     help="Weights of the classes in the loss: auto, by which rare ones weigh as much as frequent ones, or a CSV "
                          "file with rows of class,weight."),
        click.Option(["--balanced-sampling"], is_flag=True,
                     help="An epoch has as many images of every class: of rare ones each several times, of frequent ones a part."),
        click.Option(["--flip/--no-flip"], default=None, show_default="--flip, except for digits and mnist",
                     help="Mirror half of the training images; turn it off for images of anything that can be read."),
        click.Option(["--shift", "shift_pixels"], type=click.IntRange(0, _LARGEST_SIDE), metavar="PIXELS",
                     help="Shift training images at random, by up to so many pixels.",
                     show_default="the recipe's, else 2 for digits, 1 for mnist, an eighth of the image for others"),
        click.Option(["--patience"], type=click.IntRange(0), default=0, metavar="EPOCHS", show_default=True,
                     help="Stop after so many epochs without a lower validation loss; 0: never."),
        click.Option(["--seed"], type=click.IntRange(0, 2**31 - 1), default=0, show_default=True,
                     help="Seed of the split, the weights, the shuffling and the augmentation: the same seed, the same training."),
        click.Option(["--autocast"], type=click.Choice(recipes.AUTOCASTS), default="auto", show_default=True,
                     help="Compute in bfloat16; auto does if the processor supports it (GPUs from Ampere on, CPUs with AMX)."),
    ),
    "The run": (
        click.Option(["--output"], type=click.Path(path_type=Path), required=True, metavar="RUN",
                     help="Folder for the run: new or empty, except with --resume."),
        click.Option(["--resume"], is_flag=True,
                     help="Continue the interrupted training in RUN. Give the same command as before and add this option."),
        click.Option(["--tensorboard"], is_flag=True, help="Also write RUN/tensorboard; needs the package tensorboard."),
    ),
}  # fmt: skip


class TrainCommand(click.Command):
    """A command with the options of OPTION_GROUPS, shown in these groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options."""
        help_option = self.get_help_option(ctx)
        groups = OPTION_GROUPS if help_option is None else {**OPTION_GROUPS, "Help": (help_option,)}
        for title, options in groups.items():
            with formatter.section(title):
                formatter.write_dl([record for option in options if (record := option.get_help_record(ctx))])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """Writes the recipes, the networks and examples."""
        from export.networks.architectures import describe  # imports PyTorch, which takes seconds

        with formatter.section("Recipes"):
            formatter.write(recipes.describe() + "\n")
        with formatter.section("Networks, and their options with the default first"):
            formatter.write(describe() + "\n")
        with formatter.section("Examples"):
            formatter.write(
                "  convoy train --data mnist --network article-cnn:pool=average,kernel=5 --output run\n"
                "  convoy train --data photos/ --network resnet18 --image-size 64 --resize cover --output run   "
                "(photos/cat/*.jpg, photos/dog/*.jpg)\n"
                "  convoy train --data photos/ --network my_net.py:MyNet --weights imagenet.pth --mean imagenet --std imagenet "
                "--output run\n"
            )
        with formatter.section("Several processes or machines (DistributedDataParallel; --batch-size is that of all together)"):
            formatter.write("  torchrun --nproc-per-node 2 -m service.cli train --data mnist --output run\n")
