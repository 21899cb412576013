"""`convoy walkthrough`: what it shows are the numbers that PyTorch, SciPy and a pencil get too."""

import base64
import dataclasses
import html.parser
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization
from PIL import Image
from sklearn.datasets import load_sample_image
from torch.nn import functional

from export.cli.walkthrough import walkthrough
from export.convert.onnx_conversion import to_onnx
from export.data import datasets
from export.networks import architectures
from export.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from export.training.inference import predict_logits
from export.training.recipes import Settings
from export.walkthrough import (
    attribution,
    backpropagation,
    feature_maps,
    network_page,
    pixel_scaling,
    subject,
    tutorial_page,
    tutorial_steps,
    web_page,
)
from export.walkthrough.activations import Probe
from export.walkthrough.feature_maps import Scale
from service.errors import UserError
from service.model.contract import InputSpec

GRAY, COLOUR = InputSpec(height=28, width=28, channels=1), InputSpec(height=32, width=32, channels=3)
MAX_PIXELS = 1 << 24


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real photo of 640x427 pixels."""
    path = tmp_path_factory.mktemp("photos") / "flower.png"
    Image.fromarray(load_sample_image("flower.jpg")).save(path)
    return path


@pytest.fixture(scope="module")
def digit(tmp_path_factory: pytest.TempPathFactory, digits: datasets.Dataset) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "digit.png"
    path.write_bytes(digits.test.encoded(0))
    return path


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """A part of a real photo as uint8[32,32,3]."""
    return np.asarray(Image.fromarray(load_sample_image("china.jpg")).resize((32, 32)))


def checkpoint(text: str, spec: InputSpec, classes: int) -> Checkpoint:
    """An untrained network of real shape, with statistics that are not those of a fresh one."""
    torch.manual_seed(1)
    network = architectures.build(text, spec, classes)
    network.train()
    network(torch.randn(8, spec.channels, spec.height, spec.width))
    labels = tuple(f"kind {index}" for index in range(classes))
    means, stds = (100.0, 110.0, 120.0)[: spec.channels], (50.0, 60.0, 70.0)[: spec.channels]
    return Checkpoint(network.eval(), spec, labels, "pictures", means, stds, Settings(text, 1), 1)


def of(checkpoint: Checkpoint, temperature: float = 1.0) -> subject.Subject:
    """A subject as a file of this checkpoint would be."""
    return subject.Subject("pictures", to_onnx(checkpoint, temperature), checkpoint.input, checkpoint.labels, {})


def normalised(checkpoint: Checkpoint, pixels: np.ndarray) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (checkpoint.mean, checkpoint.std))
    return (torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() - mean) / std


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(walkthrough, [str(argument) for argument in arguments])


def test_the_tour_has_the_articles_shapes(flower: Path) -> None:
    tour = tutorial_steps.tour(flower.read_bytes(), MAX_PIXELS)
    shapes = {field.name: getattr(tour, field.name).shape for field in dataclasses.fields(tour)}
    assert shapes == {
        "loaded": (427, 640, 3), "gray": (427, 640, 1), "resized": (300, 300, 1), "normalised": (1, 300, 300, 1),
        "convolved": (1, 300, 300, 1), "rectified": (1, 300, 300, 1), "pooled": (1, 150, 150, 1), "flat": (1, 22500),
        "dense": (1, 64),
    }  # fmt: skip
    assert all(getattr(tour, name).dtype == np.float32 for name in ("normalised", "convolved", "pooled", "flat", "dense"))


def test_the_tours_numbers_are_those_of_torch(flower: Path) -> None:
    tour = tutorial_steps.tour(flower.read_bytes(), MAX_PIXELS)
    assert (tour.loaded == load_sample_image("flower.jpg")).all()
    red, green, blue = tour.loaded.astype(float).transpose(2, 0, 1)
    assert np.abs(tour.gray[:, :, 0] - (0.299 * red + 0.587 * green + 0.114 * blue)).max() <= 1
    x = torch.from_numpy(tour.normalised).permute(0, 3, 1, 2)
    assert 0 <= x.min() < x.max() <= 1
    convolved = functional.conv2d(x, torch.from_numpy(tutorial_steps.LAPLACIAN)[None, None], padding=1)
    pooled = functional.max_pool2d(convolved.relu(), 2)
    np.testing.assert_allclose(tour.convolved, convolved.permute(0, 2, 3, 1), atol=1e-5)
    np.testing.assert_allclose(tour.pooled, pooled.permute(0, 2, 3, 1), atol=1e-5)
    weights = torch.from_numpy(tutorial_steps.dense_weights(22500))
    np.testing.assert_allclose(tour.dense, pooled.reshape(1, -1) @ weights, atol=1e-3)
    assert weights.abs().max() <= (6 / 22564) ** 0.5


def test_the_tours_worked_examples_add_up(flower: Path) -> None:
    page = tutorial_page.page(tutorial_steps.tour(flower.read_bytes(), MAX_PIXELS), "flower.png")
    convolution, pooling = (step.example for step in page.steps if step.example)
    assert convolution is not None
    assert pooling is not None
    assert added_up(convolution) == convolution.result
    window = np.array(pooling.lines[0][0][1], float)
    assert window.max() == float(pooling.result.split()[-1])
    assert window.max() == pytest.approx(float(convolution.result.split()[-1]), abs=0.005)  # the same place


def added_up(example: web_page.Example) -> str:
    """What a reader gets who adds up the numbers that are printed, in the decimals of the result."""
    before, result = re.fullmatch(r"(.*)= (.*)", example.result, re.DOTALL).groups()  # type: ignore[union-attr]
    products = [[np.array(table, float) for _, table in line] for line in example.lines]
    total = sum(float((one * other).sum()) for one, other in products) + sum(map(float, before.split()[-1:]))
    return f"{before}= {total:.{len(result.partition('.')[2])}f}"


@pytest.mark.parametrize("seed", range(20))
def test_what_is_worked_out_adds_up_as_it_is_printed(seed: int) -> None:
    random = np.random.default_rng(seed)
    size = 10.0 ** random.integers(-3, 3)
    factors = [(colour, size * random.normal(size=(3, 3)), random.normal(size=(3, 3))) for colour in ("red", "green", "blue")]
    example = web_page.sum_of_products("", factors, float(random.normal()) if seed % 2 else 0.0)
    assert added_up(example) == example.result


def test_a_picture_of_one_colour_has_no_edges_but_its_border(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (90, 70), 171).save(buffer, "PNG")
    tour = tutorial_steps.tour(buffer.getvalue(), MAX_PIXELS)
    assert not tour.convolved[:, 1:-1, 1:-1].any()
    assert tour.convolved[:, 0].all()
    load, *_ = tutorial_page.page(tour, "gray.png").steps
    assert load.text.endswith("The three are alike: the picture is gray.")


def test_the_flat_vector_has_the_colours_of_the_map_that_it_was(flower: Path) -> None:
    *_, pooled, flat, _ = tutorial_page.page(tutorial_steps.tour(flower.read_bytes(), MAX_PIXELS), "flower.png").steps
    assert flat.title == "Flatten"
    assert flat.figures[0].scale == pooled.figures[0].scale


@pytest.mark.parametrize(
    ("text", "spec", "classes"),
    [
        ("article-cnn", GRAY, 10), ("article-cnn:head=sigmoid,pool=average,activation=tanh", COLOUR, 2),
        ("twelve-filters:kernel=5", COLOUR, 10), ("step-by-step:activation=sigmoid", GRAY, 10), ("resnet18", COLOUR, 10),
        ("resnet18:head=sigmoid,stem=imagenet", InputSpec(height=64, width=64, channels=1), 2), ("speed-net:width=32", COLOUR, 10),
    ],
)  # fmt: skip
def test_every_network_is_gone_through_to_its_probabilities(text: str, spec: InputSpec, classes: int, photo: np.ndarray) -> None:
    network = checkpoint(text, spec, classes)
    image = Image.fromarray(photo).resize((spec.width, spec.height)).convert("L" if spec.channels == 1 else "RGB")
    pixels = np.asarray(image).reshape(spec.shape)
    page = network_page.page(of(network, 1.7), pixels, photo, "photo.png")
    expected = (network.network(normalised(network, pixels)) / 1.7).softmax(1)[0].detach().numpy()
    last = page.steps[-1]
    assert last.title == "Softmax"
    np.testing.assert_allclose(last.value[0], expected, atol=1e-5)
    assert [bar.name for bar in last.bars] == list(network.labels)
    np.testing.assert_allclose([bar.share for bar in last.bars], expected / expected.max(), atol=1e-4)
    assert any("the sigmoid of z" in step.text for step in page.steps) == ("head=sigmoid" in text)
    best = int(expected.argmax())
    assert page.answers[0].name == network.labels[best]
    assert page.answers[0].share == pytest.approx(float(expected[best]), abs=1e-5)
    learned = sum(value.numel() for value in network.network.parameters())
    folded = sum(step.parameters for step in page.steps)  # batch norms are folded into convolutions, where that can be done
    assert folded == learned if "resnet" not in text and "speed" not in text else 0.9 * learned < folded < 1.1 * learned
    first = next(step for step in page.steps if step.title == "Convolution")
    assert [figure.name.endswith("filters") for figure in first.figures] == [True, False]
    assert page.sections[0].title == f"Which pixels mattered for “{network.labels[best]}”"


def test_values_of_layers_are_those_of_torch(photo: np.ndarray) -> None:
    network = checkpoint("article-cnn", COLOUR, 10)
    probe = Probe(of(network).model, True, photo[np.newaxis], 1)
    x = normalised(network, photo)
    by_name = {stop.name: stop for stop in probe.stops}
    np.testing.assert_allclose(probe.stops[0].value, x, atol=1e-5)
    for name, layer in network.network.named_children():
        x = layer(x)
        np.testing.assert_allclose(by_name[name].value, x.detach(), atol=1e-4, err_msg=name)
    convolution, layer = by_name["conv1"], network.network.get_submodule("conv1")
    assert isinstance(layer, torch.nn.Conv2d)
    assert convolution.weights is not None
    assert layer.bias is not None
    np.testing.assert_array_equal(convolution.weights, layer.weight.detach())
    np.testing.assert_array_equal(convolution.bias, layer.bias.detach())
    assert [stop.operator for stop in probe.stops][:3] == ["Transpose + Sub + Div", "Conv", "Relu"]


def test_the_worked_example_of_a_network_adds_up(photo: np.ndarray) -> None:
    page = network_page.page(of(checkpoint("article-cnn", COLOUR, 10)), photo, photo, "photo.png")
    step = next(step for step in page.steps if step.example)
    assert step.example is not None
    assert [line[0][0] for line in step.example.lines] == ["red", "+ green", "+ blue"]
    assert added_up(step.example) == step.example.result
    assert float(step.example.result.split()[-1]) == pytest.approx(float(step.value.max()), rel=5e-3)


@pytest.mark.parametrize(("text", "classes"), [("resnet18", 10), ("resnet18:head=sigmoid", 2)])
def test_a_class_activation_map_is_the_score_spread_over_the_picture(text: str, classes: int, photo: np.ndarray) -> None:
    network = checkpoint(text, COLOUR, classes)
    probe = Probe(of(network, 2.5).model, True, photo[np.newaxis], 1)
    with torch.no_grad():
        x = normalised(network, photo)
        layers = dict(network.network.named_children())
        for name, layer in layers.items():
            if name == "mean":
                break
            x = layer(x)
        output = layers["output"]
        assert isinstance(output, torch.nn.Linear)
        by_hand = torch.einsum("kc,chw->khw", output.weight, x[0])
        logits = output(x.mean((2, 3)))[0]
    for index in range(classes):
        found = attribution.class_activation(probe, "logits", index)
        assert found is not None
        assert found.shape == (4, 4)
        expected = by_hand[index] if classes > 2 else by_hand[0] * (1 if index else -1)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        if classes > 2:  # the map's mean and the bias are the logit, before its temperature
            assert found.mean() + output.bias[index].item() == pytest.approx(logits[index].item(), abs=1e-4)


@pytest.mark.parametrize("text", ["article-cnn", "speed-net"])
def test_other_networks_have_no_class_activation_map(text: str, photo: np.ndarray) -> None:
    probe = Probe(of(checkpoint(text, COLOUR, 10)).model, True, photo[np.newaxis], 1)
    assert attribution.class_activation(probe, "logits", 0) is None


def test_occlusion_finds_the_one_pixel_that_counts() -> None:
    pixels = np.full((20, 30, 1), 10, np.uint8)
    pixels[5, 22] = 210

    def ask(pictures: np.ndarray) -> Any:
        for half in np.array_split(pictures, 2):
            bright = half[:, 5, 22, 0].astype(np.float32)
            yield np.stack([np.zeros_like(bright), bright / 50], axis=1)

    told: list[tuple[int, int]] = []
    found = attribution.occlusion(ask, pixels, 1, lambda done, total: told.append((done, total)))
    assert told[-1] == (found.tried + 1, found.tried + 1)
    assert found.heat.shape == (20, 30)
    assert found.heat[5, 22] == pytest.approx((210 - 10) / 50, rel=1e-5)  # every patch over it takes as much: the colour is 10
    row, column = np.unravel_index(found.heat.argmax(), found.heat.shape)
    assert abs(row - 5) < found.patch
    assert abs(column - 22) < found.patch
    far = np.abs(np.arange(20) - 5)[:, None] >= 2 * found.patch
    assert not found.heat[np.broadcast_to(far, found.heat.shape)].any()
    assert found.worst[5, 22, 0] == 10
    np.testing.assert_allclose(found.worst_logits, [0, 0.2])


@pytest.mark.parametrize(("length", "patch"), [(28, 6), (32, 6), (224, 45), (1, 1), (2, 1), (3, 1), (9, 2)])
def test_patches_hide_every_pixel(length: int, patch: int) -> None:
    starts = attribution._starts(length, patch)
    hidden = {pixel for start in starts for pixel in range(start, start + patch)}
    assert hidden >= set(range(length))
    assert all(start < length and start + patch > 0 for start in starts)
    assert len(starts) <= 18


def test_log_odds_survive_certainty() -> None:
    assert attribution.log_odds(np.array([[200.0, 0.0], [0.0, 0.0]], np.float32), 0).tolist() == [200.0, 0.0]
    three = attribution.log_odds(np.array([[1.0, 0.0, 0.0]], np.float32), 0)[0]
    p = np.e / (np.e + 2)
    assert three == pytest.approx(np.log(p / (1 - p)))


def test_a_step_of_learning_is_gradient_descent(run: Path, digits: datasets.Dataset) -> None:
    loaded = load_checkpoint(run)
    before = {name: value.clone() for name, value in loaded.network.state_dict().items()}
    pixels, label = digits.test.pixels[0], 3
    step = backpropagation.learn(loaded, pixels, label, 0.02)
    network = load_checkpoint(run).network
    x, target = normalised(loaded, pixels), torch.tensor([label])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
    loss = functional.cross_entropy(network(x), target)
    loss.backward()  # type: ignore[no-untyped-call]
    norms = {}
    for name, layer in network.named_children():
        gradients = [value.grad.flatten() for value in layer.parameters() if value.grad is not None]
        if gradients:
            norms[name] = torch.cat(gradients).norm().item()
    optimizer.step()
    after = functional.cross_entropy(network(x), target).item()
    assert step.loss_before == pytest.approx(loss.item(), rel=1e-4)
    assert step.loss_before == pytest.approx(-np.log(step.before[label]), rel=1e-4)
    assert step.loss_after == pytest.approx(after, rel=1e-3)
    assert step.loss_after < step.loss_before
    assert {layer.name: pytest.approx(layer.gradient, rel=1e-3) for layer in step.layers} == norms
    assert sum(layer.parameters for layer in step.layers) == 93_322
    assert step.losses[0] == pytest.approx(step.loss_before, rel=0.05)  # the least of steps changes next to nothing
    for name, value in loaded.network.state_dict().items():
        assert torch.equal(value, before[name])


def test_what_is_not_trained_has_no_gradient(photo: np.ndarray) -> None:
    names = [layer.name for layer in backpropagation.learn(checkpoint("speed-net", COLOUR, 10), photo, 1, 0.1).layers]
    assert "whitening" not in names
    assert names[0] == "groups.0.widen"
    assert names[-1] == "linear"


def qdq(model: onnx.ModelProto, pictures: np.ndarray, folder: Path) -> onnx.ModelProto:
    """The model in int8, as QuantizeLinear and DequantizeLinear pairs, calibrated on these pictures."""
    source, target = folder / "fp32.onnx", folder / "int8.onnx"
    onnx.save(model, source)

    class Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows = iter(pictures)

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self._rows, None)
            return None if row is None else {"image": row[np.newaxis]}

    quantization.quantize_static(
        source, target, Calibration(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        op_types_to_quantize=["Conv", "Gemm"],
    )  # fmt: skip
    return onnx.load(target)


def test_an_int8_file_has_the_same_layers_with_nearly_the_same_values(run: Path, digits: datasets.Dataset, tmp_path: Path) -> None:
    loaded = load_checkpoint(run)
    exact = of(loaded)
    rounded = dataclasses.replace(exact, model=qdq(exact.model, digits.training.pixels[:32], tmp_path))
    assert "QuantizeLinear" in {node.op_type for node in rounded.model.graph.node}
    pixels = digits.test.pixels[0]
    one, other = (Probe(each.model, True, pixels[np.newaxis], 1) for each in (exact, rounded))
    assert [stop.operator for stop in other.stops] == [stop.operator for stop in one.stops]
    assert [stop.name for stop in other.stops if stop.parameters] == [stop.name for stop in one.stops if stop.parameters]
    for ours, theirs in zip(one.stops, other.stops, strict=True):
        assert theirs.value.shape == ours.value.shape
        assert np.abs(theirs.value - ours.value).max() <= 0.1 * np.abs(ours.value).max() + 0.05, ours.name
    first, second = (next(stop for stop in probe.stops if stop.weights is not None) for probe in (one, other))
    assert first.weights is not None
    assert second.weights is not None
    np.testing.assert_allclose(second.weights, first.weights, atol=np.abs(first.weights).max() / 127)
    page = network_page.page(rounded, pixels, pixels.repeat(3, 2), "digit.png")
    assert page.answers[0].name == loaded.labels[int(predict_logits(loaded, pixels[np.newaxis]).argmax())]
    assert "rounded to integers" in page.notes[-1]
    assert [figure.name for figure in page.steps[2].figures] == ["03 conv1 filters", "03 conv1"]


def foreign(path: Path, layout: str, kind: int = TensorProto.FLOAT, shape: list[Any] | None = None) -> Path:
    """A classifier as others may write one: a convolution, global average pooling and a product, logits and nothing else."""
    random = np.random.default_rng(0)
    weights = {
        "kernel": random.normal(0, 0.2, (8, 3, 3, 3)).astype(np.float32), "dense": random.normal(size=(8, 5)).astype(np.float32),
        "axes": np.array([2, 3]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
        *([helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2])] if layout == "NHWC" else []),
        helper.make_node("Conv", ["nchw" if layout == "NHWC" else "float", "kernel"], ["maps"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["maps"], ["positive"]),
        helper.make_node("ReduceMean", ["positive", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "dense"], ["scores"]),
    ]
    sides = shape or (["N", 3, 40, 48] if layout == "NCHW" else ["N", 40, 48, 3])
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, sides)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [sides[0], 5])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("batch", ["N", 1])
def test_a_foreign_classifier(tmp_path: Path, flower: Path, layout: str, batch: int | str) -> None:
    sides = [batch, 3, 40, 48] if layout == "NCHW" else [batch, 40, 48, 3]
    path = foreign(tmp_path / "net.onnx", layout, shape=sides)
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    found = subject.load_subject(path)
    assert found.spec.shape == (40, 48, 3)
    assert found.labels == tuple("abcde")
    pixels = np.asarray(Image.open(flower).resize((48, 40)))
    page = network_page.page(found, pixels, pixels, "flower.png")
    weights = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in found.model.graph.initializer}
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255
    maps = functional.conv2d(x, weights["kernel"], padding=1).relu()
    expected = (maps.mean((2, 3)) @ weights["dense"]).softmax(1)[0].numpy()
    assert [bar.name for bar in page.answers] == [f"{'abcde'[index]}" for index in np.argsort(-expected)]
    assert page.answers[0].share == pytest.approx(float(expected.max()), abs=1e-5)
    assert "class activation map" in page.sections[0].paragraphs[0]


def test_a_foreign_classifier_of_pixels_and_of_any_size(tmp_path: Path, flower: Path) -> None:
    found = subject.load_subject(foreign(tmp_path / "net.onnx", "NHWC", TensorProto.UINT8, ["N", "h", "w", 3]))
    assert found.spec.shape == (224, 224, 3)
    pixels = np.asarray(Image.open(flower).resize((224, 224)))
    assert found.feed(pixels[np.newaxis]).dtype == np.uint8
    page = network_page.page(found, pixels, pixels, "flower.png")
    assert page.answers[0].name.startswith("class ")


def test_scalings_of_pixels() -> None:
    pixels = np.array([[0, 51, 255]], np.uint8)
    assert pixel_scaling.scaled(pixels, "0..255").tolist() == [[0, 51, 255]]
    np.testing.assert_allclose(pixel_scaling.scaled(pixels, "0..1"), [[0, 0.2, 1]], rtol=1e-6)
    np.testing.assert_allclose(pixel_scaling.scaled(pixels, "-1..1"), [[-1, -0.6, 1]], rtol=1e-6)
    np.testing.assert_allclose(
        pixel_scaling.scaled(pixels, "imagenet"), [[-0.485 / 0.229, (0.2 - 0.456) / 0.224, (1 - 0.406) / 0.225]], rtol=1e-5
    )


def test_files_that_cannot_be_walked_through(tmp_path: Path, model_file: Path) -> None:
    def refused(path: Path, words: str, **options: Any) -> None:
        with pytest.raises(UserError, match=words):
            subject.load_subject(path, **options)

    refused(tmp_path / "missing.onnx", "No such file")
    refused(tmp_path, "neither model.onnx nor checkpoint.pt")
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    refused(tmp_path / "junk.onnx", "not a valid ONNX model")
    refused(model_file, "normalises its pictures itself", scaling="0..1")
    refused(foreign(tmp_path / "a.onnx", "NCHW", shape=["N", 5, 40, 48]), r"it takes 'x', float \[N, 5, 40, 48\]; .* or 3 channels")
    refused(foreign(tmp_path / "b.onnx", "NCHW", TensorProto.INT64), "int64")
    refused(foreign(tmp_path / "c.onnx", "NCHW", shape=[4, 3, 40, 48]), "batches of exactly 4")
    refused(foreign(tmp_path / "d.onnx", "NCHW", shape=["N", 3, 9999, 48]), "at most 4096x4096")
    gray = foreign(tmp_path / "e.onnx", "NCHW", shape=["N", 1, 40, 48])
    refused(gray, "imagenet is for colour", scaling="imagenet")
    assert subject.load_subject(model_file.parent).name == "digits"


def test_labels_must_be_as_many_as_scores(tmp_path: Path, photo: np.ndarray) -> None:
    path = foreign(tmp_path / "net.onnx", "NCHW", shape=["N", 3, 32, 32])
    (tmp_path / "labels.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="5 scores, and there are 2 labels"):
        network_page.page(subject.load_subject(path), photo, photo, "photo.png")


def test_maps_share_a_scale_and_zero_is_black_or_white() -> None:
    values = np.zeros((3, 2, 2), np.float32)
    values[1] = 1
    values[2, 0, 0] = 2
    image = Image.open(io.BytesIO(feature_maps.maps(values, Scale(0, 2)))).convert("RGBA")
    assert image.size == (3 * 120 + 2 * 4, 120)
    pixels = np.asarray(image)
    assert pixels[60, 122, 3] == 0  # the gap
    black, middle, bright = (pixels[30, 30 + 124 * at] for at in range(3))
    assert black[:3].max() < 10
    assert middle[:3].sum() < bright[:3].sum()
    assert (pixels[90, 90 + 124 * 2] == black).all()
    signed = Scale.of(np.array([-1.0, 0.5], np.float32))
    assert signed == Scale(-1.0, 1.0, True) or signed.low == -signed.high
    assert signed.palette()[int(signed.indices(np.zeros(1))[0])].min() > 240


@pytest.mark.parametrize("values", [np.zeros(3), np.array([np.nan, 1.0]), np.array([np.inf, -1.0]), np.full(4, np.nan)])
def test_odd_values_can_be_drawn(values: np.ndarray) -> None:
    scale = Scale.of(values)
    assert scale.high > scale.low
    for content in (feature_maps.bars(values), feature_maps.strip(values, scale), feature_maps.maps(values[None, None], scale)):
        assert Image.open(io.BytesIO(content)).size[0] > 0


class Reader(html.parser.HTMLParser):
    """What a page refers to, and whether its elements are closed in order."""

    VOID = ("meta", "img", "br", "line", "polyline", "path", "circle")

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.open: list[str] = []
        self.pictures: list[bytes] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids.add(found.get("id") or "")
        source = found.get("src") or ""
        if source.startswith("data:image/png;base64,"):
            self.pictures.append(base64.b64decode(source.split(",")[1], validate=True))
        elif source:
            self.links.append(source)
        if "href" in found:
            self.links.append(found["href"] or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(folder: Path) -> Reader:
    content = (folder / web_page.PAGE).read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(content)
    assert reader.open == []
    assert all(link.startswith("#") and link[1:] in reader.ids for link in reader.links)
    assert not re.search(r"https?:|url\(|@import|<script", content)
    files = {path.read_bytes() for path in folder.glob("*.png")}
    assert set(reader.pictures) == files
    assert all(Image.open(io.BytesIO(content)).format == "PNG" for content in files)
    return reader


def test_the_command_without_a_model(tmp_path: Path, flower: Path) -> None:
    result = invoke(flower, "--output", tmp_path / "tour")
    assert result.exit_code == 0, result.output
    page = read(tmp_path / "tour")
    for shape in ("(427, 640, 3)", "(300, 300)", "(1, 300, 300, 1)", "(1, 150, 150, 1)", "(1, 22500)", "(1, 64)"):
        assert shape in page.text
    assert len(list((tmp_path / "tour").glob("*.png"))) == 9


def test_the_command_with_a_file(tmp_path: Path, digit: Path, model_file: Path, digits: datasets.Dataset) -> None:
    result = invoke(digit, "--model", model_file, "--output", tmp_path / "tour")
    assert result.exit_code == 0, result.output
    label = digits.labels[digits.test.labels[0]]
    assert result.stdout.startswith(f"digit.png: {label}, ")
    page = read(tmp_path / "tour")
    for words in ("(1, 32, 26, 26)", "(1, 64, 3, 3)", "(1, 576)", f"Which pixels mattered for “{label}”", "93,322"):
        assert words in page.text
    assert "One step of learning" not in page.text


@pytest.mark.parametrize("named", ["run", "checkpoint"])
def test_the_command_with_a_run(tmp_path: Path, digit: Path, run: Path, named: str) -> None:
    model = run if named == "run" else run / "checkpoint.pt"
    result = invoke(digit, "--model", model, "--output", tmp_path / "tour", "--label", "3", "--learning-rate", "0.05")
    assert result.exit_code == 0, result.output
    before, after = (float(each) for each in re.findall(r"Loss: (\S+) before, (\S+) after", result.stdout)[0])
    assert after < before
    page = read(tmp_path / "tour")
    assert "Suppose that “3” is the right answer" in page.text
    assert "learning rate of 0.05" in page.text


def test_the_pictures_folder_is_its_label(tmp_path: Path, digit: Path, run: Path) -> None:
    folder = tmp_path / "8"
    folder.mkdir()
    (folder / "a.png").write_bytes(digit.read_bytes())
    result = invoke(folder / "a.png", "--model", run, "--output", tmp_path / "tour")
    assert result.exit_code == 0, result.output
    assert "Suppose that “8” is the right answer" in read(tmp_path / "tour").text


def test_markup_in_names_stays_text(tmp_path: Path, digit: Path, run: Path) -> None:
    loaded = load_checkpoint(run)
    labels = tuple(f"<b>{label}</b> & co" for label in loaded.labels)
    (tmp_path / "run").mkdir()
    save_checkpoint(dataclasses.replace(loaded, labels=labels), tmp_path / "run")
    odd = tmp_path / "<i>x & y.png"
    odd.write_bytes(digit.read_bytes())
    result = invoke(odd, "--model", tmp_path / "run", "--output", tmp_path / "tour")
    assert result.exit_code == 0, result.output
    page = read(tmp_path / "tour")
    assert "<i>x & y.png" in page.text
    assert f"“{labels[6]}”" in page.text


def test_what_the_user_gets_wrong(tmp_path: Path, digit: Path, model_file: Path, run: Path) -> None:
    def refused(words: str, *arguments: object) -> None:
        result = invoke(*arguments)
        assert isinstance(result.exception, UserError | SystemExit), result.exception
        message = str(result.exception) if isinstance(result.exception, UserError) else result.output
        assert words in message
        assert "\n" not in message or result.exit_code == 2

    out = ("--output", tmp_path / "tour")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(digit.read_bytes()[:60])
    refused("No such file", tmp_path / "missing.png", *out)
    refused("Is a directory", tmp_path, *out)
    refused("not an image", tmp_path / "text.png", *out)
    refused("broken or cut short", tmp_path / "cut.png", *out)
    refused("broken or cut short", tmp_path / "cut.png", *out, "--model", model_file)
    refused("No such file", digit, *out, "--model", tmp_path / "missing.onnx")
    refused("not a valid ONNX", digit, *out, "--model", digit)
    refused("needs --model", digit, *out, "--label", "3")
    refused("needs --model", digit, *out, "--scaling", "0..1")
    refused("needs the folder of a run", digit, *out, "--label", "3", "--model", model_file)
    refused("needs the folder of a run", digit, *out, "--learning-rate", "1", "--model", model_file)
    refused("'cat' is not one of 0, 1", digit, *out, "--label", "cat", "--model", run)
    refused("0<x<=1000", digit, *out, "--learning-rate", "0", "--model", run)
    refused("not a finite number", digit, *out, "--learning-rate", "nan", "--model", run)
    refused("Missing option '--output'", digit)
    assert list(tmp_path.glob("tour/*")) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    refused("is not an empty folder", digit, "--output", tmp_path / "full")


def test_a_photo_that_was_taken_upright_is_shown_upright(flower: Path) -> None:
    turned = Image.open(flower).convert("RGB").rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", exif=exif)
    assert (tutorial_steps.photo(buffer.getvalue(), MAX_PIXELS) == load_sample_image("flower.jpg")).all()
