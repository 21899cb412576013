"""Mistakes of those who import a model for the first time: each is refused, or warned of, in a line that says the way out."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from export.cli.export import export
from export.cli.import_model import import_model
from export.importing import gates
from export.importing.file_metadata import FileMetadata
from export.importing.labels import read_labels_file
from export.importing.network_input import NetworkInput
from export.importing.recipe_options import RecipeOptions
from export.importing.reference import Reference, check_pixels, read_reference
from export.importing.score_head import SCORES, ScoreHead, Scores, decide
from export.importing.source import ACCEPTED, read_source
from export.importing.source_graph import SourceGraph
from export.importing.understanding import read_graph
from export.importing.wrapping import WrappedHead
from export.inspection.model_file import inspect, read_model
from service.errors import UserError
from tests.unit.importing import foreign_graphs as graphs
from tests.unit.importing.test_import_model import run

NETWORK = NetworkInput("x", np.dtype(np.float32), "nchw", 32, 32, 3)


def softmax(z: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(z) / np.exp(z).sum(axis=1, keepdims=True))


def sigmoid(z: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-z)))


@pytest.mark.parametrize("asked", SCORES)
@pytest.mark.parametrize(
    ("end", "units"),
    [
        ("Softmax", 5),
        ("LogSoftmax", 5),
        ("Sigmoid", 5),
        ("HardSigmoid", 5),
        ("Log", 5),
        ("Sigmoid", 1),
        ("HardSigmoid", 1),
        ("Log", 1),
    ],
)
def test_no_second_activation_goes_over_what_is_a_probability(end: str, units: int, asked: Scores) -> None:
    """Whatever is said of an output: either it is refused, or its probabilities are those that the graph computed."""
    z = np.random.default_rng(0).normal(0, 2, (20, units))
    hard = np.clip(0.2 * z + 0.5, 0, 1)
    meant = {"Softmax": softmax(z), "LogSoftmax": softmax(z), "Sigmoid": sigmoid(z), "HardSigmoid": hard, "Log": sigmoid(z)}[end]
    raw = (np.log(meant) if "Log" in end else meant).astype(np.float32)
    try:
        head = decide("p", raw, end, asked, None)
    except UserError:
        assert asked != "auto" or end == "Log"
        return
    found = head.probabilities(raw)[:, -units:]
    if (end, asked) == ("Log", "logits") and units > 1:  # of numbers above 0 their share of the sum
        meant = meant / meant.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, meant, atol=1e-5)


@pytest.mark.parametrize(("end", "right"), [("Sigmoid", "multilabel"), ("Softmax", "probabilities"), ("LogSoftmax", "log-prob")])
def test_scores_that_are_no_logits_are_refused_as_such(end: str, right: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=f"--scores logits: .* after a {end}: those are .*probabilities.*; auto or {right}.* is right"
    ):
        run(graphs.classifier(tmp_path / "net.onnx", end=end), tmp_path / "models", "--scale", 255, "--scores", "logits")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("scale", "mean", "std", "said"),
    [
        (255, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "after --scale 255 pixels are 0 to 1; .* give --scale 1"),
        (255, (123.675,), None, r"--mean 123\.675: after --scale 255"),
        (127.5, (127.5,), None, "--mean 127.5: after --scale 127.5 pixels are 0 to 2; "),
        (255, None, (58.395, 57.12, 57.375), "--std 58.395,57.12,57.375: after --scale 255 pixels are 0 to 1"),
        (
            1,
            (0.485, 0.456, 0.406),
            (0.229, 0.224, 0.225),
            "after --scale 1 pixels are 0 to 255, and become up to 1,1..; give --scale 255",
        ),
        (1, (400.0,), None, "numbers up to 255 are accepted"),
        (255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), ""),
        (1, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), ""),
        (127.5, (1.0,), (1.0,), ""),
        (1, (103.939, 116.779, 123.68), None, ""),
        (1, (0.0,), (256.0,), ""),
        (256, (0.5,), (0.5,), ""),
        (1, None, None, ""),
    ],
)
def test_mean_and_std_are_in_the_units_of_the_scale(
    scale: float, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, said: str
) -> None:
    options = RecipeOptions(scale=scale, mean=mean, std=std)
    if said:
        with pytest.raises(UserError, match=said):
            options.recipe(NETWORK, FileMetadata())
    else:
        assert options.recipe(NETWORK, FileMetadata()).scale == scale


@pytest.mark.parametrize(("end", "units"), [("", 5), ("Softmax", 5), ("Sigmoid", 5), ("Sigmoid", 1)])
def test_a_network_that_does_not_see_the_pictures_is_warned_of(end: str, units: int, tmp_path: Path) -> None:
    source = graphs.classifier(tmp_path / "net.onnx", end=end, classes=units)
    model, _, _ = read_graph(read_source(source))
    activation = "softmax" if end in ("", "Softmax") else "multilabel" if units > 1 else "sigmoid"
    head = WrappedHead(ScoreHead("scores", units, activation, "probabilities" if end else "logits"), "probabilities")  # type: ignore[arg-type]
    pictures = np.random.default_rng(0).integers(0, 256, (12, 1, 1, 3)) * np.ones((12, 32, 32, 3))
    for scale, is_blind in ((255, False), (255 * 255, True)):
        recipe = RecipeOptions(scale=scale).recipe(NETWORK, FileMetadata())
        graph = SourceGraph(model, NETWORK, recipe, ["scores"])
        gate = gates.check_effect([head], graph, pictures.astype(np.uint8))
        assert (gate is not None) == is_blind
        assert gate is None or (not gate.proved and "all but the same scores" in gate.seen)


def test_a_blind_import_says_so(tmp_path: Path) -> None:
    source = graphs.classifier(tmp_path / "net.onnx")
    assert "pictures gate: WARNING: 18 different pictures" in run(source, tmp_path / "m", "--scale", 65025, "--dry-run")
    assert "WARNING" not in run(source, tmp_path / "m", "--scale", 255, "--dry-run")


@pytest.mark.parametrize("command", [export, import_model])
def test_a_fraction_for_a_percentage_is_refused(command: object) -> None:
    for value, said in (("0.7", "0.7 would be 0.7 %: a percentage is accepted, 0 or above 1, such as 70"), ("1", "such as 100")):
        words = ["source", "--repository", "models", "--name", "pets", "--minimum-accuracy", value]
        result = CliRunner().invoke(command, words)  # type: ignore[arg-type]
        assert result.exit_code == 2
        assert said in " ".join(result.stderr.replace("│", " ").split())


def test_a_reference_that_is_none_gets_no_advice_to_allow_pickles(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    np.save(tmp_path / "pixels.npy", np.zeros(3))
    np.savez(tmp_path / "objects.npz", paths=np.array(["a.png"], dtype=object), pixels=np.zeros((1, 2, 2, 3)))
    np.savez(tmp_path / "pixels.npz", paths=np.array(["a.png"]), pixels=np.array([None]))
    np.savez(tmp_path / "bytes.npz", paths=np.array([b"a.png"]), pixels=np.zeros((1, 2, 2, 3)))
    for name, said in (
        ("labels.txt", r"it is no \.npz file; accepted is a file of numpy\.savez"),
        ("pixels.npy", r"it is no \.npz file"),
        ("objects.npz", r"paths holds objects of Python, which are not read; np\.array\(names, dtype=str\) is accepted"),
        ("pixels.npz", "pixels holds objects of Python, which are not read; an array of numbers is accepted"),
        ("bytes.npz", r"paths is \|S5; np\.array\(names, dtype=str\) is accepted"),
    ):
        with pytest.raises(UserError, match=said) as refused:
            read_reference(tmp_path / name)
        assert "pickle" not in str(refused.value)


def test_a_reference_of_outputs_alone_does_not_prove_pixels() -> None:
    recipe = RecipeOptions(scale=255).recipe(NETWORK, FileMetadata())
    outputs = Reference("right.npz", (b"",), outputs=np.zeros((1, 5)))
    seen = check_pixels(outputs, None, [], NETWORK, recipe)
    assert (seen.proved, seen.seen) == (
        False,
        "not proved: right.npz has outputs, and neither pixels nor inputs that the training saw",
    )
    assert "no --reference" in check_pixels(None, None, [], NETWORK, recipe).seen


def test_a_label_file_is_explained_once(tmp_path: Path) -> None:
    for name, content, said in (
        ("hole.txt", "a\n\nb\n", "line 2 is empty"),
        ("empty.txt", "", "empty.txt is empty"),
        ("blank.txt", "\n \n", "blank.txt is empty"),
        ("empty.json", " ", "empty.json is empty"),
        ("Cat,Eel,dog,fox", None, "No such file or directory; a file of labels is meant"),
        ("missing.json", None, "No such file or directory; a file of labels is meant"),
    ):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=said) as refused:
            read_labels_file(tmp_path / name)
        assert str(refused.value).count("one label a line is accepted") == 1


def test_what_an_import_adds_is_no_parameter(tmp_path: Path) -> None:
    source = graphs.classifier(tmp_path / "net.onnx", end="Sigmoid")
    renamed = onnx.load(source)
    for node in renamed.graph.node:
        node.input[:] = ["convoy_w" if name == "w" else name for name in node.input]
    next(tensor for tensor in renamed.graph.initializer if tensor.name == "w").name = "convoy_w"
    onnx.save(renamed, tmp_path / "renamed.onnx")
    for name in ("net", "renamed"):
        flags = ("--scale", 255, "--mean", "0.5,0.45,0.4", "--std", "0.25,0.22,0.2")
        run(tmp_path / f"{name}.onnx", tmp_path / "models", *flags, name=name)
        before, after = inspect(tmp_path / f"{name}.onnx"), inspect(tmp_path / "models" / name / "1" / "model.onnx")
        assert (after.parameters, after.macs) == (before.parameters, before.macs)


def test_what_is_no_graph_is_told_from_what_was_cut_short(tmp_path: Path) -> None:
    whole = graphs.classifier(tmp_path / "net.onnx").read_bytes()
    for name, content in (
        ("labels.txt", b"cat\ndog\n"),
        ("cat.png", b"\x89PNG\r\n\x1a\n" + bytes(99)),
        ("a.jpg", b"\xff\xd8\xff\xe0JFIF"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="not a valid ONNX model") as refused:
            read_source(tmp_path / name)
        assert str(refused.value).endswith(ACCEPTED)
        assert "cut short" not in str(refused.value)
    for length in range(1, len(whole) - 40, 7):  # the last bytes are behind the graph
        (tmp_path / "cut.onnx").write_bytes(whole[:length])
        with pytest.raises(UserError, match="not a valid ONNX model") as refused:
            read_model(tmp_path / "cut.onnx")
        assert "the file is cut short" in str(refused.value) or _can_be_parsed(whole[:length])


def _can_be_parsed(content: bytes) -> bool:
    """Whether a file ends between two fields, as if it had no more."""
    try:
        onnx.ModelProto.FromString(content)
    except Exception:  # noqa: BLE001 - of protobuf's parser
        return False
    return True
