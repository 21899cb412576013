"""Golden samples and the source commit of a contract."""

import dataclasses
import io
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from export.convert import contract_builder
from export.convert.pytorch_reference import probabilities
from export.data import datasets
from export.data.datasets import Part
from export.training.checkpoint import Checkpoint
from export.training.recipes import Settings
from service.model.input_spec import InputSpec
from service.model.preprocessing import decode, encode_png, pixels_digest


def test_golden_samples_are_lossless_and_small(digits: datasets.Dataset) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    photo, scan, large = io.BytesIO(), io.BytesIO(), encode_png(noise)
    Image.fromarray(noise).save(photo, "JPEG")
    Image.new("1", (4200, 5940)).save(scan, "PNG")
    assert len(large) > contract_builder.GOLDEN_BYTES > len(digits.test.encoded(0))
    assert len(scan.getvalue()) < contract_builder.GOLDEN_BYTES, "few bytes, too many pixels"
    pictures = ((digits.test.encoded(0), True), (photo.getvalue(), False), (large, False), (scan.getvalue(), False))
    for encoded, kept in pictures:
        part = dataclasses.replace(digits.test, encoded={0: encoded}.__getitem__)
        golden = contract_builder.golden_image(part, 0)
        assert (golden == encoded) is kept
        if not kept:
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(golden), formats=["PNG"])), digits.test.pixels[0, :, :, 0])


def test_golden_samples_hold_where_a_crop_follows_the_resize(digits: datasets.Dataset) -> None:
    noise, photo = np.random.default_rng(0).integers(0, 256, (100, 200), dtype=np.uint8), io.BytesIO()
    Image.fromarray(noise).save(photo, "JPEG")  # too large to be a sample as it is
    spec = InputSpec(height=28, width=28, channels=1, resize="short:32", crop="center")
    part = Part(np.stack([decode(photo.getvalue(), spec, 1 << 20)] * 2), np.array([0, 1]), lambda index: photo.getvalue())
    network = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 2)).eval()
    checkpoint = Checkpoint(network, spec, ("a", "b"), "noise", (127.0,), (50.0,), Settings("own", 1), 1)
    dataset = dataclasses.replace(digits, labels=("a", "b"), input=spec, validation=part)
    samples = contract_builder.build_contract(checkpoint, dataset, "noise").golden
    assert len(samples) == 2
    for sample in samples:
        replayed = decode(sample.image, spec, 1 << 20)
        assert pixels_digest(replayed) == sample.pixels_sha256
        assert np.allclose(probabilities(checkpoint, np.stack([replayed]), 1.0)[0], sample.probabilities[0])


def test_the_commit_is_of_convoys_own_clone_or_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(__file__).parents[3]
    assert contract_builder.source_commit() == (git(own, "rev-parse", "HEAD") if (own / ".git").exists() else None)
    installed = tmp_path / "site-packages" / "export" / "convert" / "contract_builder.py"
    installed.parent.mkdir(parents=True)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "--allow-empty", "--message", "theirs")
    monkeypatch.setattr(contract_builder, "__file__", str(installed))
    assert contract_builder.source_commit() is None


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
