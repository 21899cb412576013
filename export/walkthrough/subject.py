"""The model that a walkthrough shows, as `--model` names it: an ONNX file or the folder of a training run.

The contract of a Convoy file says what image the model takes. For a file without a contract the graph gives size and layout, and
the user the range of the pixel values (`pixel_scaling`). A run is converted to ONNX in memory, without a temperature, and with its
batch norms, which an exported file has folded into other layers.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from export.inspection.model_file import read_contract, read_model
from export.walkthrough.pixel_scaling import PixelScaling, scale_pixels
from service.errors import InvalidModel, UserError
from service.model import model_files
from service.model.contract import INPUT_NAME, LOGITS_NAME, PROBABILITIES_NAME, Contract
from service.model.cpus import cpu_budget
from service.model.declared import Declared
from service.model.file_labels import labels_in_metadata
from service.model.inferred_signature import choose_scores, is_vector
from service.model.input_spec import InputSpec
from service.model.repository_layout import LABELS_FILE, MODEL_FILE, read_labels
from service.model.scores import is_distribution
from service.model.session import OpenGraph
from service.model.signature import TensorSpec

if TYPE_CHECKING:
    from export.training.checkpoint import Checkpoint

_CHECKPOINT = "checkpoint.pt"
_FREE_SIDE = 224  # for a graph that takes any size: the most common one
_MAX_BATCH_ITEMS = 64
_BATCH_BYTES = 1 << 24
_ACTIVATION_FACTOR = 100  # bytes of feature maps for each byte of the image, roughly
_MAX_MODEL_BYTES = 1 << 31  # of a protobuf message
_DTYPES: dict[int, type[np.generic]] = {
    TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.UINT8: np.uint8,
}  # fmt: skip


class SubjectHead(NamedTuple):
    """One of several answers of a model: its name, the graph's outputs that hold it, and its labels, empty if unknown."""

    name: str
    outputs: tuple[str, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subject:
    """A model to walk through. `layout`, `dtype`, `scaling` and `one_by_one` differ from the defaults only without a contract.

    Attributes:
        name: for the page.
        model: the graph with all its weights.
        spec: the image that it takes.
        labels: names of the K classes; empty if unknown.
        file_labels: those in the metadata of a file without a contract; used if there are no others and they are K.
        facts: for the page, by name.
        has_contract: whether Convoy exported the graph.
        layout: of the graph's input.
        dtype: of the graph's input.
        scaling: range of the pixel values if the input is float.
        one_by_one: whether the graph takes batches of exactly one image.
        checkpoint: of a run.
        activation: of the contract's first head, as there.
        heads: its answers; of a file without a contract each output.
        trained_parameters: elements of the trained network's weights; None if unknown.
    """

    name: str
    model: onnx.ModelProto
    spec: InputSpec
    labels: tuple[str, ...]
    facts: dict[str, str]
    has_contract: bool = True
    layout: Literal["NHWC", "NCHW"] = "NHWC"
    dtype: type[np.generic] = np.uint8
    scaling: PixelScaling = "0..1"
    one_by_one: bool = False
    checkpoint: "Checkpoint | None" = None
    activation: Literal["softmax", "sigmoid", "multilabel"] = "softmax"
    file_labels: tuple[str, ...] = ()
    heads: tuple[SubjectHead, ...] = ()
    trained_parameters: int | None = None

    @property
    def assumed(self) -> str:
        """What is assumed of a file without a contract; empty for others."""
        if self.has_contract:
            return ""
        spec = self.spec
        values = "as they are" if self.dtype == np.uint8 else f"scaled to {self.scaling}"
        colours = "gray" if spec.channels == 1 else "red, green, blue"
        scaling = "" if self.dtype == np.uint8 else " (--scaling)"
        return (
            "nothing in the file says how a picture becomes its input: assumed are a picture stretched to "
            f"{spec.height}x{spec.width}, {colours}, its values {values}{scaling}. If training did it otherwise, the answer means "
            "little; `convoy import` makes a file that says it"
        )

    def feed(self, pixels: NDArray[np.generic]) -> NDArray[np.generic]:
        """The graph's input for pixels [n,H,W,C], of the dtype of `spec`."""
        images: NDArray[np.generic] = pixels
        if self.dtype != np.uint8:
            images = scale_pixels(pixels.astype(np.uint8), self.scaling).astype(self.dtype)
        return np.ascontiguousarray(images if self.layout == "NHWC" else images.transpose(0, 3, 1, 2))

    def scores_name(self, outputs: Mapping[str, NDArray[np.generic]]) -> str:
        """Which of the graph's outputs holds the scores, as a server chooses it.

        Raises:
            UserError: without a contract, nothing tells which it is, or there is none of two classes.
        """
        if self.has_contract:
            return LOGITS_NAME
        arrays = {name: array for name, array in outputs.items() if isinstance(array, np.ndarray) and array.ndim > 0}
        specs = [TensorSpec(name, array.dtype, array.shape[1:]) for name, array in arrays.items()]
        trials = {spec.name: [arrays[spec.name].reshape(len(arrays[spec.name]), -1)] for spec in specs if is_vector(spec)}
        if not trials:
            given = ", ".join(f"{spec.name} ({spec})" for spec in specs) or "no tensors of numbers"
            raise UserError(f"{self.name}: it gives {given}; expected one float output with a score for each class")
        try:
            return choose_scores(specs, trials, Declared(), self.labels or self.file_labels).name
        except InvalidModel as error:
            raise UserError(f"{self.name}: {error}") from None

    def logits(self, outputs: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        """Logits float32[n,K] from the graph's outputs; of probabilities, their logarithms.

        Raises:
            UserError: without a contract, no output is known to hold scores of two classes or more.
        """
        name = self.scores_name(outputs)
        scores = outputs[name].astype(np.float32).reshape(len(outputs[name]), -1)
        if self.has_contract:
            return scores
        if scores.shape[1] == 1:  # one number, of the second of two labels
            within = ((scores >= 0) & (scores <= 1)).all()
            second = scores if within else 1 / (1 + np.exp(-scores))
            scores = np.concatenate([1 - second, second], axis=1)
        if is_distribution(scores):
            scores = np.log(np.maximum(scores, 1e-7)).astype(np.float32)
        return scores

    def probabilities(self, outputs: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float64]:
        """Probabilities float64[n,K]: the file's own, which are served; without a contract, the softmax of the logits.

        Raises:
            UserError: as `logits`.
        """
        if self.has_contract:
            return np.asarray(outputs[PROBABILITIES_NAME], np.float64)
        values = self.logits(outputs).astype(np.float64)
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


class SubjectSession:
    """An ONNX Runtime session of a subject's graph."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._graph = OpenGraph(subject.model.SerializeToString(), cpu_budget())

    def logits(self, pixels: NDArray[np.generic]) -> Iterator[NDArray[np.float32]]:
        """Logits float32[n,K] of pixels [N,H,W,C], batch after batch. Raises LoadError if the graph fails."""
        fitting = _BATCH_BYTES // (_ACTIVATION_FACTOR * self._subject.spec.size_bytes)
        items = 1 if self._subject.one_by_one else max(1, min(_MAX_BATCH_ITEMS, fitting))
        for start in range(0, len(pixels), items):
            yield self._subject.logits(self._run(pixels[start : start + items]))

    def probabilities(self, image: NDArray[np.generic]) -> NDArray[np.float64]:
        """Probabilities float64[K] of one image [H,W,C]. Raises LoadError if the graph fails."""
        return np.asarray(self._subject.probabilities(self._run(image[np.newaxis]))[0])

    def _run(self, pixels: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
        return self._graph.run(self._subject.feed(pixels))


def load_subject(path: Path, scaling: PixelScaling | None = None) -> Subject:
    """Loads an ONNX file, the folder of a version, the folder of a run, or its checkpoint.

    Args:
        path: the value of `--model`.
        scaling: for files without a contract only; "0..1" if not given.

    Raises:
        UserError: there is no such file, it is no classifier of images, or `scaling` is given for a model of Convoy.
        InvalidModel: the file's contract is not valid, or a file of its weights is missing or too short.
    """
    if path.name == _CHECKPOINT or (path / _CHECKPOINT).is_file():
        _refuse_scaling(scaling, path)
        return _from_run(path.parent if path.name == _CHECKPOINT else path)
    if path.is_dir():
        if not (path / MODEL_FILE).is_file():
            raise UserError(f"--model {str(path)!r}: the folder holds neither {MODEL_FILE} nor {_CHECKPOINT}")
        path = path / MODEL_FILE
    _, model = read_model(path)
    contract = read_contract(path, model)
    model = _with_external_weights(path, model)
    if contract is None:
        return _without_contract(path, model, scaling or "0..1")
    _refuse_scaling(scaling, path)
    return _with_contract(path, model, contract)


def _refuse_scaling(scaling: PixelScaling | None, path: Path) -> None:
    if scaling is not None:
        raise UserError(f"--scaling is for ONNX files that Convoy did not write; {path} normalises its images itself")


def _from_run(run: Path) -> Subject:
    if importlib.util.find_spec("torch") is None:
        raise UserError("a run needs PyTorch: install Convoy with the extra 'export'")
    from export.convert.onnx_conversion import to_onnx
    from export.networks import architectures
    from export.training.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(run)
    facts = {
        "network": architectures.shown(checkpoint.settings.network),
        "trained on": f"{checkpoint.data}, epoch {checkpoint.epoch} of {checkpoint.settings.epochs}",
    }
    return Subject(
        checkpoint.data, to_onnx(checkpoint, keep_norms=True), checkpoint.input, checkpoint.labels, facts,
        checkpoint=checkpoint, activation=architectures.activation(checkpoint.network),
        trained_parameters=sum(weights.numel() for weights in checkpoint.network.parameters()),
    )  # fmt: skip


def _with_contract(path: Path, model: onnx.ModelProto, contract: Contract) -> Subject:
    given, needed = {output.name for output in model.graph.output}, {PROBABILITIES_NAME, LOGITS_NAME}
    if [value.name for value in model.graph.input] != [INPUT_NAME] or not needed <= given:
        raise UserError(
            f"{path}: the graph does not match its contract: it must take {INPUT_NAME!r} and give {PROBABILITIES_NAME!r} and "
            f"{LOGITS_NAME!r}"
        )
    measured = contract.measured
    facts = {
        "accuracy": "not measured" if measured.accuracy is None else f"{measured.accuracy:.2%} of the test pictures",
        "precision": contract.precision,
    }
    if training := contract.training:
        facts = {"network": training.network, "trained on": f"{training.data}, {training.epochs} epochs"} | facts
    if origin := contract.origin:
        facts = {"imported from": origin.source} | ({"written by": origin.framework} if origin.framework else {}) | facts
    first = contract.heads[0].output
    heads = [
        SubjectHead(head.name, (head.output, LOGITS_NAME)[: 1 + (head.output == first)], head.labels) for head in contract.heads
    ]
    return Subject(
        contract.name, model, contract.input, contract.labels, facts,
        activation=contract.heads[0].activation, heads=tuple(heads),
        trained_parameters=contract.training.parameters if contract.training else None,
    )  # fmt: skip


def _without_contract(path: Path, model: onnx.ModelProto, scaling: PixelScaling) -> Subject:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) < len(model.graph.input):  # files before IR 4 list the weights, too
        kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in inputs]
        del model.graph.input[:]
        model.graph.input.extend(kept)
        inputs = list(model.graph.input)
        model.ir_version = max(model.ir_version, 4)
    if len(inputs) != 1:
        raise UserError(f"{path}: the model takes {len(inputs)} inputs; a walkthrough needs a model that takes one image")
    layout, sides = _layout(path, inputs[0])
    height, width, channels = sides[2:] + sides[1:2] if layout == "NCHW" else sides[1:]
    try:
        spec = InputSpec(height=height or _FREE_SIDE, width=width or _FREE_SIDE, channels=channels)
    except ValueError:
        raise UserError(f"{path}: the model takes images of {height}x{width}; at most 4096x4096 are accepted") from None
    if scaling == "imagenet" and channels == 1:
        raise UserError(f"{path}: --scaling imagenet is for colour, and the model takes gray images")
    dtype = _DTYPES[inputs[0].type.tensor_type.elem_type]
    facts = {"contract": "none: Convoy did not write this file", "input": f"{np.dtype(dtype)} {_shown(sides)}"}
    if dtype != np.uint8:
        facts["pixels"] = f"scaled to {scaling}" + ("" if scaling == "imagenet" else " (--scaling says otherwise)")
    return Subject(
        path.stem, model, spec, _labels(path), facts,
        has_contract=False, layout=layout, dtype=dtype, scaling=scaling, one_by_one=sides[0] == 1,
        file_labels=labels_in_metadata({entry.key: entry.value for entry in model.metadata_props}),
        heads=tuple(SubjectHead(output.name, (output.name,)) for output in model.graph.output),
    )  # fmt: skip


def _layout(path: Path, value: onnx.ValueInfoProto) -> tuple[Literal["NHWC", "NCHW"], list[int]]:
    """The layout of an input of images and its four sides, 0 for a free one. Raises UserError for any other input."""
    tensor = value.type.tensor_type
    sides = [max(dimension.dim_value, 0) for dimension in tensor.shape.dim]  # Paddle writes -1 for one that is free
    if tensor.elem_type not in _DTYPES or len(sides) != 4 or not (sides[1] in (1, 3) or sides[3] in (1, 3)):
        kind = TensorProto.DataType.Name(tensor.elem_type).lower()
        raise UserError(
            f"{path}: the model takes {value.name!r}, {kind} {_shown(sides)}; a walkthrough needs images [N,C,H,W] or "
            "[N,H,W,C] of 1 or 3 channels, float or uint8"
        )
    if sides[0] > 1:
        raise UserError(f"{path}: the model takes batches of exactly {sides[0]}; a walkthrough needs batches of 1 or of any size")
    return "NCHW" if sides[1] in (1, 3) else "NHWC", sides


def _shown(sides: list[int]) -> str:
    return f"[{', '.join(str(side or 'N') for side in sides)}]"


def _with_external_weights(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    content = model_files.read_model(path, inline=True)
    if content.weights:
        model = onnx.load_model_from_string(content.graph)
    if model.ByteSize() >= _MAX_MODEL_BYTES:
        raise UserError(f"{path}: a walkthrough takes models below 2 GiB")
    return model


def _labels(path: Path) -> tuple[str, ...]:
    """The lines of `labels.txt` beside the file or, as in a repository, beside the folder of the version."""
    for folder in (path.parent, path.parent.parent):
        try:
            labels = read_labels(folder / LABELS_FILE)
        except InvalidModel as error:
            raise UserError(f"{folder}: {error}") from None
        if labels is not None:
            return labels
    return ()
