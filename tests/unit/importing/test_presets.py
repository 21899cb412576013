import pytest
from click.testing import CliRunner

from export.cli.import_model import import_model
from export.importing.presets import PRESETS, preset
from service.errors import UserError


@pytest.mark.parametrize(
    ("name", "side", "resize"),
    [("torchvision", 224, "short:256"), ("torchvision", 299, "short:342"), ("timm", 224, "short:256"), ("timm", 299, "short:341")],
)
def test_a_preset_that_crops_resizes_in_proportion_to_the_input(name: str, side: int, resize: str) -> None:
    # torchvision's Inception has 342 for 299; timm rounds down.
    spec = preset(name, side, side, 3).input
    assert (spec.resize, spec.crop, spec.shape) == (resize, "center", (side, side, 3))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_a_recipe_and_is_described(name: str) -> None:
    recipe = preset(name, 224, 224, 3)
    assert recipe.source == f"preset {name}"
    assert len(recipe.mean) == len(recipe.std) == 3
    assert recipe.input.alpha == "drop"
    found = CliRunner().invoke(import_model, ["--help"])
    assert PRESETS[name].meaning in " ".join(found.output.split())


@pytest.mark.parametrize(
    ("name", "black", "white"),
    [
        ("keras", -1.0, 1.0),
        ("keras-raw", 0.0, 255.0),
        ("torchvision", -0.485 / 0.229, (1 - 0.485) / 0.229),
        ("caffe", -103.939, 151.061),
    ],
)
def test_a_preset_gives_the_first_channel_the_numbers_of_its_training_code(name: str, black: float, white: float) -> None:
    recipe = preset(name, 32, 32, 3)
    found = [(pixel / recipe.scale - recipe.mean[0]) / recipe.std[0] for pixel in (0, 255)]
    assert found == pytest.approx([black, white])


def test_caffe_takes_blue_first() -> None:
    assert [preset(name, 32, 32, 3).channel_order for name in ("caffe", "keras-caffe", "keras")] == ["bgr", "bgr", "rgb"]


def test_tensorflow_resizes_to_numbers_that_are_not_rounded() -> None:
    spec = preset("keras", 20, 30, 1).input
    assert (spec.resize, spec.filter, spec.dtype, spec.shape) == ("stretch", "tf-bilinear", "float32", (20, 30, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet", 224, 224, 3), "preset 'resnet' is not known; accepted are torchvision, timm, keras"),
        (("torchvision", 224, 192, 3), "it is of square inputs, and the network takes 224x192"),
        (("timm", 28, 28, 1), "its mean is of 3 channels, and the network takes 1"),
        (("caffe", 28, 28, 1), "its mean is of 3 channels, and the network takes 1"),
        (("torchvision", 0, 0, 3), "--input-shape H,W (in Python input_shape=) says it"),
        (("torchvision", 4097, 4097, 3), "preset torchvision: height: Input should be less than or equal to 4096"),
        (("keras", 5000, 10, 3), "preset keras: height: Input should be less than or equal to 4096"),
    ],
)
def test_what_does_not_fit_a_preset_is_refused(arguments: tuple[str, int, int, int], message: str) -> None:
    with pytest.raises(UserError) as caught:
        preset(*arguments)
    assert message in str(caught.value)
