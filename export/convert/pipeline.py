"""From a checkpoint to a version in a model repository: one ONNX file with its contract, written only if it passes the gates.

The gates, on the whole test part: the file answers as PyTorch does (parity), and answers encoded pictures as well as PyTorch
answers decoded ones (accuracy, through the preprocessing and the model code that serve it). A file of a lower precision is made
from one that passed, and may lose so much accuracy against it and no more. Beside the file stand its model card and the pictures
that the card shows; a server passes them over.
"""

import contextlib
import copy
import importlib.metadata
import logging
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from export.convert import precision as lower
from export.convert.model_card import CARD, model_card
from export.convert.precision import TOLERANCE, Cost, Precision
from export.convert.publish import publish, write
from export.data.datasets import Dataset, Part
from export.evaluation import figures
from export.evaluation import scores as evaluation
from export.evaluation.calibration import fit_temperature
from export.progress import OnCount, OnProgress, ignore_progress
from export.training import loop
from export.training.loop import Checkpoint
from service import DISTRIBUTION
from service.errors import InvalidRequest, LoadError, UserError
from service.model import cpus, session
from service.model.contract import INPUT_NAME, LOGITS_NAME, MAX_GOLDEN_PIXELS, PROBABILITIES_NAME, Contract, Golden, Training
from service.model.preprocessing import encode_png, open_image
from service.model.repository_layout import MODEL_FILE, check_model_name

GOLDEN_SAMPLES = 4
GOLDEN_BYTES = 16 * 1024
_RANGE_ITEMS = 512

_PNG = b"\x89PNG\r\n\x1a\n"
_VERSIONS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")


@dataclass(frozen=True)
class Exported:
    """A new version: the path of its model file, and what was measured on the test part.

    `parity` is of the fp32 file beside PyTorch. `report` is of the file itself: the same for fp32, else beside the fp32 file, and
    then `cost` says what the precision costs and gains.
    """

    path: Path
    report: evaluation.Report
    parity: evaluation.Report
    cost: Cost | None = None


