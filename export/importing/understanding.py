"""Finds out what a graph takes and gives: its input, its scores, their labels, and the batches that it takes.

What is decided is said as it is decided, and kept for the model card.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

from export.data.labelled_pictures import LabelledPictures
from export.importing import gates, onnx_graph, outputs
from export.importing.batching import with_open_batch
from export.importing.file_metadata import FileMetadata, read_metadata, strip_zipmap
from export.importing.gates import Gate
from export.importing.labels import unique
from export.importing.network_input import NetworkInput, bind_size, read_input
from export.importing.pictures import probe_pictures
from export.importing.recipe import Recipe
from export.importing.reference import served_pixels
from export.importing.request import MakeRecipe, Request, Say
from export.importing.score_head import decide
from export.importing.source import Source
from export.importing.source_graph import SourceGraph
from export.importing.wrapping import WrappedHead, raise_versions
from export.progress import OnProgress
from service.errors import UserError
from service.model.contract import PROBABILITIES_NAME
from service.model.input_spec import InputSpec
from service.model.preprocessing import encode_png


@dataclass(frozen=True)
class Understood:
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
class DecisionLog:
    """Says each decision, and keeps it for the model card."""

    say: Say
    decisions: list[str] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)

    def decided(self, line: str) -> None:
        """For what was found out or chosen."""
        self.decisions.append(line)
        self.say(line)

    def passed(self, gate: Gate) -> Gate:
        """For a gate; returns it."""
        self.gates.append(gate)
        self.say(f"{gate.name} gate: {gate.seen}")
        return gate


def understand(
    source: Source,
    make_recipe: MakeRecipe,
    request: Request,
    folder: LabelledPictures | None,
    log: DecisionLog,
    on_progress: OnProgress,
) -> Understood:
    """Reads the source's graph, tries it on pictures, and passes it through the graph gate.

    Args:
        source: what is imported.
        make_recipe: how its pictures are prepared.
        request: what the user asks for.
        folder: labelled pictures, to try it on; None takes others.
        log: of what is decided.
        on_progress: called with each step.

    Raises:
        UserError: something is missing or contradicts something else, or the gate failed.
    """
    on_progress("reading the graph", 0, 0)
    model, metadata, zipmap_labels = read_graph(source)
    network, recipe = _network_and_recipe(model, make_recipe, request, metadata, log)
    bind_size(model, network)
    log.decided(f"input {network.name!r}: {network.describe()}, layout {network.layout}")
    log.decided(f"pixels: {describe_recipe(recipe)}")

    pictures, what = tried_pictures(folder, recipe.input)
    pixels = served_pixels(pictures, recipe)
    log.decided(f"tried on {what}")
    on_progress("running the graph", 0, 0)
    labels = request.labels or metadata.labels or zipmap_labels
    has_own = bool(request.outputs) and request.outputs[0][1] is not None
    if labels is not None and request.labels is None and not has_own:
        log.decided(f"taken from the file: {len(labels)} labels from {metadata.labels_from or 'its ZipMap'}")
    heads = find_heads(model, network, recipe, request, labels, folder, pixels, log)

    values = [wrapped.head.value for wrapped in heads]
    graph = SourceGraph(model, network, recipe, values)
    batch_items = network.batch_items if network.has_batch else 1
    if batch_items:
        model, network, batch_items = _open_batch(model, network, recipe, values, pixels, batch_items, log)
    probed = graph if batch_items else SourceGraph(model, network, recipe, values)
    gate = log.passed(gates.check_graph(model, probed, pixels, batch_items))
    if (blind := gates.check_effect(heads, probed, pixels)) is not None:
        log.passed(blind)
    return Understood(model, network, recipe, heads, graph, batch_items, pictures, pixels, gate)


def read_graph(source: Source) -> tuple[onnx.ModelProto, FileMetadata, tuple[str, ...] | None]:
    """A copy of the source's graph that can be wrapped, what the file says of itself, and the labels of a ZipMap at its end."""
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    zipmap_labels = strip_zipmap(model)
    return raise_versions(model), read_metadata(source), zipmap_labels


