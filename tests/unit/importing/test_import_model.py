"""`convoy import`: what it makes of graphs that others wrote, and what it refuses."""

import io
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_sample_image

from export.cli.import_model import import_model
from export.importing.score_head import decide
from service.model.cpus import cpu_budget
from service.model.inference import Model
from service.model.loading import load_model
from service.model.preprocessing import decode
from service.model.session import OpenGraph
from tests.unit.importing import foreign_graphs as graphs


def run(source: Path, repository: Path, *arguments: object, name: str = "pets") -> str:
    """What is printed; a UserError is raised."""
    words = [str(source), "--repository", str(repository), "--name", name, *map(str, arguments)]
    result = CliRunner().invoke(import_model, words, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def load(repository: Path, version: int = 1, name: str = "pets") -> Model:
    return load_model(repository / name / str(version) / "model.onnx", "cpu", cpu_budget())


def photo() -> bytes:
    """A real photograph, as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(load_sample_image("china.jpg")).save(buffer, "PNG")
    return buffer.getvalue()


def answers(served: Model) -> dict[str, np.ndarray]:
    """What a served model says of the photograph, by output, without the dimension of the batch."""
    pixels = decode(photo(), served.contract.input, 1 << 24)[None]
    return {output.name: value[0] for output, value in zip(served.outputs, served.predict(pixels), strict=True)}


def source_answers(
    source: Path, mean: float = 0.0, std: float = 1.0, order: int = 1, layout: str = "nchw"
) -> dict[str, np.ndarray]:
    """What the source's own graph says of the photograph, prepared by Pillow and numpy alone."""
    pixels = np.asarray(Image.fromarray(load_sample_image("china.jpg")).resize((32, 32), Image.Resampling.BILINEAR))
    image = ((pixels[..., ::order].astype(np.float32) / 255 - np.float32(mean)) / np.float32(std))[None]
    fed = np.ascontiguousarray(image.transpose(0, 3, 1, 2)) if layout == "nchw" else image
    return {name: value[0] for name, value in OpenGraph(source.read_bytes(), 1).run(fed).items()}


def softmax(logits: np.ndarray) -> np.ndarray:
    powers: np.ndarray = np.exp(logits - logits.max())
    total: np.ndarray = powers / powers.sum()
    return total


def test_an_imported_file_answers_a_photograph_as_its_source_does(tmp_path: Path) -> None:
    source, labels = graphs.classifier(tmp_path / "net.onnx", end=""), tmp_path / "labels.txt"
    labels.write_text("cat\ndog\nfish\nbird\nhorse\n")
    printed = run(
        source, tmp_path / "models", "--labels", labels, "--scale", 255, "--mean", "0.5", "--std", "0.25,0.25,0.25",
        "--channels", "bgr",
    )  # fmt: skip
    assert "softmax of logits (found)" in printed
    served, expected = load(tmp_path / "models"), source_answers(source, mean=0.5, std=0.25, order=-1)["scores"]
    found = answers(served)
    assert served.labels == ("cat", "dog", "fish", "bird", "horse")
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["probabilities"], softmax(expected), atol=1e-6)
    origin = served.contract.origin
    assert origin is not None
    assert (origin.source, len(origin.digest), origin.pixels) == ("net.onnx", 64, "")
    assert "--channels bgr" in origin.command
    card = (tmp_path / "models" / "pets" / "1" / "README.md").read_text()
    assert "not proved" in card
    assert re.search(r"\| parity \| passed \| largest difference from the source [\d.e-]+", card)
    assert len(served.contract.golden) == 3
    assert all(len(sample.pixels_sha256) == 64 for sample in served.contract.golden)


