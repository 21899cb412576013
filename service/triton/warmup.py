"""`model_warmup` of a `config.pbtxt`: batches that a model is run on before it serves."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidModel, LoadError, first_line
from service.model.files import read_file
from service.model.inference import Model
from service.model.signature import TensorSpec
from service.triton.model_config import WarmupSample
from service.triton.tensors import DTYPES

FOLDER = "warmup"
"""In the model's folder."""

MAX_ITEMS = 4096
"""The largest batch that any policy has."""


def warmup_files(model_folder: Path, samples: tuple[WarmupSample, ...]) -> tuple[Path, ...]:
    """The files that the samples are read from."""
    return tuple(model_folder / FOLDER / sample.file for sample in samples if sample.file)


def warm_up(model: Model, model_folder: Path, samples: tuple[WarmupSample, ...]) -> None:
    """Runs a model on all samples.

    Raises:
        InvalidModel: a sample is not what the model takes, or its file cannot be read.
        LoadError: the model fails on one.
    """
    for sample in samples:
        images = _batch(model.input, model_folder, sample)
        for _ in range(sample.runs):
            try:
                model.predict(images)
            except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class
                raise LoadError(f"config.pbtxt: model_warmup {sample.name[:64]!r}: the model fails: {first_line(error)}") from None


def _batch(spec: TensorSpec, model_folder: Path, sample: WarmupSample) -> NDArray[Any]:
    """[n, *spec.shape] of a sample."""
    where = f"config.pbtxt: model_warmup {sample.name[:64]!r}"
    if sample.input != spec.name:
        raise InvalidModel(f"{where}: the graph has no input {sample.input[:64]!r}; it takes {spec.name!r}")
    elements, size = math.prod(sample.dims), math.prod(spec.shape)
    if DTYPES.get(sample.data_type) != spec.dtype or min(sample.dims, default=0) < 1 or elements % size:
        raise InvalidModel(f"{where}: it is {sample.data_type} {list(sample.dims)}; an item of the graph is {spec}")
    shape = (elements // size, *spec.shape)  # more than one if the dims include a batch dimension
    if shape[0] * sample.items > MAX_ITEMS:
        raise InvalidModel(f"{where}: it has {shape[0] * sample.items} items; at most {MAX_ITEMS} are accepted")
    if sample.kind == "zero_data":
        item = np.zeros(shape, spec.dtype)
    elif sample.kind == "random_data":
        random = np.random.default_rng(0)
        item = random.integers(0, 256, shape, np.uint8) if spec.dtype == np.uint8 else random.random(shape).astype(spec.dtype)
    else:
        item = _read(model_folder / FOLDER / sample.file, where, spec, shape)
    return item if sample.items == 1 else np.concatenate([item] * sample.items)


def _read(path: Path, where: str, spec: TensorSpec, shape: tuple[int, ...]) -> NDArray[Any]:
    size = math.prod(shape) * spec.dtype.itemsize
    try:
        content = read_file(path, size)
    except OSError as error:
        raise InvalidModel(f"{where}: {FOLDER}/{path.name[:64]}: {error.strerror}") from None
    if len(content) != size:
        raise InvalidModel(f"{where}: {FOLDER}/{path.name[:64]} has {len(content)} bytes; {spec} has {size}")
    return np.frombuffer(content, spec.dtype).reshape(shape)
