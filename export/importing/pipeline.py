"""Imports a model: read, understood, wrapped, gated, documented, published.

What is decided is said as it is decided, and is in the model card. Nothing is written to the repository unless every gate passes.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import onnx

from export.convert.contract_builder import source_commit, with_own_golden
from export.convert.precision import TOLERANCE
from export.convert.publish import publish, write_model
from export.data.labelled_pictures import ALL, LabelledPictures, pictures_of_folder
from export.evaluation.folder import measure
from export.evaluation.scores import Scores
from export.files import temporary_folder, write_file
from export.importing import card, gates
from export.importing.fp16 import to_fp16
from export.importing.gates import Gate
from export.importing.import_contract import build_contract, measured, precision_of
from export.importing.int8 import layers_in_int8, to_int8
from export.importing.network_input import bind_size
from export.importing.pictures import probe_pictures, require_labels
from export.importing.recipe import Recipe
from export.importing.reference import Reference, check_outputs, check_pixels, read_reference, served_pixels
from export.importing.request import MakeRecipe, Request, Say
from export.importing.search import Trial, search
from export.importing.source import Source
from export.importing.understanding import DecisionLog, Understood, find_outputs, head_labels, read_graph, read_network, understand
from export.importing.wrapping import wrap
from export.progress import OnProgress, ignore_progress
from export.text import first_of
from service.errors import UserError
from service.model.contract import Contract
from service.model.inference import Model
from service.model.input_spec import InputSpec
from service.model.repository_layout import MODEL_FILE, check_model_name

_LISTED = 5


@dataclass(frozen=True)
class Imported:
    """What came of it.

    Attributes:
        path: the model file in the repository; None after a dry run.
        decisions: a line for each thing that was decided.
        gates: those that were passed, or could not be tried.
        scores: on the labelled pictures; None without them.
    """

    path: Path | None
    decisions: tuple[str, ...]
    gates: tuple[Gate, ...]
    scores: Scores | None


@dataclass(frozen=True)
class _Candidate:
    """A file that has not passed all its gates yet.

    Attributes:
        graph: the wrapped graph.
        contract: with golden samples, not measured yet.
        scores: on the labelled pictures; None without them.
        answers: whose the answers of the golden samples are, for people.
    """

    graph: onnx.ModelProto
    contract: Contract
    scores: Scores | None
    answers: str


def import_model(
    source: Source, make_recipe: MakeRecipe, request: Request, say: Say = ignore_progress, on_progress: OnProgress = ignore_progress
) -> Imported:
    """Imports a model as the next version of `request.name`. If a gate fails, nothing is written to the repository.

    Args:
        source: what is imported.
        make_recipe: how its pictures are prepared.
        request: what the user asks for.
        say: called with a line for each decision and each gate.
        on_progress: called with each step.

    Raises:
        UserError: something is missing, contradicts something else, or a gate failed; the message says what is accepted.
    """
    check_model_name(request.name)
    if request.repository.exists() and not request.repository.is_dir():
        raise UserError(f"{str(request.repository)!r} is not a folder")
    log = DecisionLog(say)
    _check_precision(request, source)
    folder = None if request.data is None else _read_folder(request.data, log)
    reference = read_reference(request.reference) if isinstance(request.reference, Path) else request.reference
    found = understand(source, make_recipe, request, folder, log, on_progress)
    with temporary_folder() as scratch:
        version = scratch / "version"
        version.mkdir()
        file = version / MODEL_FILE
        candidate, pixels = _wrapped(source, found, reference, folder, request, file, log, on_progress)
        if request.precision != "fp32" and candidate.contract.precision != "fp32":
            log.decided(f"--precision {request.precision}: the source is {candidate.contract.precision}, and keeps it")
        elif request.precision != "fp32":
            candidate = _lowered(candidate, found, folder, request, scratch, log, on_progress)
        data = ("", "") if folder is None else (folder.name, folder.digest)
        contract = measured(candidate.contract, pixels.seen if pixels.proved else "", *data, candidate.scores)
        served = write_model(*request.hidden.add_to(candidate.graph, contract), file)
        log.passed(Gate("golden", f"{len(contract.golden)} pictures give {candidate.answers} through the code that serves them"))
        text = card.import_card(served, log.decisions, log.gates, candidate.scores, candidate.answers, source_commit())
        write_file(version / card.CARD, text.encode())
        path = None
        if not request.dry_run:
            on_progress("publishing", 0, 0)
            path = publish(version, request.repository, request.name)
        return Imported(path, tuple(log.decisions), tuple(log.gates), candidate.scores)


def search_preprocessing(
    source: Source, request: Request, say: Say = ignore_progress, on_progress: OnProgress = ignore_progress
) -> list[Trial]:
    """Tries the usual ways to prepare pictures on the labelled ones of the request, the best first; writes nothing.

    Raises:
        UserError: there are no labelled pictures, or it is not clear which output holds the scores.
    """
    if request.data is None:
        raise UserError("--search-preprocessing needs --data, a folder of labelled pictures")
    log = DecisionLog(say)
    folder = _read_folder(request.data, log)
    model, metadata, zipmap_labels = read_graph(source)
    network = read_network(model, request, metadata)
    if not network.height or not network.width:
        raise UserError("the graph takes images of any size: --input-shape H,W says which")
    bind_size(model, network)
    spec = InputSpec(height=network.height, width=network.width, channels=1 if network.channels == 1 else 3)
    recipe = Recipe(spec, scale=255.0 if network.dtype.kind == "f" else 1.0)
    pixels = served_pixels(probe_pictures(folder)[0], recipe)
    labels = request.labels or metadata.labels or zipmap_labels
    first = replace(request, outputs=request.outputs[:1])
    [(value, rows)] = find_outputs(model, network, recipe, first, labels, pixels, log).items()
    if first.outputs:
        labels = first.outputs[0][1] or labels
    # What the numbers are is left open: it may be clear with the right scaling alone, and the best class is the same.
    labels = head_labels(rows.shape[1], "sigmoid" if rows.shape[1] == 1 else "softmax", labels, folder, value, log)
    return search(model, network, value, labels, folder, on_progress)


def _read_folder(path: Path, log: DecisionLog) -> LabelledPictures:
    """The labelled pictures of a folder, and said which: those of `test/` or `val/` where it has such parts."""
    folder = pictures_of_folder(path)
    log.decided(f"labelled pictures: {len(folder):,} of {folder.name}{f', its {folder.part} part' if folder.part != ALL else ''}")
    if folder.skipped:
        log.decided(f"left out: {first_of(folder.skipped, _LISTED)}")
    return folder


def _measured_on(
    folder: LabelledPictures, served: Model, request: Request, log: DecisionLog, on_progress: OnProgress
) -> Scores:  # fmt: skip
    """The first head's scores. Raises UserError for too few right answers, or for a class that is none of its labels."""
    require_labels(folder, served.contract.labels)
    answers = measure(served, folder, on_count=partial(on_progress, f"classifying {folder.name}"))
    if answers.broken:
        log.decided(f"left out: {first_of([f'{folder.path(at)}: {why}' for at, why in answers.broken.items()], _LISTED)}")
    log.passed(gates.check_folder(answers.scores, folder.name, request.minimum_accuracy))
    return answers.scores