@pytest.mark.parametrize(
    ("end", "classes", "activation", "said"),
    [
        ("", 5, "softmax", "softmax of logits"),
        ("Softmax", 5, "softmax", "softmax of probabilities"),
        ("LogSoftmax", 5, "softmax", "softmax of log-probabilities"),
        ("Sigmoid", 1, "sigmoid", "one unit, a probability of the second label"),
        ("", 1, "sigmoid", "one unit, a logit of the second label"),
        ("Sigmoid", 5, "multilabel", "multilabel of probabilities"),
    ],
)
def test_what_the_scores_are_is_found_on_pictures_and_said(
    tmp_path: Path, end: str, classes: int, activation: str, said: str
) -> None:
    source = graphs.classifier(tmp_path / "net.onnx", end=end, classes=classes)
    assert said in run(source, tmp_path / "models", "--scale", 255)
    served, raw = load(tmp_path / "models"), source_answers(source)["scores"].astype(np.float64)
    if activation == "sigmoid":
        unit = raw if end else 1 / (1 + np.exp(-raw))
        expected = np.concatenate([1 - unit, unit])
    else:
        expected = softmax(raw) if not end else np.exp(raw) if end == "LogSoftmax" else raw
    assert served.contract.head == activation
    found = answers(served)
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-6)
    if activation == "multilabel":
        assert served.contract.heads[0].threshold == 0.5


def test_what_rounding_puts_above_one_is_a_probability_still() -> None:
    """As a forest of scikit-learn gives it, which adds up the shares of its trees."""
    one = np.nextafter(np.float32(1), np.float32(2))
    found = decide("p", np.array([[one, 0, 0], [0.5, 0.25, 0.25]], np.float32), "TreeEnsembleClassifier", "auto", None)
    assert (found.form, found.activation) == ("probabilities", "softmax")
    logits = decide("z", np.array([[1.1, 0, -0.1], [0.5, 0.25, 0.25]], np.float32), "TreeEnsembleClassifier", "auto", None)
    assert logits.form == "logits"


def test_layouts_batches_and_old_files(tmp_path: Path) -> None:
    kinds: list[tuple[str, Path, str]] = [
        ("nhwc", graphs.classifier(tmp_path / "nhwc.onnx", shape=("n", 32, 32, 3), layout="nhwc"), "nhwc"),
        ("weights are inputs", graphs.classifier(tmp_path / "ir3.onnx", opset=9, ir=3, weights_are_inputs=True), "nchw"),
        ("opset 7", graphs.classifier(tmp_path / "opset7.onnx", opset=7, ir=3, weights_are_inputs=True), "nchw"),
        ("open size", graphs.classifier(tmp_path / "open.onnx", shape=("n", 3, "h", "w")), "nchw"),
        ("open as Paddle says it", graphs.classifier(tmp_path / "paddle.onnx", shape=(-1, 3, -1, -1)), "nchw"),
        ("names like ours", graphs.classifier(tmp_path / "names.onnx", taken="image", output="probabilities"), "nchw"),
        ("batch of one", graphs.fixed_batch(tmp_path / "one.onnx"), "nchw"),
        ("exactly one", graphs.never_more_than_one(tmp_path / "exactly.onnx"), "nchw"),
    ]
    for version, (kind, source, layout) in enumerate(kinds, start=1):
        printed = run(source, tmp_path / "models", "--scale", 255, "--input-shape", "32,32")
        served, raw = load(tmp_path / "models", version), next(iter(source_answers(source, layout=layout).values()))
        expected = raw if raw.min() >= 0 and raw.sum() == pytest.approx(1) else softmax(raw)
        np.testing.assert_allclose(answers(served)["probabilities"], expected, atol=1e-6, err_msg=kind)
        assert served.contract.batch_items == (1 if kind == "exactly one" else 0), printed
        assert served.predict(np.zeros((3, 32, 32, 3), np.uint8))[0].shape == (3, 5)


def test_several_heads_and_values_inside_the_graph(tmp_path: Path) -> None:
    (tmp_path / "shapes.json").write_text('{"round": 0, "square": 1, "star": 2}')
    source = graphs.two_heads(tmp_path / "two.onnx")
    run(source, tmp_path / "models", "--scale", 255, "--output", "color", "--output", f"shape={tmp_path / 'shapes.json'}")
    served, expected = load(tmp_path / "models"), source_answers(source)
    first, second = served.contract.heads
    assert (first.name, second.name) == ("color", "shape")
    assert (first.labels, second.labels) == (tuple("01234"), ("round", "square", "star"))
    found = answers(served)
    np.testing.assert_allclose(found[first.output], expected["color"], atol=1e-6)
    np.testing.assert_allclose(found[second.output], expected["shape"], atol=1e-6)
    run(graphs.top_k(tmp_path / "top.onnx"), tmp_path / "models", "--scale", 255, "--output", "p")
    assert answers(load(tmp_path / "models", 2))["probabilities"].sum() == pytest.approx(1)


