"""Loading models: with and without a contract, and files that are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, numpy_helper
from PIL import Image
from torch.nn import functional

from export.walkthrough import (
    network_page,
    subject,
)
from service.errors import UserError
from tests.unit.walkthrough.models import without_contract


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("batch", ["N", 1])
def test_a_classifier_without_contract(tmp_path: Path, flower: Path, layout: str, batch: int | str) -> None:
    sides = [batch, 3, 40, 48] if layout == "NCHW" else [batch, 40, 48, 3]
    path = without_contract(tmp_path / "net.onnx", layout, shape=sides)
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    found = subject.load_subject(path)
    assert found.spec.shape == (40, 48, 3)
    assert found.labels == tuple("abcde")
    pixels = np.asarray(Image.open(flower).resize((48, 40)))
    page = network_page.build_page(found, pixels, pixels, "flower.png")
    weights = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in found.model.graph.initializer}
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255
    maps = functional.conv2d(x, weights["kernel"], padding=1).relu()
    expected = (maps.mean((2, 3)) @ weights["dense"]).softmax(1)[0].numpy()
    assert [bar.name for bar in page.answers] == [f"{'abcde'[index]}" for index in np.argsort(-expected)]
    assert page.answers[0].share == pytest.approx(float(expected.max()), abs=1e-5)
    assert "class activation map" in page.sections[0].paragraphs[0]


def test_a_classifier_without_contract_of_pixels_and_of_any_size(tmp_path: Path, flower: Path) -> None:
    found = subject.load_subject(without_contract(tmp_path / "net.onnx", "NHWC", TensorProto.UINT8, ["N", "h", "w", 3]))
    assert found.spec.shape == (224, 224, 3)
    pixels = np.asarray(Image.open(flower).resize((224, 224)))
    assert found.feed(pixels[np.newaxis]).dtype == np.uint8
    page = network_page.build_page(found, pixels, pixels, "flower.png")
    assert page.answers[0].name.startswith("class ")


def test_files_that_are_refused(tmp_path: Path, model_file: Path) -> None:
    def refused(path: Path, words: str, **options: Any) -> None:
        with pytest.raises(UserError, match=words):
            subject.load_subject(path, **options)

    refused(tmp_path / "missing.onnx", "No such file")
    refused(tmp_path, "neither model.onnx nor checkpoint.pt")
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    refused(tmp_path / "junk.onnx", "not a valid ONNX model")
    refused(model_file, "normalises its images itself", scaling="0..1")
    refused(
        without_contract(tmp_path / "a.onnx", "NCHW", shape=["N", 5, 40, 48]),
        r"the model takes 'x', float \[N, 5, 40, 48\]; .* or 3 channels",
    )
    refused(without_contract(tmp_path / "b.onnx", "NCHW", TensorProto.INT64), "int64")
    refused(without_contract(tmp_path / "c.onnx", "NCHW", shape=[4, 3, 40, 48]), "batches of exactly 4")
    refused(without_contract(tmp_path / "d.onnx", "NCHW", shape=["N", 3, 9999, 48]), "at most 4096x4096")
    gray = without_contract(tmp_path / "e.onnx", "NCHW", shape=["N", 1, 40, 48])
    refused(gray, "imagenet is for colour", scaling="imagenet")
    assert subject.load_subject(model_file.parent).name == "digits"
