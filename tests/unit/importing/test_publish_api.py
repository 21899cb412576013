"""`export.publish`, with transforms that work as the real ones do and have their names; tests/conformance has the real ones."""

import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from PIL import Image
from torch import nn

import export
from export.data.image_files import MAX_PIXELS
from export.importing.pictures import generated_pictures
from service.errors import UserError
from service.model import cpus
from service.model.contract import Contract, Origin
from service.model.inference import Model
from service.model.loading import load_model
from service.model.preprocessing import decode
from service.model.resizing import pillow_rounds_otherwise
from tests.unit.importing import foreign_graphs

SIDE, CROP = 40, 32
Apply = Callable[[Any], Any]


def step(name: str, apply: Apply, package: str = "torchvision.transforms", **attributes: Any) -> Any:
    return type(name, (), {"__module__": package, "__call__": lambda _self, value: apply(value), **attributes})()


def short_side(image: Image.Image) -> Image.Image:
    width, height = image.size
    size = (SIDE, int(SIDE * height / width)) if width <= height else (int(SIDE * width / height), SIDE)
    return image.resize(size, Image.Resampling.BICUBIC)


def middle(image: Image.Image) -> Image.Image:
    left, top = round((image.width - CROP) / 2), round((image.height - CROP) / 2)
    return image.crop((left, top, left + CROP, top + CROP))


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image, np.float32).transpose(2, 0, 1) / np.float32(255))


def compose(*steps: Any, package: str = "torchvision.transforms") -> Any:
    def apply(value: Any) -> Any:
        for one in steps:
            value = one(value)
        return value

    return step("Compose", apply, package, transforms=list(steps))


def resize(apply: Apply = short_side, size: Any = SIDE) -> Any:
    return step("Resize", apply, size=size, interpolation=3, max_size=None, antialias=True)


CENTER_CROP = step("CenterCrop", middle, size=(CROP, CROP))
TO_TENSOR = step("ToTensor", to_tensor)
NORMALIZE = step("Normalize", lambda value: (value - 0.5) / 0.25, mean=[0.5] * 3, std=[0.25] * 3)
TRANSFORMS = compose(resize(), CENTER_CROP, TO_TENSOR, NORMALIZE)