def test_the_files_own_metadata_are_taken_and_said(tmp_path: Path) -> None:
    metadata = {
        "names": "{0: 'cat', 1: 'dog', 2: 'fish', 3: 'bird', 4: 'horse'}", "imgsz": "[32, 32]", "mean": "[0.5, 0.4, 0.3]",
        "std": "[0.25, 0.25, 0.25]",
    }  # fmt: skip
    source = graphs.classifier(tmp_path / "net.onnx", shape=("n", 3, "h", "w"), metadata=metadata)
    printed = run(source, tmp_path / "models")
    assert "5 labels from 'names'" in printed
    assert "size 32x32 from 'imgsz'" in printed
    assert "(from 'mean' and 'std' in the file, of pixels from 0 to 1)" in printed
    assert load(tmp_path / "models").labels == ("cat", "dog", "fish", "bird", "horse")
    assert "/ 255, mean 0.5,0.4,0.3, std 0.25,0.25,0.25" in printed


def folder_of(path: Path, answer: Model, pictures: int = 24) -> Path:
    """Class folders of crops of a photograph, named with what a model says of them: its accuracy on them is 100 %."""
    random, picture = np.random.default_rng(1), Image.fromarray(load_sample_image("flower.jpg"))
    for at in range(pictures):
        left, top = (int(value) for value in random.integers(0, 300, 2))
        crop = picture.crop((left, top, left + 90, top + 70))
        buffer = io.BytesIO()
        crop.save(buffer, "PNG")
        pixels = decode(buffer.getvalue(), answer.contract.input, 1 << 24)[None]
        label = answer.labels[int(answer.predict(pixels)[0][0].argmax())]
        (path / label).mkdir(parents=True, exist_ok=True)
        (path / label / f"{at}.png").write_bytes(buffer.getvalue())
    return path


def test_accuracy_on_the_whole_folder_is_measured_and_gated(tmp_path: Path) -> None:
    source = graphs.classifier(tmp_path / "net.onnx")
    run(source, tmp_path / "models", "--scale", 255)
    data = folder_of(tmp_path / "data", load(tmp_path / "models"))
    printed = run(source, tmp_path / "models", "--scale", 255, "--data", data, "--minimum-accuracy", 100)
    assert "100.00% of 24 pictures of data are right" in printed
    origin = load(tmp_path / "models", 2).contract.origin
    assert origin is not None
    assert (origin.accuracy, origin.data, len(origin.data_digest)) == (1.0, "data", 64)
    with pytest.raises(Exception, match=r"accuracy gate: .* below the minimum of 100\.00%; nothing was written"):
        run(source, tmp_path / "models", "--scale", 255, "--mean", 0.9, "--data", data, "--minimum-accuracy", 100)
    (data / "zebra").mkdir()
    shutil.copy(next((data).rglob("*.png")), data / "zebra")
    with pytest.raises(Exception, match="classes is none of the model's 5 labels: 'zebra'"):
        run(source, tmp_path / "models", "--scale", 255, "--data", data)
    assert sorted(path.name for path in (tmp_path / "models" / "pets").iterdir()) == ["1", "2"]