class Served(nn.Module):
    """What is exported: pixels uint8[N,H,W,C] in, probabilities and logits float32[N,K] out; the network computes in `dtype`."""

    def __init__(self, checkpoint: Checkpoint, temperature: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = copy.deepcopy(checkpoint.network).to(dtype)
        self.dtype = dtype
        self.temperature = temperature
        self.register_buffer("mean", torch.tensor(checkpoint.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(checkpoint.std)[:, None, None])
        self.mean: torch.Tensor
        self.std: torch.Tensor

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalisation, layout and temperature are in here, so that no client can get them wrong."""
        x = image.permute(0, 3, 1, 2).to(torch.float32)  # (N, C, H, W)
        logits = self.network(((x - self.mean) / self.std).to(self.dtype)).to(torch.float32)  # (N, K)
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
    on_progress: OnProgress = ignore_progress,
    precision: Precision = "fp32",
    max_accuracy_loss: float = evaluation.ACCURACY_LOSS,
) -> Exported:
    """Exports a checkpoint as the next version of model `name`; nothing is written to the repository if a gate fails.

    Args:
        checkpoint: the trained network.
        dataset: the data it was trained on. The temperature is fitted on its validation part, the gates look at its test part.
        repository: the folder of models; made if it is missing.
        name: the model's name.
        minimum_accuracy: fraction of the test part that must be right, whatever PyTorch reached.
        calibrate: fit a temperature; otherwise the network's own logits are served.
        run: the run's folder, for the training's curves.
        on_progress: called with each step.
        precision: of the layers; int8 is for CPUs, fp16 for GPUs.
        max_accuracy_loss: fraction of the test part that may be lost from PyTorch to fp32, and from there to a lower precision.

    Raises:
        UserError: the name is not one, the data are not those of the training, the repository cannot be written, or a gate failed;
            the message has the figures.
    """
    check_model_name(name)
    if repository.exists() and not repository.is_dir():
        raise UserError(f"{str(repository)!r} is not a folder")
    _check_data(checkpoint, dataset)
    with tempfile.TemporaryDirectory(prefix="convoy-export-") as folder:
        drafts, version = Path(folder) / "drafts", Path(folder) / "version"
        drafts.mkdir()
        version.mkdir()
        file, full = version / MODEL_FILE, drafts / "fp32.onnx"
        temperature = 1.0
        if calibrate:
            found = _logits(checkpoint, dataset.validation, partial(on_progress, "fitting the temperature"))
            truth = evaluation.truth_of(dataset.validation, dataset.labels, checkpoint.labels)
            temperature = fit_temperature(found, truth)
        on_progress("converting to ONNX", 0, 0)
        graph = to_onnx(checkpoint, temperature)
        contract = _contract(checkpoint, dataset, name, temperature)
        write(graph, contract, full)
        parity = evaluate(full, checkpoint, dataset, partial(on_progress, "comparing with PyTorch"))
        evaluation.check_parity(parity)
        evaluation.check_accuracy(parity, minimum_accuracy, max_accuracy_loss)
        report, quantization = parity, None
        if precision != "fp32":
            if precision == "int8":
                graph, quantization = lower.quantize(graph, contract, dataset, max_accuracy_loss, drafts, on_progress)
            else:
                _check_half_range(checkpoint, dataset.validation)
                graph = to_onnx(checkpoint, temperature, torch.float16)
            served, reference = (
                lower.load_candidate(graph, contract, precision, file),
                session.load_model(full, "cpu", cpus.cpu_budget()),
            )
            report = evaluation.compare(
                served, reference.probabilities, dataset.test, dataset.labels,
                partial(on_progress, "comparing with fp32"),
            )  # fmt: skip
            evaluation.check_accuracy(report, minimum_accuracy, max_accuracy_loss, "fp32")
            contract = lower.with_own_golden(served, contract)
        on_progress("writing the model card", 0, 0)
        scores = report.scores
        measured = contract.training.model_copy(
            update={
                "accuracy": scores.accuracy,
                "accuracy_interval": scores.accuracy_interval,
                "calibration_error": scores.reliability.error,
            }
        )
        contract = contract.model_copy(update={"training": measured})
        write(graph, contract, file)
        digest = session.load_model(file, "cpu", threads=1).digest
        cost = None if precision == "fp32" else lower.cost(precision, (full, file), report, quantization)
        pictures = figures.draw(scores, dataset.test, checkpoint.input, version)
        if run is not None and (run / loop.CURVES).is_file():
            shutil.copyfile(run / loop.CURVES, version / loop.CURVES)
            pictures.append(loop.CURVES)
        parts = {"training": len(dataset.training), "validation": len(dataset.validation), "test": len(dataset.test)}
        size_bytes = file.stat().st_size
        settings = asdict(checkpoint.settings) | ({"training pictures": checkpoint.augmentation} if checkpoint.augmentation else {})
        text = model_card(contract, report, settings, parts, pictures, digest, size_bytes, parity, cost)
        (version / CARD).write_text(text, encoding="utf-8")
        on_progress("publishing", 0, 0)
        return Exported(publish(version, repository, name), report, parity, cost)


def to_onnx(checkpoint: Checkpoint, temperature: float = 1.0, dtype: torch.dtype = torch.float32) -> onnx.ModelProto:
    """The checked graph, without a contract; its layers compute in `dtype`, normalisation, temperature and softmax in float32."""
    served = Served(checkpoint, temperature, dtype).eval()
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


def evaluate(path: Path, checkpoint: Checkpoint, dataset: Dataset, on_count: OnCount = ignore_progress) -> evaluation.Report:
    """Measures a file on the test part, beside the checkpoint it was made from, at the file's temperature.

    Raises UserError if it cannot be served.
    """
    try:
        served = session.load_model(path, "cpu", cpus.cpu_budget())
    except LoadError as error:
        raise UserError(f"the exported file cannot be served: {error}") from None
    temperature = served.contract.training.temperature
    return evaluation.compare(
        served, lambda pixels: _probabilities(checkpoint, pixels, temperature), dataset.test, dataset.labels, on_count
    )


def _check_data(checkpoint: Checkpoint, dataset: Dataset) -> None:
    evaluation.check_labels(dataset.labels, checkpoint.labels)
    if dataset.input != checkpoint.input:
        ours, theirs = ("x".join(map(str, spec.shape)) + f" ({spec.fit})" for spec in (checkpoint.input, dataset.input))
        raise UserError(
            f"the network takes pictures of {ours}, the data come as {theirs}: these are not the data it was trained on"
        )
    if checkpoint.data_digest and dataset.digest and checkpoint.data_digest != dataset.digest:
        raise UserError(
            f"{dataset.name} is not what the network was trained on: another data set, or pictures were added, removed or changed "
            "since, so that the test part may hold some that were trained on; export with the data as they were, or train again"
        )


def _check_half_range(checkpoint: Checkpoint, part: Part) -> None:
    """Raises UserError if half precision has no number for a weight, or for what a layer gives for pictures of a part.

    ONNX Runtime computes half precision on the CPU in float32, so that what is measured there would never show it.
    """
    network = checkpoint.network
    largest: dict[str, float] = {}

    def note(name: str, values: Any) -> None:
        if isinstance(values, torch.Tensor) and values.is_floating_point():
            largest[name] = max(largest.get(name, 0.0), float(values.detach().abs().max().nan_to_num(nan=torch.inf)))

    def hook_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            for values in (*inputs, output):  # what a block adds up by itself is the input of the next module
                note(name or "the network", values)

        return hook

    for name, weights in (*network.named_parameters(), *network.named_buffers()):
        note(name, weights)
    hooks = [module.register_forward_hook(hook_of(name)) for name, module in network.named_modules()]
    try:
        loop.logits(checkpoint, part.pixels[:_RANGE_ITEMS])
    finally:
        for hook in hooks:
            hook.remove()
    name, value = max(largest.items(), key=lambda item: item[1])
    limit = torch.finfo(torch.float16).max
    if not value < limit:
        raise UserError(f"fp16: {name} comes to {value:.3g} and half precision ends at {limit:g}: export with --precision fp32")


def _logits(checkpoint: Checkpoint, part: Part, on_count: OnCount) -> NDArray[np.float32]:
    """PyTorch's logits float32[N,K] for a part of the data, in batches."""
    found = []
    for chosen in evaluation.batches(len(part), checkpoint.input):
        found.append(loop.logits(checkpoint, part.pixels[chosen]))
        on_count(chosen.stop, len(part))
    return np.concatenate(found)


def _probabilities(checkpoint: Checkpoint, pixels: NDArray[np.uint8], temperature: float) -> NDArray[np.float32]:
    """PyTorch's probabilities float32[N,K] for pixels uint8[N,H,W,C], at a temperature."""
    probabilities: NDArray[np.float32] = (torch.from_numpy(loop.logits(checkpoint, pixels)) / temperature).softmax(1).numpy()
    return probabilities


def _golden_picture(part: Part, index: int) -> bytes:
    """A picture for a golden sample, lossless: the file itself where that is a small PNG, else the pixels that the network takes.

    The file proves most, for its decoding and resizing are replayed too. But what a JPEG decodes to differs a little between
    versions of libjpeg, which is no reason to refuse a model, and a photo of megabytes does not belong into a contract.
    """
    encoded = part.encoded(index)
    if encoded.startswith(_PNG) and len(encoded) <= GOLDEN_BYTES:
        with contextlib.suppress(InvalidRequest):  # more pixels than a server would decode
            open_image(encoded, MAX_GOLDEN_PIXELS)
            return encoded
    return encode_png(part.pixels[index])


def _contract(checkpoint: Checkpoint, dataset: Dataset, name: str, temperature: float = 1.0) -> Contract:
    part = dataset.validation
    chosen = [int(np.flatnonzero(part.labels == label)[0]) for label in np.unique(part.labels)[:GOLDEN_SAMPLES]]
    expected = _probabilities(checkpoint, part.pixels[chosen], temperature)
    golden = [
        Golden.model_construct(
            image_png=_golden_picture(part, index), probabilities=tuple(row.tolist()), tolerance=TOLERANCE["fp32"]
        )
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
            data_digest=checkpoint.data_digest,
            network=checkpoint.settings.network,
            epochs=checkpoint.epoch,
            seed=checkpoint.settings.seed,
            temperature=temperature,
            versions={
                "convoy": importlib.metadata.version(DISTRIBUTION),
                **{package: importlib.metadata.version(package) for package in _VERSIONS if _installed(package)},
            },
            commit=_commit(),
        ),
        golden=tuple(golden),
    )


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
    folder = Path(__file__).resolve().parents[2]  # that of the package `export`
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--show-toplevel", "HEAD"],  # noqa: S607 - whichever git is on the path
            cwd=folder, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    top, _, commit = found.stdout.strip().rpartition("\n")
    return commit if Path(top) == folder else None  # else it is installed inside of some other project's clone
