"""Scores, calibration, figures, gates and the model card: by hand where that can be done, else on real models."""

import dataclasses
import hashlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from prometheus_client import CollectorRegistry

from export.cli import export as commands
from export.convert import model_card, pipeline, publish
from export.data import datasets
from export.evaluation import calibration, figures
from export.evaluation import scores as evaluation
from export.evaluation.scores import Scores
from export.training import loop
from service.engine.repository import Repository
from service.errors import UserError
from service.model import session
from service.model.contract import METADATA_KEY, Contract, InputSpec
from service.model.preprocessing import encode_png
from service.observability.metrics import Metrics


def scores(
    truth: list[int], answers: list[int], confidence: float = 0.9, labels: tuple[str, ...] = ("cat", "dog", "owl")
) -> Scores:
    """Answers given with one confidence, what is left of it shared by the other labels."""
    probabilities = np.full((len(truth), len(labels)), (1 - confidence) / (len(labels) - 1), np.float32)
    probabilities[np.arange(len(truth)), answers] = confidence
    return Scores(labels, np.array(truth), probabilities)


# Scores


def test_precision_and_recall_by_hand() -> None:
    found = scores(truth=[0, 0, 0, 0, 1, 1], answers=[0, 0, 0, 1, 1, 0])
    cat, dog, owl = found.classes
    assert (cat.label, cat.items, cat.precision, cat.recall, cat.f1) == ("cat", 4, 3 / 4, 3 / 4, 3 / 4)
    assert (dog.label, dog.items, dog.precision, dog.recall, dog.f1) == ("dog", 2, 1 / 2, 1 / 2, 1 / 2)
    assert (owl.items, owl.precision, owl.recall, owl.f1) == (0, None, None, None), "never shown, never answered"
    assert found.confusion.tolist() == [[3, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert (found.correct, found.items, found.accuracy) == (4, 6, 4 / 6)
    assert found.hardest is dog
    assert found.confused(5) == [("cat", "dog", 1), ("dog", "cat", 1)]
    assert scores([0, 1], [0, 1]).confused(5) == []
    assert found.cross_entropy == pytest.approx(-(4 * np.log(0.9) + 2 * np.log(0.05)) / 6, rel=1e-6)


def test_cross_entropy_by_hand() -> None:
    found = Scores(("cat", "dog"), np.array([0, 1]), np.array([[1e-20, 1.0], [0.1, 0.9]], np.float32))
    assert found.cross_entropy == pytest.approx((20 * np.log(10) - np.log(0.9)) / 2, rel=1e-6)


def test_the_most_confident_mistakes_come_first() -> None:
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], np.float32)
    found = Scores(("a", "b"), np.array([1, 1, 1, 0]), probabilities)
    assert found.mistakes(10).tolist() == [1, 3, 0]
    assert found.mistakes(2).tolist() == [1, 3]


def test_wilson_interval_against_published_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 and 0 of 20.
    assert evaluation.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert evaluation.wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert evaluation.wilson_interval(20, 20)[1] == 1.0


# Calibration


def test_calibration_error_by_hand() -> None:
    """Bins of a quarter: three answers of confidence 0.875, two of them right, and two of 0.75, both right."""
    probabilities = np.array([[0.875, 0.125], [0.875, 0.125], [0.125, 0.875], [0.25, 0.75], [0.75, 0.25]], np.float32)
    found = calibration.reliability(probabilities, np.array([0, 0, 0, 1, 0]), bins=4)
    assert found.items.tolist() == [0, 0, 2, 3], "a bin holds its upper edge: 0.75 is in the third"
    assert found.accuracy.tolist() == pytest.approx([0, 0, 1, 2 / 3])
    assert found.confidence.tolist() == pytest.approx([0, 0, 0.75, 0.875])
    assert found.error == pytest.approx((3 * (0.875 - 2 / 3) + 2 * (1 - 0.75)) / 5)