def tried_pictures(folder: LabelledPictures | None, spec: InputSpec) -> tuple[list[bytes], str]:
    """As `probe_pictures`; those that are always there have the input's size where pictures are not resized."""
    pictures, what = probe_pictures(folder)
    if folder is None and spec.resize == "none" and spec.crop is None:
        opened = (Image.open(io.BytesIO(picture)).resize((spec.width, spec.height)) for picture in pictures)
        return [encode_png(np.asarray(picture)) for picture in opened], f"{what}, of {spec.height}x{spec.width}"
    return pictures, what


def read_network(model: onnx.ModelProto, request: Request, metadata: FileMetadata, log: DecisionLog | None = None) -> NetworkInput:
    """What the graph takes, its sides from the request or the metadata where they are open; 0 where nothing says them.

    Raises UserError if the request has another side than the graph.
    """
    given = request.input_shape or ((request.crop, request.crop) if request.crop else None)
    network = read_input(model, request.layout, given or metadata.size)
    if given:
        for side, asked, name in zip((network.height, network.width), given, ("height", "width"), strict=True):
            if side and side != asked:
                flag = f"--input-shape {given[0]},{given[1]}" if request.input_shape else f"--crop {request.crop}"
                raise UserError(f"{flag}: the graph takes a {name} of {side}")
    elif metadata.size and log is not None and (network.is_flat or not network.height or not network.width):
        log.decided(f"taken from the file: size {metadata.size[0]}x{metadata.size[1]} from {metadata.size_from}")
    size = given or metadata.size or (0, 0)
    return network.with_size(network.height or size[0], network.width or size[1])


def _network_and_recipe(
    model: onnx.ModelProto, make_recipe: MakeRecipe, request: Request, metadata: FileMetadata, log: DecisionLog
) -> tuple[NetworkInput, Recipe]:
    network = read_network(model, request, metadata, log)
    recipe = make_recipe(network, metadata)
    if not network.height or not network.width:
        network = network.with_size(recipe.input.height, recipe.input.width)
    if network.dtype.kind in "iu" and (recipe.scale != 1.0 or any(recipe.mean) or any(value != 1.0 for value in recipe.std)):
        raise UserError(
            f"the graph takes whole numbers, {network.describe()}: no --scale, --mean or --std but 1, 0 and 1 is accepted"
        )
    return network, recipe


def find_heads(
    model: onnx.ModelProto, network: NetworkInput, recipe: Recipe, request: Request, labels: tuple[str, ...] | None,
    folder: LabelledPictures | None, pixels: NDArray[Any], log: DecisionLog,
) -> tuple[WrappedHead, ...]:  # fmt: skip
    """The heads that were asked for, or the one that is found; what its numbers are is decided on `pixels`."""
    given = find_outputs(model, network, recipe, request, labels, pixels, log)
    names = list(given)
    heads = []
    for at, name in enumerate(names):
        node = onnx_graph.deciding_node(model, name)
        asked = request.scores if at == 0 else "auto"
        head = decide(name, given[name], node.op_type if node is not None else "", asked, request.threshold)
        chosen = next(
            (found for named, found in request.outputs if named == name and found is not None), labels if at == 0 else None
        )
        head = replace(head, labels=head_labels(head.units, head.activation, chosen, folder if at == 0 else None, name, log))
        log.decided(
            f"scores {name!r}: {head.activation} of {head.form} ({'asked for' if asked != 'auto' else 'found'}): {head.reason}"
        )
        heads.append(WrappedHead(head, PROBABILITIES_NAME if at == 0 else f"{name}_probabilities"))
    if request.threshold is not None and all(wrapped.head.threshold is None for wrapped in heads):
        raise UserError(
            f"--threshold {request.threshold:g} is for labels that are each true or not, and those of "
            f"{', '.join(map(repr, names))} are not: --scores multilabel says so"
        )
    return tuple(heads)


def find_outputs(
    model: onnx.ModelProto, network: NetworkInput, recipe: Recipe, request: Request, labels: tuple[str, ...] | None,
    pixels: NDArray[Any], log: DecisionLog,
) -> dict[str, NDArray[Any]]:  # fmt: skip
    """The outputs that hold scores, as asked for or the one that is found, and what each gives for `pixels`, [n,K]."""
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
    return {name: outputs.as_rows(given[name]) for name in names}


def head_labels(
    units: int, activation: str, labels: Sequence[str] | None, folder: LabelledPictures | None, value: str, log: DecisionLog
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
    log: DecisionLog,
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
