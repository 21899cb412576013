"""Models that are not ONNX yet: converted by the framework that wrote them."""

import contextlib
import importlib.util
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import onnx

from export.files import temporary_folder
from service.errors import UserError, first_line


def from_torch_program(file: Path) -> onnx.ModelProto:
    """The ONNX graph of what `torch.export.save` wrote. Raises UserError if PyTorch cannot read or convert it."""
    import torch

    try:
        with _quiet():
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
        path = folder / "model.onnx"
        try:
            with _quiet():
                keras.saving.load_model(file, compile=False).export(str(path), format="onnx", verbose=False)
            return onnx.load_model(path)
        except Exception as error:  # noqa: BLE001 - of Keras, its backend and its converter
            raise UserError(f"{file}: Keras cannot convert the model to ONNX: {first_line(error)}") from None


@contextlib.contextmanager
def _quiet() -> Any:
    """Converters print, and warn of parts of their own that are deprecated."""
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