def test_pixels_are_proved_by_a_reference_or_refused(tmp_path: Path) -> None:
    source = graphs.classifier(tmp_path / "net.onnx", end="")
    (tmp_path / "photo.png").write_bytes(photo())
    original = Image.fromarray(load_sample_image("china.jpg"))
    pixels = np.asarray(original.resize((32, 32), Image.Resampling.BILINEAR))[None]
    inputs = (pixels.transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32)
    outputs = source_answers(source)["scores"][None]
    right = tmp_path / "right.npz"
    np.savez(right, paths=np.array(["photo.png"]), pixels=pixels, inputs=inputs, outputs=outputs)
    printed = run(source, tmp_path / "models", "--scale", 255, "--reference", right)
    assert "0 of 3,072 values differ from right.npz on 1 pictures" in printed
    assert "outputs gate: largest difference from right.npz" in printed
    origin = load(tmp_path / "models").contract.origin
    assert origin is not None
    assert origin.pixels.startswith("0 of 3,072 values differ")
    wrong = {
        "pixels": ({"pixels": pixels ^ (np.arange(32) == 3)[:, None].astype(np.uint8)}, r"3\.1.% of the values differ from wrong"),
        "inputs": ({"inputs": inputs * 2}, "the network's numbers differ"),
        "outputs": ({"outputs": outputs[:, ::-1]}, "outputs gate: the answers differ"),
        "shape": ({"pixels": pixels[:, :16]}, r"has pixels \(1, 16, 32, 3\), the server makes \(1, 32, 32, 3\)"),
        "nothing": ({}, "accepted is a file of numpy.savez"),
    }
    for content, message in wrong.values():
        np.savez(tmp_path / "wrong.npz", picture_0=np.frombuffer(photo(), np.uint8), **content)
        with pytest.raises(Exception, match=message):
            run(source, tmp_path / "none", "--scale", 255, "--reference", tmp_path / "wrong.npz")
    assert not (tmp_path / "none").exists()


def test_int8_is_chosen_and_gated_on_the_labelled_pictures(tmp_path: Path) -> None:
    source = graphs.classifier(tmp_path / "net.onnx", end="", opset=11)
    run(source, tmp_path / "models", "--scale", 255)
    data = folder_of(tmp_path / "data", load(tmp_path / "models"), pictures=40)
    arguments = ("--scale", 255, "--data", data, "--precision", "int8", "--max-accuracy-loss", 30)
    printed = run(source, tmp_path / "models", *arguments)
    assert re.search(r"int8 gate: [\d.]+% of 40 pictures are right in int8, 100\.00% in fp32:", printed)
    assert re.search(r"^[0-2] of 2 layers are int8", printed, re.MULTILINE)
    served = load(tmp_path / "models", 2)
    assert (served.precision, len(served.contract.golden)) == ("int8", 3)
    assert (served.contract.measured.accuracy or 0.0) >= 0.7
    model = onnx.load(tmp_path / "models" / "pets" / "2" / "model.onnx")
    assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
    with pytest.raises(Exception, match="--precision int8 needs --data"):
        run(source, tmp_path / "none", "--scale", 255, "--precision", "int8")
    assert not (tmp_path / "none").exists()


def test_fp16_is_made_where_all_values_are_in_its_range(tmp_path: Path) -> None:
    source = graphs.classifier(tmp_path / "net.onnx", end="Softmax")
    run(source, tmp_path / "models", "--scale", 255)
    data = folder_of(tmp_path / "data", load(tmp_path / "models"), pictures=20)
    printed = run(source, tmp_path / "models", "--scale", 255, "--precision", "fp16", "--data", data, "--max-accuracy-loss", 10)
    assert re.search(r"fp16 range gate: the largest value, of .*; 2 weights are fp16", printed)
    assert re.search(r"fp16 gate: [\d.]+% of 20 pictures are right in fp16, 100\.00% in fp32", printed)
    served, fp32 = load(tmp_path / "models", 2), load(tmp_path / "models")
    assert (served.precision, len(served.contract.golden)) == ("fp16", 3)
    found, expected = answers(served)["probabilities"], answers(fp32)["probabilities"]
    assert 0 < np.abs(found - expected).max() < 5e-3
    graph = onnx.load(tmp_path / "models" / "pets" / "2" / "model.onnx").graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert kinds["cw"] == onnx.TensorProto.FLOAT16
    assert {kind for name, kind in kinds.items() if "scale" in name} == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("name", ["cw", "w"])
