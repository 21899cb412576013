"""Real exports in the precisions below fp32."""

import dataclasses
import pickle
from pathlib import Path

import pytest

from export.convert import pipeline
from export.convert.precision import Precision
from export.data import datasets
from export.training.checkpoint import load_checkpoint
from tests.conftest import made_once


@pytest.fixture(scope="session")
def int8(tmp_path_factory: pytest.TempPathFactory, run: Path, digits: datasets.Dataset) -> pipeline.Exported:
    return _exported(tmp_path_factory, run, digits, "int8")


@pytest.fixture(scope="session")
def fp16(tmp_path_factory: pytest.TempPathFactory, run: Path, digits: datasets.Dataset) -> pipeline.Exported:
    return _exported(tmp_path_factory, run, digits, "fp16")


def _exported(
    tmp_path_factory: pytest.TempPathFactory, run: Path, digits: datasets.Dataset, precision: Precision
) -> pipeline.Exported:
    """Once for all of xdist's processes."""

    def export(folder: Path) -> None:
        exported = pipeline.export(load_checkpoint(run), digits, folder, "digits", precision=precision)
        (folder / "exported.pickle").write_bytes(pickle.dumps(exported))

    folder = made_once(tmp_path_factory, precision, export)
    made: pipeline.Exported = pickle.loads((folder / "exported.pickle").read_bytes())
    return dataclasses.replace(made, path=folder / "digits" / "1" / "model.onnx")
