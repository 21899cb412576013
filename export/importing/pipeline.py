"""Imports a model: read, understood, wrapped, gated, documented, published.

What is decided is said as it is decided, and is in the model card. Nothing is written to the repository unless every gate passes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from export.convert.contract_builder import source_commit
from export.convert.precision import TOLERANCE, Precision
from export.convert.publish import publish, write_model
from export.evaluation.scores import Scores
from export.files import temporary_folder, write_file
from export.importing import card, gates, onnx_graph, outputs
from export.importing.batching import with_open_batch
from export.importing.file_metadata import FileMetadata, read_metadata, strip_zipmap
from export.importing.gates import Gate
from export.importing.import_contract import build_contract, measured, precision_of
from export.importing.int8 import check_loss, own_golden, to_int8
from export.importing.labels import unique
from export.importing.measurement import measure_folder
from export.importing.network_input import NetworkInput, bind_size, read_input
from export.importing.pictures import LabelledFolder, probe_pictures, read_folder
from export.importing.recipe import Recipe
from export.importing.reference import Reference, Transform, check_outputs, check_pixels, read_reference, served_pixels
from export.importing.score_head import Scores as ScoresAsked
from export.importing.score_head import decide
from export.importing.search import Trial, search
from export.importing.source import Source
from export.importing.source_graph import SourceGraph
from export.importing.wrapping import WrappedHead, raise_versions, wrap
from export.progress import OnProgress, ignore_progress
from service.errors import UserError
from service.model.contract import PROBABILITIES_NAME, Contract, InputSpec
from service.model.repository_layout import MODEL_FILE, check_model_name

MakeRecipe = Callable[[NetworkInput, FileMetadata], Recipe]
"""Says how pictures are prepared for a network, whose sides are 0 where they are open."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What the user asks for.

    Attributes:
        name: of the model.
        repository: the folder of models; created if it is missing.
        labels: of the first head; None takes those of the file, of the data, or numbers.
        outputs: the heads, by the graph's values, each with its labels or None; empty to find the one.
        scores: what the first head's numbers are. The others' are found.
        threshold: of heads whose labels are each true or not.
        layout: `auto`, `nchw` or `nhwc`.
        input_shape: (height, width) where the graph leaves them open.
        data: a folder of labelled pictures.
        minimum_accuracy: the fraction of them that must be right.
        reference: a `.npz` of pictures and what the training made of them, or what is in one.
        transform: what the training made of a picture's bytes, as pixels [H,W,C].
        precision: what the layers compute in.
        max_accuracy_loss: fraction of the pictures that a lower precision may lose.
        dry_run: stop before the repository is written to.
        command: for the contract.
    """

    name: str
    repository: Path
    labels: tuple[str, ...] | None = None
    outputs: tuple[tuple[str, tuple[str, ...] | None], ...] = ()
    scores: ScoresAsked = "auto"
    threshold: float | None = None
    layout: str = "auto"
    input_shape: tuple[int, int] | None = None
    data: Path | None = None
    minimum_accuracy: float = 0.0
    reference: Path | Reference | None = None
    transform: Transform | None = None
    precision: Precision = "fp32"
    max_accuracy_loss: float = 0.005
    dry_run: bool = False
    command: str = ""


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
class _Understood:
    """A graph about which all is known: `model` is ready to be wrapped, `source` runs it as it was."""

    model: onnx.ModelProto
    network: NetworkInput
    recipe: Recipe
    heads: tuple[WrappedHead, ...]
    source: SourceGraph
    batch_items: int
    pictures: list[bytes]
    pixels: NDArray[Any]
    gate: Gate


@dataclass
class _Log:
    """Says each decision, and keeps it for the model card."""

    say: Say
    decisions: list[str] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)

    def decided(self, line: str) -> None:
        self.decisions.append(line)
        self.say(line)

    def passed(self, gate: Gate) -> Gate:
        self.gates.append(gate)
        self.say(f"{gate.name} gate: {gate.seen}")
        return gate


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
    log = _Log(say)
    _check_precision(request, source)
    folder = None if request.data is None else read_folder(request.data, on_progress)
    reference = read_reference(request.reference) if isinstance(request.reference, Path) else request.reference
    found = _understand(source, make_recipe, request, folder, log, on_progress)
    with temporary_folder() as scratch:
        version = scratch / "version"
        version.mkdir()
        file = version / MODEL_FILE
        on_progress("wrapping the graph", 0, 0)
        graph = wrap(found.model, found.network, found.recipe, found.heads, found.batch_items)
        contract = build_contract(
            request.name, source, found.recipe, found.heads, found.source, found.pictures, found.batch_items, request.command
        )
        served = write_model(graph, contract, file)
        log.passed(gates.check_parity(served, found.source, found.heads, found.pixels, TOLERANCE[contract.precision]["cpu"]))
        pixels = log.passed(check_pixels(reference, request.transform, found.pictures, found.network, found.recipe))
        if reference is not None and reference.outputs is not None:
            log.passed(check_outputs(reference, served, found.heads[0], found.recipe, TOLERANCE[contract.precision]["cpu"]))
        scores = None
        if folder is not None:
            scores = measure_folder(served, folder, partial(on_progress, f"classifying {folder.name}"))
            log.passed(gates.check_folder(scores, folder.name, request.minimum_accuracy))
        if request.precision == "int8" and contract.precision != "int8":
            graph, contract, scores = _quantized(graph, contract, found, folder, scores, request, scratch, log, on_progress)
        contract = measured(
            contract, pixels.seen if pixels.proved else "", folder.name if folder else "", folder.digest if folder else "", scores
        )
        served = write_model(graph, contract, file)
        log.passed(Gate("golden", f"{len(contract.golden)} pictures give the source's answers through the code that serves them"))
        write_file(version / card.CARD, card.import_card(served, log.decisions, log.gates, scores, source_commit()).encode())
        if request.dry_run:
            return Imported(None, tuple(log.decisions), tuple(log.gates), scores)
        on_progress("publishing", 0, 0)
        return Imported(publish(version, request.repository, request.name), tuple(log.decisions), tuple(log.gates), scores)


def search_preprocessing(
    source: Source, request: Request, say: Say = ignore_progress, on_progress: OnProgress = ignore_progress
) -> list[Trial]:
    """Tries the usual ways to prepare pictures on the labelled ones of the request, the best first; writes nothing.

    Raises:
        UserError: there are no labelled pictures, or it is not clear which output holds the scores.
    """
    if request.data is None:
        raise UserError("--search-preprocessing needs --data, a folder of labelled pictures")
    log = _Log(say)
    folder = read_folder(request.data, on_progress)
    metadata = read_metadata(source)
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    zipmap_labels = strip_zipmap(model)
    model = raise_versions(model)
    network = read_input(model, request.layout, request.input_shape or metadata.size)
    size = request.input_shape or metadata.size or (0, 0)
    network = network.with_size(network.height or size[0], network.width or size[1])
    if not network.height or not network.width:
        raise UserError("the graph takes images of any size: --input-shape H,W says which")
    bind_size(model, network)
    spec = InputSpec(height=network.height, width=network.width, channels=1 if network.channels == 1 else 3)
    recipe = Recipe(spec, scale=255.0 if network.dtype.kind == "f" else 1.0)
    pixels = served_pixels(probe_pictures(folder)[0], recipe)
    labels = request.labels or metadata.labels or zipmap_labels
    [head, *_] = _find_heads(model, network, recipe, replace(request, outputs=request.outputs[:1]), labels, folder, pixels, log)
    return search(model, network, head.head.value, head.head.labels, folder, on_progress)


def _quantized(
    graph: onnx.ModelProto, contract: Contract, found: _Understood, folder: LabelledFolder | None, scores: Scores | None,
    request: Request, scratch: Path, log: _Log, on_progress: OnProgress,
) -> tuple[onnx.ModelProto, Contract, Scores]:  # fmt: skip
    """The graph and its contract in int8, and their scores on the whole folder, which passed the gate."""
    lower, quantization = to_int8(graph, contract, found.recipe, folder, request.max_accuracy_loss, scratch, on_progress)
    assert folder is not None  # noqa: S101 - to_int8 needs it
    assert scores is not None  # noqa: S101 - likewise
    without_golden = contract.model_copy(update={"precision": "int8", "golden": ()})
    served = write_model(lower, without_golden, scratch / "int8.onnx")
    lower_scores = measure_folder(served, folder, partial(on_progress, f"classifying {folder.name} in int8"))
    log.passed(check_loss(scores, lower_scores, quantization, request.max_accuracy_loss))
    log.passed(gates.check_folder(lower_scores, folder.name, request.minimum_accuracy))
    return lower, own_golden(served, contract, dict(TOLERANCE["int8"])), lower_scores


def _understand(
    source: Source, make_recipe: MakeRecipe, request: Request, folder: LabelledFolder | None, log: _Log, on_progress: OnProgress
) -> _Understood:
    on_progress("reading the graph", 0, 0)
    metadata = read_metadata(source)
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    zipmap_labels = strip_zipmap(model)
    model = raise_versions(model)
    network, recipe = _network_and_recipe(model, make_recipe, request, metadata)
    bind_size(model, network)
    for line in metadata.taken:
        log.decided(f"taken from the file: {line}")
    log.decided(f"input {network.name!r}: {network.describe()}, layout {network.layout}")
    log.decided(f"pixels: {describe_recipe(recipe)}")

    pictures, what = probe_pictures(folder)
    pixels = served_pixels(pictures, recipe)
    log.decided(f"tried on {what}")
    on_progress("running the graph", 0, 0)
    labels = request.labels or metadata.labels or zipmap_labels
    if zipmap_labels is not None and labels is zipmap_labels:
        log.decided(f"taken from the file: {len(zipmap_labels)} labels from its ZipMap")
    heads = _find_heads(model, network, recipe, request, labels, folder, pixels, log)

    values = [wrapped.head.value for wrapped in heads]
    graph = SourceGraph(model, network, recipe, values)
    batch_items = network.batch_items if network.has_batch else 1
    if batch_items:
        model, network, batch_items = _open_batch(model, network, recipe, values, pixels, batch_items, log)
    probed = graph if batch_items else SourceGraph(model, network, recipe, values)
    gate = log.passed(gates.check_graph(model, probed, pixels, batch_items))
    return _Understood(model, network, recipe, heads, graph, batch_items, pictures, pixels, gate)


def _check_precision(request: Request, source: Source) -> None:
    """Raises UserError unless the precision can be had."""
    found = precision_of(source.model)
    if request.precision == "fp16" and found != "fp16":
        raise UserError(
            "--precision fp16: an imported graph keeps the types of its layers; export it in half precision where it was trained, "
            "and import that"
        )
    if request.precision == "int8" and found == "fp16":
        raise UserError("--precision int8: the source is fp16, and int8 is made of fp32: import its fp32 file")
    if request.precision == "int8" and found == "fp32" and request.data is None:
        raise UserError("--precision int8 needs --data, labelled pictures on which ranges and layers are chosen")


def _network_and_recipe(
    model: onnx.ModelProto, make_recipe: MakeRecipe, request: Request, metadata: FileMetadata
) -> tuple[NetworkInput, Recipe]:
    network = read_input(model, request.layout, request.input_shape or metadata.size)
    size = request.input_shape
    for side, asked, name in zip((network.height, network.width), size or (0, 0), ("height", "width"), strict=True):
        if side and asked and side != asked:
            raise UserError(f"--input-shape {size[0]},{size[1]}: the graph takes a {name} of {side}" if size else "")  # noqa: RUF100
    size = size or metadata.size or (0, 0)
    network = network.with_size(network.height or size[0], network.width or size[1])
    recipe = make_recipe(network, metadata)
    if not network.height or not network.width:
        network = network.with_size(recipe.input.height, recipe.input.width)
    if network.dtype.kind in "iu" and (recipe.scale != 1.0 or any(recipe.mean) or any(value != 1.0 for value in recipe.std)):
        raise UserError(
            f"the graph takes whole numbers, {network.describe()}: no --scale, --mean or --std but 1, 0 and 1 is accepted"
        )
    return network, recipe


def _find_heads(
    model: onnx.ModelProto, network: NetworkInput, recipe: Recipe, request: Request, labels: tuple[str, ...] | None,
    folder: LabelledFolder | None, pixels: NDArray[Any], log: _Log,
) -> tuple[WrappedHead, ...]:  # fmt: skip
    """The heads that were asked for, or the one that is found; what its numbers are is decided on `pixels`."""
    names = [name for name, _ in request.outputs]
    known = outputs.known_values(model)
    for name in names:
        if name not in known:
            shown = ", ".join(value.name for value in model.graph.output)
            raise UserError(f"--output {name}: the graph has no such value; its outputs are {shown}")
    if len(set(names)) < len(names):
        raise UserError("--output: the same output twice")
    given = SourceGraph(model, network, recipe, names or [value.name for value in model.graph.output]).run(pixels)
    for name in names:
        outputs.check_output(model, name, given[name])
    if not names:
        name, why = outputs.find_scores(model, given, len(labels) if labels else None)
        names = [name]
        if why:
            log.decided(f"output {name!r}: {why}")
    heads = []
    for at, name in enumerate(names):
        node = onnx_graph.deciding_node(model, name)
        asked = request.scores if at == 0 else "auto"
        head = decide(name, outputs.as_rows(given[name]), node.op_type if node is not None else "", asked, request.threshold)
        chosen = next(
            (found for named, found in request.outputs if named == name and found is not None), labels if at == 0 else None
        )
        head = replace(head, labels=_labels(head.units, head.activation, chosen, folder if at == 0 else None, name, log))
        log.decided(
            f"scores {name!r}: {head.activation} of {head.form} ({'asked for' if asked != 'auto' else 'found'}): {head.reason}"
        )
        heads.append(WrappedHead(head, PROBABILITIES_NAME if at == 0 else f"{name}_probabilities"))
    return tuple(heads)


def _labels(
    units: int, activation: str, labels: Sequence[str] | None, folder: LabelledFolder | None, value: str, log: _Log
) -> tuple[str, ...]:
    """The labels of a head: those that are known, the classes of the data if there are as many, or numbers."""
    classes = 2 if activation == "sigmoid" else units
    if labels is None and folder is not None and len(folder.labels) == classes:
        log.decided(f"labels of {value!r}: the {classes} class folders of {folder.name}, in the order of their names")
        labels = folder.labels
    if labels is None:
        log.decided(f"labels of {value!r}: numbers from 0 to {classes - 1}, as there are no others (--labels FILE)")
        labels = tuple(map(str, range(classes)))
    if len(labels) != classes:
        units_text = "one unit, which tells two classes apart" if activation == "sigmoid" else f"{units} classes"
        raise UserError(f"{len(labels)} labels for the output {value!r}, which has {units_text}: {classes} labels are accepted")
    if len(set(labels)) < len(labels):
        log.decided(f"labels of {value!r}: some are there twice; their numbers are added")
    return unique(labels)


def _open_batch(
    model: onnx.ModelProto,
    network: NetworkInput,
    recipe: Recipe,
    values: list[str],
    pixels: NDArray[Any],
    batch_items: int,
    log: _Log,
) -> tuple[onnx.ModelProto, NetworkInput, int]:
    """The graph for batches of any size where that gives the same, else as it is."""
    opened = with_open_batch(model, network, recipe, values, pixels) if network.has_batch else None
    if opened is None:
        log.decided(f"batches: exactly {batch_items} at a time, as the graph takes no others")
        return model, network, batch_items
    log.decided(f"batches: the graph was made for {batch_items} at a time; it gives the same for any number, and takes it now")
    return opened, replace(network, batch_items=0), 0


def describe_recipe(recipe: Recipe) -> str:
    """What happens to a picture, in words."""
    spec = recipe.input
    steps = [f"{spec.resize} ({spec.filter})" if spec.resize != "none" else "not resized"]
    steps += [f"{spec.crop} crop"] * bool(spec.crop)
    steps += [f"{spec.height}x{spec.width}, {'gray' if spec.channels == 1 else recipe.channel_order}, {spec.dtype}"]
    steps += [f"/ {recipe.scale:g}"] * (recipe.scale != 1.0)
    for name, values, neutral in (("mean", recipe.mean, 0.0), ("std", recipe.std, 1.0)):
        steps += [f"{name} {','.join(f'{value:.6g}' for value in values)}"] * any(value != neutral for value in values)
    return f"{', '.join(steps)}{f' (from {recipe.source})' if recipe.source else ''}"