def test_fp16_is_refused_where_a_value_leaves_its_range(name: str, tmp_path: Path) -> None:
    source = graphs.classifier(tmp_path / "net.onnx", end="Softmax")
    model = onnx.load(source)
    [weight] = [tensor for tensor in model.graph.initializer if tensor.name == name]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(3e4), name))
    onnx.save(model, source)
    with pytest.raises(Exception, match=r"fp16 range gate: '\w+' reaches .* half precision ends at 65504"):
        run(source, tmp_path / "none", "--scale", 255, "--precision", "fp16", "--scores", "probabilities")
    assert not (tmp_path / "none").exists()


def test_the_search_finds_how_the_pictures_were_prepared(tmp_path: Path) -> None:
    source = graphs.classifier(tmp_path / "net.onnx", end="")
    run(source, tmp_path / "models", "--scale", 127.5, "--mean", 1, "--channels", "bgr", "--resize", "pad")
    data = folder_of(tmp_path / "data", load(tmp_path / "models"), pictures=40)
    printed = run(source, tmp_path / "other", "--data", data, "--search-preprocessing")
    assert re.search(r"^ *100\.0% .*--channels bgr --scale 127\.5 --mean 1 --resize pad --filter bilinear", printed, re.MULTILINE)
    assert "the best of 120 ways on 40 pictures" in printed
    assert not (tmp_path / "other").exists()
    with pytest.raises(Exception, match="--search-preprocessing needs --data"):
        run(source, tmp_path / "other", "--search-preprocessing")


