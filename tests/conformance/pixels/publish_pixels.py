"""`export.publish` with real transforms, processors and models: the gates say that pixels and answers are the same."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import export
from service.errors import UserError
from tests.conformance.pixels.conftest import import_torchvision

import_torchvision()
import timm.data  # noqa: E402
from torchvision import transforms  # noqa: E402
from transformers import ViTConfig, ViTForImageClassification  # noqa: E402
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil  # noqa: E402
from transformers.models.vit.image_processing_vit import ViTImageProcessor  # noqa: E402

KERAS = """
import sys
import keras
import export

keras.utils.set_random_seed(0)
layers = keras.layers
model = keras.Sequential([
    keras.Input((48, 40, 3)), layers.Conv2D(8, 3, activation="relu"), layers.GlobalAveragePooling2D(), layers.Dropout(0.5),
    layers.Dense(4, activation="softmax"),
])
export.publish(model, name="net", repository=sys.argv[1], transforms="keras", labels=list("abcd"))
"""


def published(model: Any, repository: Path, **arguments: Any) -> str:
    said: list[str] = []
    export.publish(model, name="net", repository=repository, say=said.append, **arguments)
    return "\n".join(said)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 3))


def vision_transformer() -> nn.Module:
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=16,
            id2label={0: "cat", 1: "dog", 2: "hen"}, label2id={"cat": 0, "dog": 1, "hen": 2},
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    "given",
    [
        transforms.Compose(
            [transforms.Resize(72), transforms.CenterCrop(64), transforms.ToTensor(), transforms.Normalize([0.5], [0.3])]
        ),
        timm.data.create_transform((3, 64, 64), crop_pct=0.9, interpolation="bicubic"),
    ],
)
def test_a_network_with_its_transform(tmp_path: Path, given: Any) -> None:
    said = published(network(), tmp_path, transforms=given)
    assert "pixels gate: 0 of 221,184 values differ from the transform (Compose) on 18 pictures" in said
    assert "outputs gate: largest difference from PyTorch" in said


def test_a_network_of_hugging_face_with_its_processor(tmp_path: Path) -> None:
    size = {"height": 64, "width": 64}
    assert "pixels gate: 0 of 221,184 values differ" in published(
        vision_transformer(), tmp_path, transforms=ViTImageProcessorPil(size=size)
    )
    said = published(vision_transformer(), tmp_path, transforms=ViTImageProcessor(size=size))
    assert "pixels gate: not proved:" in said  # it resizes tensors
    assert "by up to 1 of 255" in said


def test_a_transform_that_does_more_than_it_says_is_refused(tmp_path: Path) -> None:
    class Resize(transforms.Resize):
        def forward(self, img: Any) -> Any:
            return super().forward(img.rotate(180))

    Resize.__module__ = "torchvision.transforms"
    given = transforms.Compose([Resize((64, 64)), transforms.ToTensor()])
    with pytest.raises(UserError, match="pixels gate"):
        published(network(), tmp_path / "models", transforms=given, scores="logits")
    assert not (tmp_path / "models").exists()


def test_a_model_of_keras(tmp_path: Path) -> None:
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    found = subprocess.run(
        [sys.executable, "-c", KERAS, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=160, check=False
    )
    assert "outputs gate: largest difference from Keras" in found.stdout, found.stderr
    assert (tmp_path / "net" / "1" / "model.onnx").is_file()
