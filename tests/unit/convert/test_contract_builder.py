"""Golden samples and the source commit of a contract."""

import dataclasses
import io
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.convert import contract_builder
from export.data import datasets
from service.model.preprocessing import encode_png


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
