"""A request whose body is the input alone."""

from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.engine.repository import Repository
from service.errors import InvalidRequest
from service.observability.metrics import Metrics
from service.open_inference.metadata import ServerMetadata
from tests.unit.model.graphs import FLOAT, PRODUCT, write

CONFIG = """
input { name: "x" data_type: TYPE_FP32 dims: [ 2, 4 ] }
output { name: "product" data_type: TYPE_FP32 dims: [ 2, 3 ] }
"""


def test_a_body_of_the_right_size_is_no_picture_whatever_it_begins_with(tmp_path: Path) -> None:
    write(tmp_path / "m" / "1" / "model.onnx", [PRODUCT], {"product": FLOAT})
    (tmp_path / "m" / "config.pbtxt").write_text(CONFIG)
    models = Repository(tmp_path, "cpu", Metrics(CollectorRegistry()))
    try:
        models.load("m")
        metadata = ServerMetadata(models, lambda: True, lambda: True)
        body = b"BM" + bytes(2 * 4 * 4 - 2)
        tensor = metadata.parse_binary_body("m", "", body)
        assert tensor.shape == [2, 4]
        assert np.asarray(tensor.elements).tobytes() == body
        with pytest.raises(InvalidRequest, match="picture"):
            metadata.parse_binary_body("m", "", body[:16])  # as many bytes as one item of the graph has
    finally:
        models.stop()