def _wrapped(
    source: Source, found: Understood, reference: Reference | None, folder: LabelledPictures | None, request: Request, file: Path,
    log: DecisionLog, on_progress: OnProgress,
) -> tuple[_Candidate, Gate]:  # fmt: skip
    """The wrapped graph in the source's own precision, which answers as the source does, and the gate of its pixels."""
    on_progress("wrapping the graph", 0, 0)
    graph = wrap(found.model, found.network, found.recipe, found.heads, found.batch_items)
    contract = build_contract(
        request.name, source, found.recipe, found.heads, found.source, found.pictures, found.batch_items, request.command
    )
    request.hidden.add_to(graph, contract)  # what the network does not have is refused before the long steps
    served = write_model(graph, contract, file)
    allowed = TOLERANCE[contract.precision]["cpu"]
    log.passed(gates.check_parity(served, found.source, found.heads, found.pixels, allowed))
    pixels = log.passed(check_pixels(reference, request.transform, found.pictures, found.network, found.recipe))
    if reference is not None and reference.outputs is not None:
        log.passed(check_outputs(reference, served, found.heads[0], found.recipe, allowed))
    scores = None if folder is None else _measured_on(folder, served, request, log, on_progress)
    return _Candidate(graph, contract, scores, "the source's own answers"), pixels


def _lowered(
    candidate: _Candidate, found: Understood, folder: LabelledPictures | None, request: Request, scratch: Path, log: DecisionLog,
    on_progress: OnProgress,
) -> _Candidate:  # fmt: skip
    """An fp32 candidate in the precision that is asked for, which answers as well as it."""
    graph, contract, precision = candidate.graph, candidate.contract, request.precision
    if precision == "int8":
        lower, quantization = to_int8(graph, contract, found.recipe, folder, request.max_accuracy_loss, scratch, on_progress)
        log.decided(layers_in_int8(quantization))
    else:
        lower, gate = to_fp16(graph, found.pixels)
        log.passed(gate)
    served = write_model(lower, contract.model_copy(update={"precision": precision, "golden": ()}), scratch / f"{precision}.onnx")
    if precision == "fp16":
        allowed = TOLERANCE["fp16"]["cpu"]
        log.passed(gates.check_parity(served, found.source, found.heads, found.pixels, allowed, "fp16 parity"))
    else:  # single answers may be far off; accuracy is what counts, where it is known
        further = gates.compare_further_heads(served, found.source, found.heads, found.pixels, "int8 further heads")
        if further is not None:
            log.passed(further)
    scores = candidate.scores
    if folder is not None and scores is not None:
        lower_scores = measure(served, folder, on_count=partial(on_progress, f"classifying {folder.name} in {precision}")).scores
        log.passed(gates.check_loss(precision, scores, lower_scores, request.max_accuracy_loss))
        log.passed(gates.check_folder(lower_scores, folder.name, request.minimum_accuracy, f"{precision} accuracy"))
        scores = lower_scores
    return _Candidate(lower, with_own_golden(served, contract), scores, f"this {precision} file's own answers")


def _check_precision(request: Request, source: Source) -> None:
    """Raises UserError unless the precision can be had."""
    found = precision_of(source.model)
    if request.precision == "int8" and found == "fp16":
        raise UserError("--precision int8: the source is fp16, and int8 is made of fp32: import its fp32 file")
    if request.precision == "int8" and found == "fp32" and request.data is None:
        raise UserError("--precision int8 needs --data, labelled pictures on which ranges and layers are chosen")