def test_calibration_error_of_certain_answers() -> None:
    certain = np.eye(4, dtype=np.float32)
    assert calibration.reliability(certain, np.arange(4)).error == 0.0
    assert calibration.reliability(certain, np.array([1, 2, 3, 0])).error == 1.0


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_the_temperature_recovers_a_known_scale(scale: float) -> None:
    """Classes drawn from softmax(z): of `scale` * z the temperature is `scale`."""
    random = np.random.default_rng(0)
    z = random.normal(size=(20_000, 5)) * 2
    probabilities = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    labels = (random.random((len(z), 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
    logits = (scale * z).astype(np.float32)
    found = calibration.fit_temperature(logits, labels)
    assert found == pytest.approx(scale, rel=0.03)
    served = Scores(tuple("abcde"), labels, torch.from_numpy(logits / found).softmax(1).numpy(), found)
    assert served.reliability.error < 0.015
    if scale != 1.0:
        assert served.reliability_before.error > 0.1


def test_a_temperature_that_the_data_do_not_determine_is_one() -> None:
    labels = np.array([0, 1, 2, 1])
    every_one_right = 10 * np.eye(3, dtype=np.float32)[labels]
    assert calibration.fit_temperature(every_one_right, labels) == 1.0
    assert calibration.fit_temperature(-every_one_right, labels) == 1.0, "worse than chance"
    assert calibration.fit_temperature(np.full((4, 3), 7.0, np.float32), labels) == 1.0, "the same for every picture and label"
    assert calibration.fit_temperature(1e30 * every_one_right, labels) == 1.0


def test_probabilities_before_the_temperature() -> None:
    logits = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0], [500.0, 0.0, -500.0]])
    tempered = (logits / 2.5).softmax(1).numpy()
    np.testing.assert_allclose(calibration.without_temperature(tempered, 2.5), logits.softmax(1).numpy(), atol=1e-6)


# Figures


@pytest.mark.parametrize("classes", [2, 100, 130])
def test_figures_of_few_and_many_classes(classes: int, tmp_path: Path) -> None:
    labels = ("$x$ < $y", "猫", *(f"class {index} with a name that is long" for index in range(2, classes)))
    random = np.random.default_rng(0)
    truth = random.integers(0, classes, 500)
    probabilities = random.dirichlet(np.full(classes, 0.1), 500).astype(np.float32)
    spec = InputSpec(height=8, width=6, channels=3)
    part = datasets.Part(
        np.empty((0, *spec.shape), np.uint8), truth, lambda index: encode_png(np.full((9, 7, 3), index % 256, np.uint8))
    )
    found = Scores(labels, truth, probabilities, temperature=1.5)
    assert figures.draw(found, part, spec, tmp_path) == ["confusion.png", "reliability.png", "mistakes.png"]
    for name in ("confusion.png", "reliability.png", "mistakes.png"):
        picture = Image.open(tmp_path / name)
        assert 250 <= min(picture.size) <= max(picture.size) <= 2000
        assert len(picture.convert("L").getcolors() or []) > 10, "something is drawn"


def test_labels_that_are_cut_can_be_told_apart() -> None:
    given = {
        "exactly-twenty-chars": "exactly-twenty-chars",
        "Chesapeake-Bay-retriever dog": "Chesapeake…iever dog",
        "Chesapeake-Bay-retriever cat": "Chesapeake…iever cat",
        30 * "a": "aaaaaaaaaa…aaaaaaaaa (3)",
        31 * "a": "aaaaaaaaaa…aaaaaaaaa (4)",
        "日本語のとても長いラベルの名前": "日本語のと…ルの名前",
    }
    assert figures._shortened(list(given), 20) == list(given.values())


def test_without_a_mistake_there_is_no_picture_of_them(tmp_path: Path) -> None:
    part = datasets.Part(np.empty((0, 1, 1, 1), np.uint8), np.array([0, 1]), lambda index: b"")
    names = figures.draw(scores([0, 1], [0, 1]), part, InputSpec(height=1, width=1, channels=1), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names) == ["confusion.png", "reliability.png"]


# Measuring


def test_measuring_goes_by_the_encoded_pictures_and_a_batch_at_a_time(model_file: Path, digits: datasets.Dataset) -> None:
    served = session.load_model(model_file, "cpu", 1)
    test = dataclasses.replace(digits.test, pixels=np.empty((0, 28, 28, 1), np.uint8))
    steps: list[tuple[int, int]] = []
    found = evaluation.measure(served, test, digits.labels, lambda *counts: steps.append(counts))
    assert found.accuracy == served.contract.training.accuracy
    assert found.reliability.error == pytest.approx(served.contract.training.calibration_error)
    assert steps == [(256, 360), (360, 360)]
    photos = list(evaluation.batches(10_000, InputSpec(height=224, width=224, channels=3)))
    assert [photos[0].start, photos[-1].stop] == [0, 10_000]
    assert max((batch.stop - batch.start) * 224 * 224 * 3 for batch in photos) <= 1 << 24
    assert len(list(evaluation.batches(3, InputSpec(height=4096, width=4096, channels=3)))) == 3