class Network(nn.Module):
    """With what behaves otherwise in training, and an answer as those of Hugging Face have it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 3, 2)
        self.normalization = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(0.5)
        self.dense = nn.Linear(6, 3)
        with torch.no_grad():
            self.dense.weight.mul_(8)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.normalization(self.convolution(image)).relu().mean((2, 3))
        return {"logits": self.dense(self.dropout(found))}


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network().train()


def published(model: Any, repository: Path, **arguments: Any) -> tuple[Model, Origin, str]:
    said: list[str] = []
    path = export.publish(model, name="pets", repository=repository, say=said.append, **arguments)
    assert path == repository / "pets" / path.parent.name / "model.onnx"
    served = load_model(path, "cpu", cpus.cpu_budget())
    contract: Contract | None = served.contract
    assert contract is not None
    assert contract.origin is not None
    return served, contract.origin, "\n".join(said)


def test_a_network_of_pytorch_is_served_as_it_answers_with_its_own_transform(network: Network, tmp_path: Path) -> None:
    served, origin, said = published(network, tmp_path, transforms=TRANSFORMS, labels={"cat": 0, "dog": 1, "hen": 2})
    assert network.training  # the user's network is as it was
    picture = generated_pictures()[0]
    found = served.predict(decode(picture, served.contract.input, MAX_PIXELS)[None])[0]
    network.eval()
    with torch.inference_mode():
        opened = Image.open(io.BytesIO(picture))
        expected = network(TRANSFORMS(opened)[None]).get("logits").softmax(dim=1).numpy()
    network.train()
    assert np.allclose(found, expected, atol=1e-5)
    assert served.contract.labels == ("cat", "dog", "hen")
    assert (served.contract.input.resize, served.contract.input.filter) == ("short:40", "bicubic")
    if pillow_rounds_otherwise():
        assert "not proved" in said
        assert "rounds otherwise than the server, which does as Pillow 13" in said
    else:
        assert "0 of" in origin.pixels
        assert "values differ from the transform (Compose)" in origin.pixels
    assert origin.framework.startswith("pytorch ")
    assert "outputs gate: largest difference from PyTorch" in said


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """An ONNX file of five classes that takes float32 [N,3,32,32]."""
    return foreign_graphs.classifier(tmp_path / "graph.onnx")


def test_a_transform_that_does_something_else_than_its_name_says_is_refused(graph: Path, tmp_path: Path) -> None:
    mirrored = compose(resize(lambda image: short_side(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT)), CENTER_CROP, TO_TENSOR)
    with pytest.raises(
        UserError, match=r"pixels gate: .* of the values differ from the transform \(Compose\).*; nothing was written"
    ):
        published(graph, tmp_path / "models", transforms=mirrored)
    larger = compose(resize(lambda image: image.resize((50, 40)), (CROP, CROP)), TO_TENSOR)
    with pytest.raises(UserError, match=r"gives pixels \(40, 50, 3\), the server makes \(32, 32, 3\); nothing was written"):
        published(graph, tmp_path / "models", transforms=larger)
    assert not (tmp_path / "models").exists()


def test_resized_tensors_are_close_and_said_to_be_not_proved(graph: Path, tmp_path: Path) -> None:
    def as_pytorch_rounds(tensor: NDArray[np.uint8]) -> NDArray[np.float32]:
        image = middle(short_side(Image.fromarray(tensor)))
        return np.asarray(image, np.float32).transpose(2, 0, 1) + np.float32(0.3)

    transforms = compose(
        step("ToImage", np.asarray), resize(as_pytorch_rounds), step("CenterCrop", lambda value: value, size=[CROP]),
        step("ToDtype", lambda value: value / np.float32(255), dtype="torch.float32", scale=True),
    )  # fmt: skip
    _, origin, said = published(graph, tmp_path, transforms=transforms)
    assert origin.pixels == ""
    most = r"[\d.]+" if pillow_rounds_otherwise() else r"0\.3"
    assert re.search(
        rf"pixels gate: not proved: 100\.00% of the values differ from .*it resizes tensors\)\), by up to {most}", said
    )


def test_an_onnx_model_takes_a_preset_a_file_or_a_recipe(graph: Path, tmp_path: Path) -> None:
    named, _, _ = published(graph, tmp_path, transforms="torchvision", labels=list("abcde"))
    assert named.contract.input.resize == "short:37"
    with pytest.raises(UserError, match=r"--scores logits: .* those are probabilities already"):
        published(graph, tmp_path, transforms="torchvision", scores="logits")
    with pytest.raises(UserError, match="--precision int8"):
        published(graph, tmp_path, transforms="torchvision", precision="int8")
    file = tmp_path / "preprocessor_config.json"
    file.write_text('{"image_processor_type": "ViTImageProcessor", "size": 32}')
    of_file, origin, _ = published(onnx.load(graph), tmp_path, transforms=str(file))
    assert of_file.contract.input.resize == "stretch"
    assert origin.pixels == ""
    assert origin.command.startswith("export.publish(ModelProto, transforms=")


def keras_model(graph: Path) -> Any:
    """What a model of Keras has, around an ONNX file."""

    def write(_self: Any, path: str, format: str, verbose: bool) -> None:  # noqa: A002 - as in Keras
        assert format == "onnx"
        assert called == [(64, 32, 32, 3)]  # Keras converts no model that was never called
        Path(path).write_bytes(graph.read_bytes())

    called: list[Any] = []

    def predict_on_batch(_self: Any, inputs: NDArray[np.float32]) -> Any:
        found: Any = ReferenceEvaluator(str(graph)).run(None, {"x": inputs})
        return found[0]

    methods = {"export": write, "predict_on_batch": predict_on_batch, "input_shape": (None, 32, 32, 3)}
    methods["__call__"] = lambda _self, inputs: called.append(inputs.shape)
    return type("Sequential", (), {"__module__": "keras.src.models.sequential", **methods})()


def test_a_model_of_keras_is_compared_with_keras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = foreign_graphs.classifier(tmp_path / "graph.onnx", shape=("n", 32, 32, 3), layout="nhwc")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "3.15.1")
    served, origin, said = published(keras_model(graph), tmp_path, transforms="keras")
    assert (served.contract.input.filter, served.contract.input.dtype) == ("tf-bilinear", "float32")
    assert origin.framework == "keras 3.15.1"
    assert "outputs gate: largest difference from Keras" in said


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (3, {"transforms": "timm"}, "int is no model; accepted are a torch.nn.Module, a Keras model"),
        ("missing.onnx", {"transforms": "timm"}, "missing.onnx: No such file"),
        (Network, {}, "transforms is missing, and the model does not say how pictures are prepared; accepted are"),
        (Network, {"transforms": "resnet"}, "transforms='resnet': neither a preset nor a file"),
        (Network, {"transforms": "timm"}, "it does not say to what size, and the network takes any; --input-shape H,W (in Python "),
        (Network, {"transforms": print}, "transforms: a function (print) cannot be translated"),
        (Network, {"transforms": TRANSFORMS, "labels": 3}, "labels: a list of names"),
        (Network, {"transforms": TRANSFORMS, "labels": [1.5, 2.5, 3.5]}, "labels: a list of names"),
        (Network, {"transforms": TRANSFORMS, "labels": "labels.txt"}, "labels.txt: No such file"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(10, 3)), {"transforms": TRANSFORMS}, "it does not take float32 [N,3,32,32]"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2, return_indices=True), Words()),
            {"transforms": TRANSFORMS},
            "str",
        ),
    ],
)
def test_what_cannot_be_published_is_refused(model: Any, arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = model() if callable(model) else model
    with pytest.raises(UserError) as caught:
        export.publish(model, name="pets", repository=tmp_path / "models", **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "models").exists()


class Words(nn.Module):
    def forward(self, value: Any) -> str:
        return "cat"


def test_to_import_the_package_is_cheap() -> None:
    command = "import export, sys; print(sorted({'torch', 'onnx', 'numpy'} & set(sys.modules)), export.__all__)"
    found = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[] ['publish']"
    with pytest.raises(AttributeError, match="no attribute 'publsh'"):
        export.publsh  # noqa: B018