@pytest.mark.slow
def test_a_program_of_torch_export_is_imported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 30 * 30, 5)
    ).eval()
    program = torch.export.export(network, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(program, tmp_path / "program.pt2")
    run(tmp_path / "program.pt2", tmp_path / "models", "--scale", 255)
    pixels = np.asarray(Image.fromarray(load_sample_image("china.jpg")).resize((32, 32), Image.Resampling.BILINEAR))
    with torch.inference_mode():
        expected = network(torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None])[0].numpy()
    served = load(tmp_path / "models")
    np.testing.assert_allclose(answers(served)["logits"], expected, atol=1e-5)
    assert served.contract.origin is not None
    assert served.contract.origin.framework.startswith("pytorch")


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    printed = run(graphs.classifier(tmp_path / "net.onnx"), tmp_path / "models", "--scale", 255, "--dry-run")
    assert "parity gate" in printed
    assert "nothing was written" in printed
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("build", "flags", "message"),
    [
        (graphs.dropout_left_on, (), r"graph gate: .* the second time .* it has Dropout in training mode; .* model\.eval\(\)"),
        (graphs.items_change_each_other, (), r"graph gate: the scores of a picture change with the others in its batch"),
        (graphs.top_k, (), r"'values' holds the best 3 of the classes alone, .* --output p takes the tensor before"),
        (graphs.features_first, (), r"several outputs may be the scores \(feat \[N,8\], probs \[N,5\]\): --output NAME says which"),
        (graphs.classifier, ("--output", "logits"), r"--output logits: the graph has no such value; its outputs are scores"),
        (graphs.classifier, ("--output", "a"), r"--output a: it gives \[N,8,30,30\]; one row of numbers"),
        (graphs.classifier, ("--scores", "logits"), r"--scores logits: .* those are probabilities already"),
        (graphs.classifier, ("--scores", "sigmoid"), r"--scores sigmoid is for one unit, and 'scores' has 5"),
        (graphs.classifier, ("--input-shape", "64,64"), r"--input-shape 64,64: the graph takes a height of 32"),
        (graphs.classifier, ("--layout", "nhwc"), r"--layout nhwc: .* which has 32 channels in that layout; 1 and 3 are accepted"),
        (graphs.classifier, ("--mean", "0.5"), r"--mean and --std are in units after --scale"),
        (graphs.classifier, ("--minimum-accuracy", "50"), r"--minimum-accuracy needs --data"),
        (graphs.classifier, ("--resize", "shortest"), r"--resize shortest: accepted are stretch, pad or cover"),
        (graphs.classifier, ("--resize", "short:40"), r"a crop is needed"),
        (graphs.classifier, ("--resize", "short:40", "--crop", "24"), r"--crop 24: the graph takes a height of 32"),
        (graphs.classifier, ("--preset", "tensorflow"), r"preset 'tensorflow' is not known; accepted are torchvision, "),
        (graphs.classifier, ("--preset", "caffe", "--channels", "rgb"), r"--channels contradicts --preset, which says bgr"),
        (graphs.classifier, (), r"nothing says how the pixels of a float32 \[N,3,32,32\] input are scaled: --preset"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused_in_one_line(
    tmp_path: Path, build: graphs.Builder, flags: tuple[str, ...], message: str
) -> None:
    source = build(tmp_path / "net.onnx")
    says_scaling = "--mean" in flags or "--preset" in flags or message.startswith("nothing")
    with pytest.raises(Exception, match=message) as refused:
        run(source, tmp_path / "models", *(() if says_scaling else ("--scale", 255)), *flags)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "models").exists()


def test_files_that_are_no_graphs_are_refused_by_name(tmp_path: Path) -> None:
    whole = graphs.classifier(tmp_path / "net.onnx").read_bytes()
    checkpoint = io.BytesIO()
    with zipfile.ZipFile(checkpoint, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("net.onnx", whole)
    (tmp_path / "empty").mkdir()
    contents: list[tuple[str, bytes | None, str]] = [
        ("missing.onnx", None, "No such file or directory"),
        ("empty", None, "the folder holds no ONNX file; accepted are an ONNX file"),
        ("cut.onnx", whole[:200], "not a valid ONNX model"),
        ("nothing.onnx", b"", "the file is empty"),
        ("text.onnx", b"not a model at all", "not a valid ONNX model"),
        ("state.pth", checkpoint.getvalue(), "a checkpoint of PyTorch, which holds weights and no graph; export the network first"),
        ("state.pkl", pickle.dumps({"weights": 1}), "a pickle, which holds objects of Python and no graph"),
        ("packed.zip", packed.getvalue(), r"a zip archive \(it holds net.onnx: unpack it\)"),
        ("model.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file of Keras"),
        ("model.tflite", b"\x1c\0\0\0TFL3", "a TensorFlow Lite file"),
    ]
    for name, content, message in contents:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(Exception, match=message) as refused:
            run(tmp_path / name, tmp_path / "models", "--scale", 255)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "models").exists()


def test_labels_of_another_number_are_refused(tmp_path: Path) -> None:
    source, labels = graphs.classifier(tmp_path / "net.onnx"), tmp_path / "labels.txt"
    for content, message in (
        ("a\nb\n", "2 labels for the output 'scores', which has 5 classes: 5 labels are accepted"),
        ("a\n\nb\nc\nd\n", "line 2 is empty"),
    ):
        labels.write_text(content)
        with pytest.raises(Exception, match=message):
            run(source, tmp_path / "models", "--scale", 255, "--labels", labels)
    labels.with_suffix(".json").write_text("[1")
    with pytest.raises(Exception, match="not JSON"):
        run(source, tmp_path / "models", "--scale", 255, "--labels", labels.with_suffix(".json"))
    assert not (tmp_path / "models").exists()


def test_a_folder_with_external_weights_is_one_file_afterwards(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    model = onnx.load(graphs.classifier(tmp_path / "net.onnx"))
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    (folder / "config.json").write_text('{"id2label": {"0": "a", "1": "b", "2": "c", "3": "d", "4": "e"}}')
    printed = run(folder, tmp_path / "models", "--scale", 255)
    assert "5 labels from config.json beside the file" in printed
    served = load(tmp_path / "models")
    assert served.labels == ("a", "b", "c", "d", "e")
    assert sorted(path.name for path in (tmp_path / "models" / "pets" / "1").iterdir()) == ["README.md", "model.onnx"]
    (folder / "weights.bin").unlink()
    with pytest.raises(Exception, match=r"weights\.bin"):
        run(folder, tmp_path / "other", "--scale", 255)
    assert not (tmp_path / "other").exists()
