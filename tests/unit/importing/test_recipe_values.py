"""`export.publish` with the flags of `convoy import` as a dict: for code of one's own, which nobody can translate."""

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import export
from export.importing import recipe_values
from export.importing.recipe_options import RecipeOptions
from export.progress import ignore_progress
from service.errors import UserError
from tests.unit.importing import foreign_graphs as graphs
from tests.unit.importing.test_import_model import answers, load, photo, run

VALUES: dict[str, Any] = {
    "resize": "short:40", "crop": 32, "filter": "bicubic", "scale": 255, "mean": (0.5, 0.45, 0.4), "std": [0.25, 0.22, 0.2],
    "channels": "bgr", "exif": "ignore",
}  # fmt: skip


def test_a_dict_says_what_the_flags_say(tmp_path: Path) -> None:
    source = graphs.classifier(tmp_path / "net.onnx", end="")
    flags = [
        word
        for name, value in VALUES.items()
        for word in (f"--{name}", ",".join(map(str, value)) if isinstance(value, (tuple, list)) else value)
    ]
    run(source, tmp_path / "models", *flags)
    said: list[str] = []
    export.publish(source, name="pets", repository=tmp_path / "models", transforms=VALUES, say=said.append)
    first, second = load(tmp_path / "models", 1), load(tmp_path / "models", 2)
    assert first.contract.input == second.contract.input
    for name, value in answers(first).items():
        np.testing.assert_array_equal(answers(second)[name], value)
    assert any(line.startswith("pixels gate: not proved") for line in said)
    assert second.contract.origin is not None
    assert "'resize': 'short:40'" in second.contract.origin.command


def test_a_network_of_pytorch_is_published_with_a_dict(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5)
    network = torch.nn.Sequential(*layers).eval()
    with torch.no_grad():
        layers[0].weight.mul_(8)
    values = {"resize": "stretch", "crop": None, "scale": 255, "mean": np.array([0.5, 0.45, 0.4]), "std": 0.25}
    export.publish(
        network, name="pets", repository=tmp_path / "models", transforms=values, input_shape=(32, 32), scores="logits",
        say=ignore_progress,
    )  # fmt: skip
    picture = Image.open(io.BytesIO(photo())).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    scaled = (np.asarray(picture, np.float32) / 255 - np.array([0.5, 0.45, 0.4], np.float32)) / np.float32(0.25)
    with torch.inference_mode():
        expected = network(torch.from_numpy(scaled).permute(2, 0, 1)[None])[0].numpy()
    np.testing.assert_allclose(answers(load(tmp_path / "models"))["logits"], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": 224}, r"transforms: 'size' is not known; accepted are preset, .*, such as dict\(resize='short:256', crop=224"),
        ({"scale": "all"}, "transforms: scale is 'all'; a number"),
        ({"scale": (255, 255)}, r"transforms: scale is \(255, 255\); one number is accepted"),
        ({"crop": "224"}, "transforms: crop is '224'; the side of a square in pixels is accepted"),
        ({"channels": "RGB"}, "transforms: channels is 'RGB'; rgb, bgr, gray are accepted"),
        ({"resize": 256}, "transforms: resize is 256; a text is accepted, as of --resize of `convoy import`"),
        ({"pad_color": (1, 2, 256)}, "three whole numbers from 0 to 255 are accepted"),
        ({"scale": 255, "mean": 123.7}, "after --scale 255 pixels are 0 to 1"),
        ({"scale": 255, "filter": "cubic"}, "filter"),
        (lambda image: image, r"a function \(<lambda>\) cannot be translated; .* a dict: dict\(resize='short:256'"),
        (functools.partial(np.resize, new_shape=3), r"a function \(partial\) cannot be translated"),
    ],
)
def test_what_says_nothing_is_refused(tmp_path: Path, values: Any, said: str) -> None:
    source = graphs.classifier(tmp_path / "net.onnx")
    with pytest.raises(UserError, match=said) as refused:
        export.publish(source, name="pets", repository=tmp_path / "models", transforms=values, say=ignore_progress)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "models").exists()


def test_values_are_those_of_the_options() -> None:
    values = {"preprocessor": "timm.json", "pad_color": (0, 1, 2), "crop_pct": 0.9, "alpha": "drop", "preset": "timm"}
    expected = RecipeOptions(preset="timm", preprocessor=Path("timm.json"), pad_color=(0, 1, 2), crop_pct=0.9, alpha="drop")
    assert recipe_values.options_of(values) == expected