def test_labels_may_come_in_another_order_but_not_be_others(model_file: Path, digits: datasets.Dataset) -> None:
    served = session.load_model(model_file, "cpu", 1)
    reversed_labels = tuple(reversed(digits.labels))
    mirrored = dataclasses.replace(digits.test, labels=9 - digits.test.labels)
    assert evaluation.measure(served, mirrored, reversed_labels).accuracy == served.contract.training.accuracy
    with pytest.raises(UserError, match=r"only the data has 'ten'; only the model has '0'$"):
        evaluation.measure(served, digits.test, ("ten", *digits.labels[1:]))
    with pytest.raises(UserError, match=r"the data's 8 labels are not the model's 10: only the model has '8', '9'$"):
        evaluation.measure(served, digits.test, digits.labels[:8])


def test_a_picture_that_cannot_be_decoded_and_a_part_without_any(model_file: Path, digits: datasets.Dataset) -> None:
    served = session.load_model(model_file, "cpu", 1)
    broken = dataclasses.replace(digits.test, encoded=lambda index: b"text" if index == 7 else digits.test.encoded(index))
    with pytest.raises(UserError, match="picture 7 of the data: not an image"):
        evaluation.measure(served, broken, digits.labels)
    empty = datasets.Part(np.empty((0, 28, 28, 1), np.uint8), np.empty(0, np.int64), lambda index: b"")
    with pytest.raises(UserError, match="no picture in this part"):
        evaluation.measure(served, empty, digits.labels)


# Gates


def report(wrong: int = 1, **changes: float) -> evaluation.Report:
    truth = [0] * 100
    values = {"reference_accuracy": 0.99, "max_difference": 1e-6, "same_top1": 1.0, "changed_labels": 0}
    return evaluation.Report(scores(truth, [1] * wrong + [0] * (100 - wrong)), **(values | changes))  # type: ignore[arg-type]


def gates(found: evaluation.Report, minimum: float) -> None:
    evaluation.check_parity(found)
    evaluation.check_accuracy(found, minimum)


def test_gates_pass_what_is_right() -> None:
    gates(report(), 0.98)
    gates(report(same_top1=0.99), 0.98)  # ties alone
    evaluation.check_accuracy(report(wrong=2), minimum=0.0, max_loss=0.01)


