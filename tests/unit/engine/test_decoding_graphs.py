"""Requests to a model whose graph decodes: pictures in every form that clients send, and what is refused of them."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry

from service.engine.classifier import Classifier
from service.engine.query import Item, Query
from service.engine.repository import Repository
from service.errors import InvalidRequest
from service.observability.metrics import Metrics
from service.open_inference.conversion import make_query, select_outputs
from service.open_inference.metadata import ServerMetadata
from service.open_inference.tensors import InputTensor
from tests.unit.model import foreign_graphs as foreign


def picture(file_format: str = "JPEG", width: int = 40, height: int = 60) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (255, 100, 0)).save(buffer, file_format)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    folder = tmp_path_factory.mktemp("models")
    foreign.save_picture_file_classifier(folder / "own" / "1" / "model.onnx")
    (folder / "own" / "labels.txt").write_text("wide\nhigh\n")
    (folder / "own" / "serving.toml").write_text("max_image_pixels = 100000\n")
    found = Repository(folder, "cpu", Metrics(CollectorRegistry()))
    found.start()
    return found


@pytest.fixture
def classifier(repository: Repository) -> Iterator[Classifier]:
    found = Classifier(repository, Metrics(CollectorRegistry()))
    yield found
    found.close()


def test_encoded_items_are_answered_each(classifier: Classifier) -> None:
    answer = classifier.classify_blocking(Query("own", [Item(picture(), True), Item(picture("PNG", 30, 10), True)]))
    np.testing.assert_allclose(answer.scores, [[0.4, 0.6], [0.75, 0.25]], rtol=1e-6)
    assert answer.served.model.labels == ("wide", "high")


def test_no_batch_runs_on_the_transports_thread_however_short_it_may_be(classifier: Classifier, repository: Repository) -> None:
    [served] = repository.served["own"]
    for _ in range(20):
        classifier.classify_blocking(Query("own", [Item(picture("PNG", 1, 1), True)]))
    assert not served.batcher.inline


@pytest.mark.parametrize("datatype", ["UINT8", "BYTES"])
def test_the_open_inference_protocol_has_it_as_bytes_or_as_numbers(classifier: Classifier, datatype: str) -> None:
    file = picture()
    if datatype == "UINT8":
        tensor = InputTensor("x", datatype, [len(file)], np.frombuffer(file, np.uint8))
    else:
        tensor = InputTensor("x", datatype, [1], [file])
    answer = classifier.classify_blocking(make_query("own", "", tensor, (), {}))
    [output] = select_outputs(answer, ())
    assert (output.name, list(output.shape)) == ("scores", [1, 2])
    np.testing.assert_allclose(np.array(output.elements), [[0.4, 0.6]], rtol=1e-6)


def test_metadata_say_what_it_takes(repository: Repository) -> None:
    metadata = ServerMetadata(repository, lambda: True, lambda: True)
    assert metadata.model_metadata("own", "")["inputs"] == [{"name": "x", "datatype": "UINT8", "shape": [-1]}]
    config = metadata.model_config("own", "")
    assert (config["max_batch_size"], config["input"][0]["dims"], config["output"][0]["dims"]) == (0, [-1], [-1, 2])


@pytest.mark.parametrize(
    ("content", "encoded", "said"),
    [
        (picture("PNG")[:80], True, "broken or cut short"),
        (bytes(100), True, "item 0: not an image in a format"),
        (picture("PNG", 400, 300), True, "item 0: the image has 400 x 300 pixels; at most 100000 are accepted"),
        (picture("TIFF"), True, "item 0: the picture is TIFF of 40 x 60 pixels; by this model, whose graph decodes, PNG and JPEG"),
        (bytes(300), False, "takes no raw pixels: its graph decodes picture files"),
    ],
)
@pytest.mark.parametrize("after", [0, 1])
def test_what_it_does_not_take_is_the_clients_fault(
    classifier: Classifier, content: bytes, encoded: bool, said: str, after: int
) -> None:
    with pytest.raises(InvalidRequest, match=said.replace("item 0", f"item {after}")):
        classifier.classify_blocking(Query("own", [Item(picture(), True)] * after + [Item(content, encoded)]))


def test_a_tensor_of_another_form_is_refused_with_those_that_are_accepted(classifier: Classifier) -> None:
    tensor = InputTensor("x", "UINT8", [1, 3], np.zeros((1, 3), np.uint8))
    with pytest.raises(InvalidRequest, match=r"takes UINT8 \[-1\] or BYTES \[-1\] of encoded images"):
        classifier.classify_blocking(make_query("own", "", tensor, (), {}))
