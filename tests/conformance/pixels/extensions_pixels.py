"""DecodeImage of onnxruntime-extensions: a graph that is served gives the scores that ONNX Runtime alone gives of the same file."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime_extensions import get_library_path
from PIL import Image

from service.errors import InvalidRequest
from service.model.inference import Model
from service.model.loading import load_model
from service.model.signature import picture_files
from tests.conformance.pixels.conftest import KINDS, SIDES, Picture, picture

DOMAIN = "com.microsoft.extensions"
JPEG_TOLERANCE = 0.02
"""Of a share of the mean color, 0 to 1: its libjpeg is not Pillow's."""

# Its JPEG decoder gives other than three channels for gray and CMYK, and it decodes neither GIF nor the others.
DECODED = [kind for kind in KINDS if kind.startswith("PNG") or kind in ("JPEG RGB", "JPEG RGB turned")]


def graph() -> bytes:
    """A graph of a picture file: the shares of red, green and blue in its color."""
    nodes = [
        helper.make_node("DecodeImage", ["image"], ["rgb"], domain=DOMAIN, color_space="rgb"),
        helper.make_node("Cast", ["rgb"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["floats", "one"], ["colors"]),
        helper.make_node("ReduceMean", ["colors", "sides"], ["means"], keepdims=0),
        helper.make_node("ReduceSum", ["means"], ["sum"]),
        helper.make_node("Div", ["means", "sum"], ["scores"]),
    ]
    weights = [helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]), helper.make_tensor("sides", TensorProto.INT64, [2], [0, 1])]
    taken = helper.make_tensor_value_info("image", TensorProto.UINT8, ["bytes"])
    given = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [3])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(helper.make_graph(nodes, "decodes", [taken], [given], weights), opset_imports=opsets, ir_version=10)
    return model.SerializeToString()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(onnx.load_model_from_string(graph()), path)
    return load_model(Path(path), "cpu", 1)


@pytest.fixture(scope="module")
def alone() -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.register_custom_ops_library(get_library_path())
    return ort.InferenceSession(graph(), options)


@given(st.builds(picture, st.sampled_from(DECODED), SIDES, SIDES, st.integers(0, 2**32 - 1)))
def test_a_graph_that_decodes(served: Model, alone: ort.InferenceSession, picture: Picture) -> None:
    [expected] = alone.run(["scores"], {"image": np.frombuffer(picture.encoded, np.uint8)})
    found: NDArray[Any] = served.predict(picture_files([picture.encoded]))[0][0]
    np.testing.assert_allclose(found, expected, atol=JPEG_TOLERANCE if picture.kind.startswith("JPEG") else 1e-6)


def encoded(file_format: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (90, 60), (200, 100, 0)).convert(mode).save(buffer, file_format)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("file_format", "mode"), [("JPEG", "L"), ("JPEG", "CMYK"), ("GIF", "RGB"), ("BMP", "RGB"), ("WEBP", "RGB")]
)
def test_pictures_that_end_or_mislead_its_decoder_are_answered(served: Model, file_format: str, mode: str) -> None:
    content = encoded(file_format, mode)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.float64).mean((0, 1)) + 1
    np.testing.assert_allclose(served.predict(picture_files([content]))[0], [expected / expected.sum()], atol=1e-3)


@pytest.mark.parametrize(
    ("file_format", "length"), [("JPEG", 4), ("JPEG", 30), ("JPEG", 300), ("JPEG", -20), ("PNG", 30), ("PNG", 80)]
)
def test_files_that_end_or_hang_its_decoder_are_refused(served: Model, file_format: str, length: int) -> None:
    with pytest.raises(InvalidRequest):
        served.predict(picture_files([encoded(file_format)[:length]]))
