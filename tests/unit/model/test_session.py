"""Execution providers that are missing or chosen, and errors of ONNX Runtime."""

from pathlib import Path

import onnx
import onnxruntime
import pytest

from service.errors import InvalidModel, LoadError, UserError
from service.model.loading import load_model
from service.model.providers import ONNX_RUNTIME_NAMES, Provider
from service.model.session import check_provider
from tests.unit.model.graphs import FLOAT, PRODUCT, write


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "openvino"])
def test_a_missing_provider_is_an_error_and_never_replaced_by_the_cpu(provider: Provider, model_file: Path) -> None:
    if ONNX_RUNTIME_NAMES[provider] in onnxruntime.get_available_providers():  # type: ignore[index]
        assert load_model(model_file, provider, 1).provider == provider
        return
    message = f"provider '{provider}' is not in the installed ONNX Runtime, which has "
    with pytest.raises(LoadError, match=message):
        load_model(model_file, provider, 1, None, 4)
    with pytest.raises(UserError, match=message):
        check_provider(provider)


def test_auto_takes_a_provider_that_works(model_file: Path) -> None:
    assert load_model(model_file, "auto", 1).provider in ("cuda", "cpu")


def test_errors_of_onnx_runtime_are_shown_without_its_source_location(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", [PRODUCT], {"product": FLOAT})
    graph = onnx.load(path)
    graph.ir_version = 99
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(InvalidModel, match="Unsupported model IR version: 99"):
        load_model(path, "cpu", 1)