@pytest.mark.parametrize(
    ("found", "minimum", "message"),
    [
        (report(max_difference=2e-4), 0.0, "parity gate: ONNX and PyTorch differ by 0.0002"),
        (report(max_difference=float("nan")), 0.0, "parity gate"),
        (report(same_top1=0.99, changed_labels=1), 0.0, "agree on 99.00% of 100 pictures; 1 labels changed"),
        (report(wrong=2), 0.0, r"98.00% as served against 99.00% in PyTorch, on 100 pictures: 1.00 points lost \(allowed: 0.5\)"),
        (report(), 0.995, "accuracy gate: 99.00% on 100 pictures is below the minimum of 99.50%"),
    ],
)
def test_gates_refuse_with_the_figures(found: evaluation.Report, minimum: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        gates(found, minimum)


def last_layer(checkpoint: loop.Checkpoint) -> torch.nn.Linear:
    return [layer for layer in checkpoint.network.modules() if isinstance(layer, torch.nn.Linear)][-1]


def test_a_file_that_answers_otherwise_than_the_network_is_not_published(
    run: Path, digits: datasets.Dataset, tmp_path: Path
) -> None:
    """Parity fails for real: the graph is made from other weights than the checkpoint that it is compared with."""
    checkpoint = loop.load_checkpoint(run)
    graph = pipeline.to_onnx(checkpoint, 1.7)
    path = tmp_path / "model.onnx"
    publish.write(graph, pipeline._contract(checkpoint, digits, "digits", 1.7), path)
    evaluation.check_parity(pipeline.evaluate(path, checkpoint, digits))
    with torch.no_grad():
        last_layer(checkpoint).bias[3] += 1.0
    with pytest.raises(UserError, match="parity gate"):
        evaluation.check_parity(pipeline.evaluate(path, checkpoint, digits))


class SigmoidHead(torch.nn.Module):
    """Undecided about everything, but for 1e-5: logits [0, z]."""

    head = "sigmoid"

    def __init__(self, features: int) -> None:
        super().__init__()
        self.last = torch.nn.Linear(features, 1)
        torch.nn.init.zeros_(self.last.weight)
        torch.nn.init.constant_(self.last.bias, 1e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.last(x.flatten(1))
        return torch.cat([torch.zeros_like(z), z], dim=1)


def test_a_tie_may_go_either_way_and_a_lead_may_not(run: Path, digits: datasets.Dataset, tmp_path: Path) -> None:
    """A sigmoid head exported, and compared with networks whose answers differ from its own by less than the parity gate allows."""
    two = dataclasses.replace(
        digits, labels=("even", "odd"), **{
            name: dataclasses.replace(getattr(digits, name), labels=getattr(digits, name).labels % 2)
            for name in ("training", "validation", "test")
        },
    )  # fmt: skip
    checkpoint = dataclasses.replace(loop.load_checkpoint(run), network=SigmoidHead(28 * 28).eval(), labels=two.labels)
    exported = pipeline.export(checkpoint, two, tmp_path, "parity")
    served = session.load_model(exported.path, "cpu", 1)
    assert served.contract.head == "sigmoid"
    assert exported.report.same_top1 == 1.0

    def network(lead: float) -> evaluation.Network:
        """Answers `even`, by so much."""
        return lambda pixels: np.tile(np.array([0.5 + lead / 2, 0.5 - lead / 2], np.float32), (len(pixels), 1))

    tie = evaluation.compare(served, network(5e-5), two.test, two.labels)
    assert (tie.same_top1, tie.changed_labels) == (0.0, 0)
    evaluation.check_parity(tie)
    lead = evaluation.compare(served, network(1.5e-4), two.test, two.labels)
    assert lead.max_difference < evaluation.PARITY
    assert lead.changed_labels == 360
    with pytest.raises(UserError, match="360 labels changed"):
        evaluation.check_parity(lead)


# Export


class Residual(torch.nn.Module):
    """A block with batch normalisation and a skip connection, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.normalisation = torch.nn.BatchNorm2d(8)
        self.last = torch.nn.Linear(8 * 7 * 7, 10)
        for values in (self.normalisation.running_mean, self.normalisation.bias):
            torch.nn.init.normal_(cast(torch.Tensor, values))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.normalisation(self.convolution(x)) + x)
        return cast(torch.Tensor, self.last(torch.nn.functional.avg_pool2d(y, 4).flatten(1)))


def test_a_residual_network_with_batch_normalisation_is_exported(run: Path, digits: datasets.Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    checkpoint = dataclasses.replace(loop.load_checkpoint(run), network=Residual().eval())
    exported = pipeline.export(checkpoint, digits, tmp_path, "residual", calibrate=False)
    path = exported.path
    assert exported.parity.max_difference < 1e-5
    assert session.load_model(path, "cpu", 1).contract.training.temperature == 1.0
    assert "No temperature is applied" in (path.parent / "README.md").read_text()


def test_a_network_that_is_three_times_too_sure_gets_three_times_the_temperature(
    run: Path, model_file: Path, digits: datasets.Dataset, tmp_path: Path
) -> None:
    checkpoint = loop.load_checkpoint(run)
    before = session.load_model(model_file, "cpu", 1)
    temperature = before.contract.training.temperature
    assert temperature != 1.0, "the validation part determines one"
    last = last_layer(checkpoint)
    with torch.no_grad():
        last.weight.mul_(3)
        last.bias.mul_(3)
    steps: list[tuple[Any, ...]] = []

    def on_progress(*step: Any) -> None:
        steps.append(step)

    exported = pipeline.export(checkpoint, digits, tmp_path, "sure", run=run, on_progress=on_progress)
    path, found = exported.path, exported.report
    after = session.load_model(path, "cpu", 1)
    assert after.contract.training.temperature == pytest.approx(3 * temperature, rel=1e-3)
    assert found.scores.reliability_before.error != found.scores.reliability.error
    pixels = digits.test.pixels[:64]
    np.testing.assert_allclose(after.probabilities(pixels), before.probabilities(pixels), atol=1e-3)
    logits = after._run(["logits"], {"image": pixels})[0]
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(1).numpy(), after.probabilities(pixels), atol=1e-6)
    assert ("fitting the temperature", 180, 180) in steps
    assert ("comparing with PyTorch", 360, 360) in steps
    assert (path.parent / "curves.png").read_bytes() == (run / "curves.png").read_bytes()
    assert "](curves.png)" in (path.parent / "README.md").read_text()


def test_data_that_are_not_those_of_the_training_are_refused(run: Path, digits: datasets.Dataset, tmp_path: Path) -> None:
    checkpoint = loop.load_checkpoint(run)
    other = dataclasses.replace(digits, labels=(*digits.labels[:9], "nine"))
    with pytest.raises(UserError, match="only the data has 'nine'; only the model has '9'"):
        pipeline.export(checkpoint, other, tmp_path / "models", "digits")
    small = dataclasses.replace(digits, input=InputSpec(height=8, width=8, channels=1))
    with pytest.raises(UserError, match=r"takes pictures of 28x28x1 \(stretch\), the data come as 8x8x1"):
        pipeline.export(checkpoint, small, tmp_path / "models", "digits")
    assert checkpoint.data_digest == "digits"
    with pytest.raises(UserError, match="digits is not what the network was trained on: another data set, or pictures were added"):
        pipeline.export(checkpoint, dataclasses.replace(digits, digest="mnist"), tmp_path / "models", "digits")
    assert not (tmp_path / "models").exists()


def test_golden_samples_are_lossless_and_small(digits: datasets.Dataset) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    photo, scan, large = io.BytesIO(), io.BytesIO(), encode_png(noise)
    Image.fromarray(noise).save(photo, "JPEG")
    Image.new("1", (4200, 5940)).save(scan, "PNG")
    assert len(large) > pipeline.GOLDEN_BYTES > len(digits.test.encoded(0))
    assert len(scan.getvalue()) < pipeline.GOLDEN_BYTES, "few bytes, and more pixels than a server decodes for a golden sample"
    pictures = ((digits.test.encoded(0), True), (photo.getvalue(), False), (large, False), (scan.getvalue(), False))
    for encoded, kept in pictures:
        part = dataclasses.replace(digits.test, encoded={0: encoded}.__getitem__)
        golden = pipeline._golden_picture(part, 0)
        assert (golden == encoded) is kept
        if not kept:
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(golden), formats=["PNG"])), digits.test.pixels[0, :, :, 0])


def test_the_card_says_what_the_file_is_and_a_server_passes_it_over(model_file: Path, digits: datasets.Dataset) -> None:
    card = (model_file.parent / "README.md").read_text()
    contract = session.load_model(model_file, "cpu", 1).contract
    assert card.startswith("# digits\n")
    assert hashlib.sha256(model_file.read_bytes()).hexdigest() in card
    assert f"{contract.training.accuracy:.2%} (" in card
    assert f"| calibration error | {contract.training.calibration_error:.2%} |" in card
    assert f"{contract.training.temperature:.3f}, divides the logits" in card
    assert "| training | 1,257 | the weights |" in card
    assert "| learning\\_rate | 0.002 |" in card
    assert len(re.findall(r"^\| \d \| 3\d \| [\d.]+% \|", card, re.MULTILINE)) == 10, "a row for each digit"
    shown = re.findall(r"\]\((\w+\.png)\)", card)
    assert sorted(["README.md", "model.onnx", *shown]) == sorted(path.name for path in model_file.parent.iterdir())
    repository = Repository(model_file.parents[2], "cpu", Metrics(CollectorRegistry()))
    repository.start()
    try:
        assert {name: served.version for name, [served] in repository.served.items()} == {"digits": 1}
    finally:
        repository.stop()


def test_the_card_shows_names_as_they_are(model_file: Path) -> None:
    contract = session.load_model(model_file, "cpu", 1).contract.model_copy(update={"labels": ("golden_retriever", "a|b", "owl")})
    overview = model_card._overview(contract, scores([0, 1, 2], [0, 1, 2]), "1f", 10)
    assert r"| labels | golden\_retriever, a\|b, owl |" in overview


def test_the_commit_is_of_convoys_own_clone_or_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(__file__).parents[3]
    assert pipeline._commit() == (git(own, "rev-parse", "HEAD") if (own / ".git").exists() else None)
    installed = tmp_path / "site-packages" / "export" / "convert/pipeline.py"
    installed.parent.mkdir(parents=True)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "--allow-empty", "--message", "theirs")
    monkeypatch.setattr(pipeline, "__file__", str(installed))
    assert pipeline._commit() is None


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


# The command


def with_contract(model_file: Path, path: Path, **changes: object) -> Path:
    """A copy of a model file with another contract."""
    graph = onnx.load(model_file)
    contract = json.loads(graph.metadata_props[0].value) | changes
    del graph.metadata_props[:]
    if changes:
        graph.metadata_props.add(key=METADATA_KEY, value=json.dumps(contract))
    onnx.save_model(graph, path)
    return path


def evaluate(*arguments: str | Path) -> str:
    """What `convoy evaluate` prints on stdout."""
    result = CliRunner().invoke(commands.evaluate, [*map(str, arguments)], catch_exceptions=False, standalone_mode=False)
    return result.stdout


def test_evaluate_measures_the_held_out_pictures(model_file: Path, tmp_path: Path) -> None:
    training_facts = session.load_model(model_file, "cpu", 1).contract.training
    shown = evaluate(model_file, "--data", "digits", "--output", tmp_path / "out")
    assert "on the test part of digits" in shown
    assert f"accuracy as served: {training_facts.accuracy:.2%} (" in shown
    assert "taken most often for another: " in shown
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert content["accuracy"] == training_facts.accuracy
    assert content["calibration_error"] == pytest.approx(training_facts.calibration_error)
    assert np.trace(content["confusion"]) == content["correct"]
    assert sum(row["items"] for row in content["classes"]) == content["items"] == 360
    names = {"evaluation.json", "confusion.png", "reliability.png", "mistakes.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert json.loads(evaluate(model_file, "--data", "digits", "--json")) == content
    assert json.loads(evaluate(model_file, "--data", "digits", "--json", "--part", "training"))["items"] == 1257


def test_evaluate_says_if_the_data_have_changed(model_file: Path, tmp_path: Path) -> None:
    facts = json.loads(onnx.load(model_file).metadata_props[0].value)["training"]
    assert facts["data_digest"] == "digits"
    other = with_contract(model_file, tmp_path / "other.onnx", training=facts | {"data_digest": "1f"})
    said = "digits is not what it was when the model was trained"
    assert said in " ".join(evaluate(other, "--data", "digits").split())
    assert said not in " ".join(evaluate(model_file, "--data", "digits").split())


def test_evaluate_refuses_what_cannot_be_measured(model_file: Path, tmp_path: Path) -> None:
    def refused(*arguments: str | Path) -> str:
        with pytest.raises(UserError) as error:
            evaluate(*arguments)
        return str(error.value)

    assert "model.onnx: cannot read the model file: No such file" in refused(tmp_path / "model.onnx", "--data", "digits")
    foreign = with_contract(model_file, tmp_path / "foreign.onnx")
    assert re.search(r"foreign\.onnx: no contract", refused(foreign, "--data", "digits"))
    words = with_contract(model_file, tmp_path / "words.onnx", labels=["zero", *"123456789"])
    assert "only the data has '0'; only the model has 'zero'" in refused(words, "--data", "digits")
    off = Contract.from_json(onnx.load(model_file).metadata_props[0].value).model_dump(mode="json", by_alias=True)["golden"]
    off[0]["probabilities"][0] += 0.1
    wrong = with_contract(model_file, tmp_path / "wrong.onnx", golden=off)
    assert "golden sample 0: off by 0.1" in refused(wrong, "--data", "digits")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "nothing is overwritten" in refused(model_file, "--data", "digits", "--output", tmp_path / "full")
    assert "'nowhere'" in refused(model_file, "--data", "nowhere")


def test_evaluate_needs_neither_pytorch_nor_onnx(model_file: Path) -> None:
    program = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        assert name.split('.')[0] not in {'torch', 'onnx', 'onnxscript', 'grpc'}, name\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from export.cli.export import evaluate\n"
        "evaluate()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, model_file, "--data", "digits", "--json"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["items"] == 360
