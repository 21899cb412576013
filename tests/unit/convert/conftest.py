"""Real exports in the precisions below fp32."""

from pathlib import Path

import pytest

from export.convert import pipeline
from export.data import datasets
from export.training.checkpoint import load_checkpoint


@pytest.fixture(scope="package")
def int8(tmp_path_factory: pytest.TempPathFactory, run: Path, digits: datasets.Dataset) -> pipeline.Exported:
    folder = tmp_path_factory.mktemp("int8")
    return pipeline.export(load_checkpoint(run), digits, folder, "digits", precision="int8")


@pytest.fixture(scope="package")
def fp16(tmp_path_factory: pytest.TempPathFactory, run: Path, digits: datasets.Dataset) -> pipeline.Exported:
    folder = tmp_path_factory.mktemp("fp16")
    return pipeline.export(load_checkpoint(run), digits, folder, "digits", precision="fp16")
