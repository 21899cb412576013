"""From a checkpoint to a version in a model repository: one ONNX file with its contract, written only if it passes the gates.

The gates, on the whole test part: the file answers as PyTorch does (parity), and answers encoded pictures as well as PyTorch
answers decoded ones (accuracy, through the preprocessing and the model code that serve it). Beside the file stand its model card
and the pictures that the card shows; a server passes them over.
"""

import importlib.metadata
import logging
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from export import evaluation, figures, training
from export.calibration import fit_temperature
from export.data import Dataset, Part
from export.model_card import CARD, model_card
from export.training import Checkpoint
from service import model
from service.contract import INPUT_NAME, LOGITS_NAME, METADATA_KEY, PROBABILITIES_NAME, Contract, Golden, ProviderName, Training
from service.errors import LoadError, UserError
from service.preprocessing import encode_png
from service.repository_layout import MODEL_FILE, check_model_name, model_path, next_version

GOLDEN_SAMPLES = 4
GOLDEN_BYTES = 16 * 1024
TOLERANCE: dict[ProviderName, float] = {"cpu": 1e-4, "cuda": 5e-3}

Progress = Callable[[str, int, int], None]
"""Called with: what is being done, how many pictures of it are done, and of how many; 0 of 0 if nobody counts."""

_PNG = b"\x89PNG\r\n\x1a\n"
_VERSIONS = ("convoy", "torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")


