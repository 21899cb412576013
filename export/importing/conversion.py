"""Models that are not ONNX yet: converted by the framework that wrote them."""

import contextlib
import importlib.util
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from export.files import temporary_folder
from service.errors import UserError, first_line

_OPEN_SIDE = 64


def from_torch_program(file: Path) -> onnx.ModelProto:
    """The ONNX graph of what `torch.export.save` wrote. Raises UserError if PyTorch cannot read or convert it."""
    import torch

    try:
        with quiet():
            program = torch.export.load(file)
            converted: Any = torch.onnx.export(program, dynamo=True, external_data=False, verbose=False)
    except Exception as error:  # noqa: BLE001 - PyTorch's errors share no base class
        raise UserError(f"{file}: PyTorch cannot convert the program to ONNX: {first_line(error)}") from None
    model: onnx.ModelProto = converted.model_proto
    return model


def from_keras(file: Path) -> onnx.ModelProto:
    """The ONNX graph of a `model.keras`. Raises UserError if Keras is not installed, or cannot read or convert it."""
    if importlib.util.find_spec("keras") is None:
        raise UserError(
            f"{file}: a model of Keras, which needs the package keras here; or, where you trained it: "
            "model.export('model.onnx', format='onnx')"
        )
    import keras

    with temporary_folder() as folder:
        try:
            with quiet():
                model = keras.saving.load_model(file, compile=False)
        except Exception as error:  # noqa: BLE001 - of Keras
            raise UserError(f"{file}: Keras cannot read the model: {first_line(error)}") from None
        keras_to_onnx(model, folder / "model.onnx", str(file))
        return onnx.load_model(folder / "model.onnx")


def keras_to_onnx(model: Any, path: Path, name: str) -> None:
    """Writes a model of Keras as an ONNX file. Raises UserError, with the model's name, if Keras cannot convert it."""
    try:
        with quiet():
            if isinstance(model.input_shape, tuple):  # Keras exports what was called once
                model(np.zeros([side or _OPEN_SIDE for side in model.input_shape], np.float32))
            model.export(str(path), format="onnx", verbose=False)
    except Exception as error:  # noqa: BLE001 - of Keras, its backend and its converter
        raise UserError(f"{name}: Keras cannot convert the model to ONNX: {first_line(error)}") from None


@contextlib.contextmanager
def quiet() -> Any:
    """Converters print, and warn of parts of their own that are deprecated."""
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
