"""From a checkpoint to a version in a model repository: one ONNX file with its contract, written only if it passes the gates.

The gates, on the whole test part: the file answers as PyTorch does (parity), and answers encoded pictures as well as PyTorch
answers decoded ones (accuracy, through the preprocessing and the model code that serve it).
"""

import importlib.metadata
import logging
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from export import evaluation, training
from export.data import Dataset
from export.training import Checkpoint
from service import model
from service.contract import INPUT_NAME, LOGITS_NAME, METADATA_KEY, PROBABILITIES_NAME, Contract, Golden, ProviderName, Training
from service.errors import LoadError, UserError
from service.repository_layout import MODEL_FILE, check_model_name, model_path, next_version

GOLDEN_SAMPLES = 4
TOLERANCE: dict[ProviderName, float] = {"cpu": 1e-4, "cuda": 5e-3}

_VERSIONS = ("convoy", "torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")


class Served(nn.Module):
    """What is exported: pixels uint8[N,H,W,C] in, probabilities and logits float32[N,K] out."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.network = checkpoint.network
        self.register_buffer("mean", torch.tensor(checkpoint.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(checkpoint.std)[:, None, None])
        self.mean: torch.Tensor
        self.std: torch.Tensor

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalisation and layout are in here, so that no client can get them wrong."""
        x = image.permute(0, 3, 1, 2).to(torch.float32)  # (N, C, H, W)
        logits = self.network((x - self.mean) / self.std)  # (N, K)
        return logits.softmax(dim=1), logits


def export(
    checkpoint: Checkpoint,
    dataset: Dataset,
    repository: Path,
    name: str,
    minimum_accuracy: float = 0.0,
    on_step: Callable[[str], None] = lambda step: None,
) -> tuple[Path, evaluation.Report]:
    """Exports a checkpoint as the next version of model `name`; nothing is written to the repository if a gate fails.

    Args:
        checkpoint: the trained network.
        dataset: the data it was trained on; its test part is what the gates look at.
        repository: the folder of models; made if it is missing.
        name: the model's name.
        minimum_accuracy: fraction of the test part that must be right, whatever PyTorch reached.
        on_step: told what is being done.

    Returns:
        The path of the new model file, and what was measured.

    Raises:
        UserError: the name is not one, the repository cannot be written, or a gate failed; the message has the figures.
    """
    check_model_name(name)
    if repository.exists() and not repository.is_dir():
        raise UserError(f"{str(repository)!r} is not a folder")
    with tempfile.TemporaryDirectory(prefix="convoy-export-") as folder:
        draft = Path(folder) / MODEL_FILE
        on_step("converting to ONNX")
        graph = to_onnx(checkpoint)
        contract = _contract(checkpoint, dataset, name)
        write(graph, contract, draft)
        on_step("comparing with PyTorch and measuring accuracy on the test part")
        report = evaluate(draft, checkpoint, dataset)
        evaluation.check(report, minimum_accuracy)
        measured = contract.training.model_copy(update={"accuracy": report.accuracy, "accuracy_interval": report.accuracy_interval})
        write(graph, contract.model_copy(update={"training": measured}), draft)
        model.load(draft, "cpu", threads=1)
        on_step("publishing")
        return _publish(draft, repository, name), report


def to_onnx(checkpoint: Checkpoint) -> onnx.ModelProto:
    """The checked graph, without a contract."""
    served = Served(checkpoint).eval()
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


def evaluate(path: Path, checkpoint: Checkpoint, dataset: Dataset) -> evaluation.Report:
    """Measures a file on the test part, beside the checkpoint it was made from. Raises UserError if it cannot be served."""
    try:
        served = model.load(path, "cpu", model.cpu_budget())
    except LoadError as error:
        raise UserError(f"the exported file cannot be served: {error}") from None
    reference = training.predict(checkpoint, dataset.test.pixels)
    return evaluation.compare(served, reference, dataset.test)


def _contract(checkpoint: Checkpoint, dataset: Dataset, name: str) -> Contract:
    part = dataset.validation
    chosen = [int(np.flatnonzero(part.labels == label)[0]) for label in np.unique(part.labels)[:GOLDEN_SAMPLES]]
    expected = training.predict(checkpoint, part.pixels[chosen])
    golden = [
        Golden.model_construct(image_png=part.encoded(index), probabilities=tuple(row.tolist()), tolerance=TOLERANCE)
        for index, row in zip(chosen, expected, strict=True)
    ]
    return Contract(
        schema=1,
        name=name,
        input=checkpoint.input,
        labels=checkpoint.labels,
        head="softmax",
        precision="fp32",
        training=Training(
            data=checkpoint.data,
            network=checkpoint.settings.network,
            epochs=checkpoint.epoch,
            seed=checkpoint.settings.seed,
            versions={package: importlib.metadata.version(package) for package in _VERSIONS if _installed(package)},
            commit=_commit(),
        ),
        golden=tuple(golden),
    )


def _publish(draft: Path, repository: Path, name: str) -> Path:
    """Moves the file to the next free version in one step: a server that watches sees the whole of it or nothing."""
    try:
        (repository / name).mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".export-", dir=repository / name))
        try:
            shutil.copyfile(draft, staging / MODEL_FILE)
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