class Served(nn.Module):
    """What is exported: pixels uint8[N,H,W,C] in, probabilities and logits float32[N,K] out."""

    def __init__(self, checkpoint: Checkpoint, temperature: float) -> None:
        super().__init__()
        self.network = checkpoint.network
        self.temperature = temperature
        self.register_buffer("mean", torch.tensor(checkpoint.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(checkpoint.std)[:, None, None])
        self.mean: torch.Tensor
        self.std: torch.Tensor

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalisation, layout and temperature are in here, so that no client can get them wrong."""
        x = image.permute(0, 3, 1, 2).to(torch.float32)  # (N, C, H, W)
        logits = self.network((x - self.mean) / self.std)  # (N, K)
        if self.temperature != 1.0:
            logits = logits / self.temperature
        return logits.softmax(dim=1), logits


def export(
    checkpoint: Checkpoint,
    dataset: Dataset,
    repository: Path,
    name: str,
    minimum_accuracy: float = 0.0,
    calibrate: bool = True,
    run: Path | None = None,
    on_step: Progress = lambda step, done, total: None,
) -> tuple[Path, evaluation.Report]:
    """Exports a checkpoint as the next version of model `name`; nothing is written to the repository if a gate fails.

    Args:
        checkpoint: the trained network.
        dataset: the data it was trained on. The temperature is fitted on its validation part, the gates look at its test part.
        repository: the folder of models; made if it is missing.
        name: the model's name.
        minimum_accuracy: fraction of the test part that must be right, whatever PyTorch reached.
        calibrate: fit a temperature; otherwise the network's own logits are served.
        run: the run's folder, for the training's curves.
        on_step: told what is being done.

    Returns:
        The path of the new model file, and what was measured.

    Raises:
        UserError: the name is not one, the data are not those of the training, the repository cannot be written, or a gate failed;
            the message has the figures.
    """
    check_model_name(name)
    if repository.exists() and not repository.is_dir():
        raise UserError(f"{str(repository)!r} is not a folder")
    _check_data(checkpoint, dataset)
    with tempfile.TemporaryDirectory(prefix="convoy-export-") as folder:
        version = Path(folder)
        draft = version / MODEL_FILE
        temperature = 1.0
        if calibrate:
            found = _logits(checkpoint, dataset.validation, lambda *counts: on_step("fitting the temperature", *counts))
            truth = evaluation.truth_of(dataset.validation, dataset.labels, checkpoint.labels)
            temperature = fit_temperature(found, truth)
        on_step("converting to ONNX", 0, 0)
        graph = to_onnx(checkpoint, temperature)
        contract = _contract(checkpoint, dataset, name, temperature)
        write(graph, contract, draft)
        report = evaluate(draft, checkpoint, dataset, lambda *counts: on_step("comparing with PyTorch", *counts))
        evaluation.check(report, minimum_accuracy)
        on_step("writing the model card", 0, 0)
        scores = report.scores
        measured = contract.training.model_copy(
            update={
                "accuracy": scores.accuracy,
                "accuracy_interval": scores.accuracy_interval,
                "calibration_error": scores.reliability.error,
            }
        )
        contract = contract.model_copy(update={"training": measured})
        write(graph, contract, draft)
        served = model.load(draft, "cpu", threads=1)
        pictures = figures.draw(scores, dataset.test, checkpoint.input, version)
        if run is not None and (run / training.CURVES).is_file():
            shutil.copyfile(run / training.CURVES, version / training.CURVES)
            pictures.append(training.CURVES)
        parts = {"training": len(dataset.training), "validation": len(dataset.validation), "test": len(dataset.test)}
        text = model_card(contract, report, asdict(checkpoint.settings), parts, pictures, served.digest, draft.stat().st_size)
        (version / CARD).write_text(text, encoding="utf-8")
        on_step("publishing", 0, 0)
        return _publish(version, repository, name), report


def to_onnx(checkpoint: Checkpoint, temperature: float = 1.0) -> onnx.ModelProto:
    """The checked graph, without a contract."""
    served = Served(checkpoint, temperature).eval()
    example = torch.zeros((2, *checkpoint.input.shape), dtype=torch.uint8)
    # It warns once for each operator of torchvision, which nothing here uses.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own use of deprecated parts of PyTorch
        try:
            program = torch.onnx.export(
                served,
                (example,),
                dynamo=True,
                external_data=False,
                verbose=False,
                input_names=[INPUT_NAME],
                output_names=[PROBABILITIES_NAME, LOGITS_NAME],
                dynamic_shapes={"image": {0: torch.export.Dim("N")}},
            )
        except Exception as error:
            if _interrupted(error):  # the exporter takes Ctrl-C for a failure of its own
                raise KeyboardInterrupt from None
            raise
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    graph = program.model_proto
    onnx.checker.check_model(graph, full_check=True)
    return graph


def write(graph: onnx.ModelProto, contract: Contract, path: Path) -> None:
    """Writes the graph with a contract as one file."""
    del graph.metadata_props[:]
    graph.metadata_props.add(key=METADATA_KEY, value=contract.to_json())
    onnx.checker.check_model(graph)
    onnx.save_model(graph, path, save_as_external_data=False)


def evaluate(
    path: Path, checkpoint: Checkpoint, dataset: Dataset, on_step: evaluation.Progress = lambda done, total: None
) -> evaluation.Report:
    """Measures a file on the test part, beside the checkpoint it was made from, at the file's temperature.

    Raises UserError if it cannot be served.
    """
    try:
        served = model.load(path, "cpu", model.cpu_budget())
    except LoadError as error:
        raise UserError(f"the exported file cannot be served: {error}") from None
    temperature = served.contract.training.temperature
    return evaluation.compare(
        served, lambda pixels: _probabilities(checkpoint, pixels, temperature), dataset.test, dataset.labels, on_step
    )


def _check_data(checkpoint: Checkpoint, dataset: Dataset) -> None:
    evaluation.check_labels(dataset.labels, checkpoint.labels)
    if dataset.input != checkpoint.input:
        ours, theirs = ("x".join(map(str, spec.shape)) + f" ({spec.fit})" for spec in (checkpoint.input, dataset.input))
        raise UserError(
            f"the network takes pictures of {ours}, the data come as {theirs}: these are not the data it was trained on"
        )


def _logits(checkpoint: Checkpoint, part: Part, on_step: evaluation.Progress) -> NDArray[np.float32]:
    """PyTorch's logits float32[N,K] for a part of the data, in batches."""
    found = []
    for chosen in evaluation.batches(len(part), checkpoint.input):
        found.append(training.logits(checkpoint, part.pixels[chosen]))
        on_step(chosen.stop, len(part))
    return np.concatenate(found)


def _probabilities(checkpoint: Checkpoint, pixels: NDArray[np.uint8], temperature: float) -> NDArray[np.float32]:
    """PyTorch's probabilities float32[N,K] for pixels uint8[N,H,W,C], at a temperature."""
    probabilities: NDArray[np.float32] = (torch.from_numpy(training.logits(checkpoint, pixels)) / temperature).softmax(1).numpy()
    return probabilities


def _golden_picture(part: Part, index: int) -> bytes:
    """A picture for a golden sample, lossless: the file itself where that is a small PNG, else the pixels that the network takes.

    The file proves most, for its decoding and resizing are replayed too. But what a JPEG decodes to differs a little between
    versions of libjpeg, which is no reason to refuse a model, and a photo of megabytes does not belong into a contract.
    """
    encoded = part.encoded(index)
    return encoded if encoded.startswith(_PNG) and len(encoded) <= GOLDEN_BYTES else encode_png(part.pixels[index])


def _contract(checkpoint: Checkpoint, dataset: Dataset, name: str, temperature: float = 1.0) -> Contract:
    part = dataset.validation
    chosen = [int(np.flatnonzero(part.labels == label)[0]) for label in np.unique(part.labels)[:GOLDEN_SAMPLES]]
    expected = _probabilities(checkpoint, part.pixels[chosen], temperature)
    golden = [
        Golden.model_construct(image_png=_golden_picture(part, index), probabilities=tuple(row.tolist()), tolerance=TOLERANCE)
        for index, row in zip(chosen, expected, strict=True)
    ]
    return Contract(
        schema=1,
        name=name,
        input=checkpoint.input,
        labels=checkpoint.labels,
        head=getattr(checkpoint.network, "head", "softmax"),
        precision="fp32",
        training=Training(
            data=checkpoint.data,
            network=checkpoint.settings.network,
            epochs=checkpoint.epoch,
            seed=checkpoint.settings.seed,
            temperature=temperature,
            versions={package: importlib.metadata.version(package) for package in _VERSIONS if _installed(package)},
            commit=_commit(),
        ),
        golden=tuple(golden),
    )


def _publish(version: Path, repository: Path, name: str) -> Path:
    """Copies a folder to the next free version in one step: a server that watches sees the whole of it or nothing."""
    try:
        (repository / name).mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".export-", dir=repository / name))
        try:
            for file in version.iterdir():
                shutil.copyfile(file, staging / file.name)
            staging.chmod(0o755)  # mkdtemp makes folders that only their owner can read
            while True:
                path = model_path(repository, name, next_version(repository, name))
                try:
                    staging.rename(path.parent)
                except OSError:
                    if not path.parent.is_dir():
                        raise
                    continue  # another export has just taken the number
                return path
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write to the repository {str(repository)!r}: {error.strerror}") from None


def _interrupted(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _commit() -> str | None:
    """The commit of Convoy's source, where this is a clone of it."""
    folder = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607 - whichever git is on the path
            cwd=folder, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
