"""Exports a checkpoint as a new version in a model repository: convert, gate, lower the precision, document, publish.

The gates look at the whole test part. Parity: the file answers as PyTorch does. Accuracy: it answers encoded images, through the
preprocessing and the model code that serve it, as well as PyTorch answers decoded ones. A file of a lower precision is made from
an fp32 file that passed, and its accuracy is gated against that file. A server ignores the model card and its images.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx

from export.convert.contract_builder import build_contract, with_own_golden, with_scores
from export.convert.hidden_outputs import HiddenOutputs
from export.convert.model_card import CARD, model_card
from export.convert.onnx_conversion import to_onnx
from export.convert.precision import Precision, to_fp16, to_int8
from export.convert.precision_cost import PrecisionComparison, measure_cost
from export.convert.publish import publish, write_model
from export.convert.pytorch_reference import best_temperature, compare_with_pytorch
from export.convert.quantization import Quantization
from export.data.datasets import Dataset
from export.evaluation import figures
from export.evaluation.gates import MAX_ACCURACY_LOSS, Comparison, check_accuracy, check_parity, compare
from export.evaluation.measurement import check_labels
from export.files import read_file, temporary_folder, write_file
from export.networks import architectures
from export.progress import OnProgress, ignore_progress
from export.text import as_text
from export.training.checkpoint import Checkpoint
from export.training.history import CURVES
from service.errors import UserError
from service.model.contract import Contract
from service.model.inference import Model
from service.model.input_spec import InputSpec
from service.model.repository_layout import MODEL_FILE, check_model_name


@dataclass(frozen=True)
class Exported:
    """A published version and its figures on the test part.

    Attributes:
        path: the model file in the repository.
        comparison: of this file with PyTorch if it is fp32, else with the fp32 file.
        parity: of the fp32 file with PyTorch; the same as `comparison` for fp32.
        cost: of a precision below fp32.
    """

    path: Path
    comparison: Comparison
    parity: Comparison
    cost: PrecisionComparison | None = None


@dataclass(frozen=True)
class _Candidate:
    """A model that has not passed its gates yet: its graph, its contract and, loaded from a draft file, the model."""

    graph: onnx.ModelProto
    contract: Contract
    served: Model


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
    max_accuracy_loss: float = MAX_ACCURACY_LOSS,
    hidden: HiddenOutputs = HiddenOutputs(),  # noqa: B008 - it cannot change
) -> Exported:
    """Exports a checkpoint as the next version of model `name`. If a gate fails, nothing is written to the repository.

    Args:
        checkpoint: the trained network.
        dataset: the data it was trained on. The temperature is fitted on the validation part, the gates look at the test part.
        repository: the folder of models; created if it is missing.
        name: the model's name.
        minimum_accuracy: fraction of the test part that must be right.
        calibrate: fit a temperature; otherwise the network's own logits are served.
        run: the run's folder, for the training curves.
        on_progress: called with each step.
        precision: what the layers compute in; int8 is for CPUs, fp16 for GPUs.
        max_accuracy_loss: fraction of the test part that may be lost from PyTorch to fp32, and from fp32 to a lower precision.
        hidden: further outputs.

    Raises:
        UserError: the name is invalid, the data are not those of the run, the repository cannot be written, the network does not
            have a hidden output, or a gate failed; the message has the figures.
    """
    check_model_name(name)
    if repository.exists() and not repository.is_dir():
        raise UserError(f"{str(repository)!r} is not a folder")
    _check_data(checkpoint, dataset)
    with temporary_folder() as folder:
        drafts, version = folder / "drafts", folder / "version"
        drafts.mkdir()
        version.mkdir()
        fp32_file, file = drafts / "fp32.onnx", version / MODEL_FILE

        candidate = fp32 = _convert(checkpoint, dataset, name, calibrate, fp32_file, on_progress)
        hidden.add_to(fp32.graph, fp32.contract)  # what the network does not have is refused before the long steps
        comparison = parity = compare_with_pytorch(fp32.served, checkpoint, dataset, partial(on_progress, "comparing with PyTorch"))
        check_parity(parity)
        check_accuracy(parity, minimum_accuracy, max_accuracy_loss)

        quantization = None
        if precision != "fp32":
            candidate, quantization = _reduce_precision(
                precision, fp32, checkpoint, dataset, max_accuracy_loss, drafts, on_progress
            )
            comparison = compare(
                candidate.served, fp32.served.probabilities, dataset.test, dataset.labels,
                partial(on_progress, "comparing with fp32"),
            )  # fmt: skip
            check_accuracy(comparison, minimum_accuracy, max_accuracy_loss, "fp32")

        on_progress("writing the model card", 0, 0)
        served = write_model(*hidden.add_to(candidate.graph, with_scores(candidate.contract, comparison.scores)), file)
        cost = None
        if precision != "fp32":
            cost = measure_cost(precision, fp32_file, file, comparison, quantization)
        _document(version, served, checkpoint, dataset, comparison, parity, cost, run)

        on_progress("publishing", 0, 0)
        return Exported(publish(version, repository, name), comparison, parity, cost)


def _convert(
    checkpoint: Checkpoint, dataset: Dataset, name: str, calibrate: bool, path: Path, on_progress: OnProgress
) -> _Candidate:
    """The checkpoint as an fp32 model, written to `path`."""
    temperature = 1.0
    if calibrate:
        temperature = best_temperature(checkpoint, dataset, partial(on_progress, "fitting the temperature"))
    on_progress("converting to ONNX", 0, 0)
    graph = to_onnx(checkpoint, temperature)
    contract = build_contract(checkpoint, dataset, name, temperature)
    return _Candidate(graph, contract, write_model(graph, contract, path))


def _reduce_precision(
    precision: Precision, fp32: _Candidate, checkpoint: Checkpoint, dataset: Dataset, max_accuracy_loss: float, drafts: Path,
    on_progress: OnProgress,
) -> tuple[_Candidate, Quantization | None]:  # fmt: skip
    """A model of a lower precision, made from the fp32 model or, for fp16, from the checkpoint at the same temperature."""
    quantization = None
    if precision == "int8":
        graph, quantization = to_int8(fp32.graph, fp32.contract, dataset, max_accuracy_loss, drafts, on_progress)
    else:
        graph = to_fp16(checkpoint, dataset.validation, fp32.contract.temperature)
    without_golden = fp32.contract.model_copy(update={"precision": precision, "golden": ()})
    served = write_model(graph, without_golden, drafts / f"{precision}.onnx")
    return _Candidate(graph, with_own_golden(served, fp32.contract), served), quantization


def _document(
    version: Path, served: Model, checkpoint: Checkpoint, dataset: Dataset, comparison: Comparison, parity: Comparison,
    cost: PrecisionComparison | None, run: Path | None,
) -> None:  # fmt: skip
    """Writes the model card and its images into the folder of the version."""
    images = figures.draw(comparison.scores, dataset.test.encoded, checkpoint.input, version)
    if run is not None and (run / CURVES).is_file():
        write_file(version / CURVES, read_file(run / CURVES))
        images.append(CURVES)
    settings = checkpoint.settings.given() | {"network": architectures.shown(checkpoint.settings.network)}
    settings = {name: as_text(value) for name, value in settings.items()}
    if checkpoint.code:
        settings["code of the network"] = f"sha256 {checkpoint.code.digest}"
    if checkpoint.augmentation:
        settings["training pictures"] = checkpoint.augmentation
    card = model_card(
        served.contract,
        comparison,
        settings,
        parts={"training": len(dataset.training), "validation": len(dataset.validation), "test": len(dataset.test)},
        pictures=images,
        digest=served.digest,
        size_bytes=(version / MODEL_FILE).stat().st_size,
        parity=parity,
        cost=cost,
    )
    write_file(version / CARD, card.encode())


def _check_data(checkpoint: Checkpoint, dataset: Dataset) -> None:
    """Raises UserError unless these are the data that the network was trained on."""
    check_labels(dataset.labels, checkpoint.labels)
    if dataset.input != checkpoint.input:
        raise UserError(
            f"the network takes images of {_shown(checkpoint.input)}, the data come as {_shown(dataset.input)}: these are not "
            "the data it was trained on"
        )
    if checkpoint.data_digest and dataset.digest and checkpoint.data_digest != dataset.digest:
        raise UserError(
            f"{dataset.name} is not what the network was trained on: another data set, or images were added, removed or changed "
            "since, so that the test part may hold some that were trained on; export with the data as they were, or train again"
        )


def _shown(spec: InputSpec) -> str:
    return f"{'x'.join(map(str, spec.shape))} ({spec.fitting})"
