"""`export.publish`: a model from Python as a new version in a model repository, by what `convoy import` does."""

import functools
import importlib.metadata
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.convert.hidden_outputs import HiddenOutputs
from export.convert.precision import Precision
from export.data.labelled_pictures import pictures_of_folder
from export.files import temporary_folder
from export.importing import conversion, recipe_values
from export.importing.file_metadata import FileMetadata
from export.importing.labels import labels_in, read_labels_file
from export.importing.network_input import NetworkInput
from export.importing.pipeline import import_model
from export.importing.preprocessor_files import read_preprocessor
from export.importing.presets import PRESETS, preset
from export.importing.recipe import Recipe
from export.importing.recipe_options import RecipeOptions
from export.importing.reference import Reference, served_pixels
from export.importing.request import Request
from export.importing.score_head import Scores as ScoresAsked
from export.importing.source import Source, read_source
from export.importing.transform_pixels import pixels_of_transform
from export.importing.transforms import of_transforms
from export.importing.understanding import tried_pictures
from export.importing.wrapping import prepare
from service.errors import UserError

TRANSFORMS = (
    "accepted are the transform of the evaluation (torchvision, timm, Hugging Face), the name of a preset "
    f"({', '.join(PRESETS)}), a file (preprocessor_config.json, timm's config.json), or the flags of `convoy import` as a dict: "
    f"{recipe_values.ACCEPTED}"
)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)
MODELS = (
    "accepted are a torch.nn.Module, a Keras model, an onnx.ModelProto, or the path of an ONNX file, program.pt2 or model.keras"
)


def publish(
    model: Any,
    *,
    name: str,
    repository: str | Path,
    transforms: Any = None,
    labels: Sequence[str] | Mapping[Any, Any] | str | Path | None = None,
    data: str | Path | None = None,
    minimum_accuracy: float = 0.0,
    input_shape: tuple[int, int] | None = None,
    scores: ScoresAsked = "auto",
    precision: Precision = "fp32",
    explainable: bool = False,
    embeddings: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Publishes a classifier as the next version of a model, if it passes the gates; else nothing is written.

    Args:
        model: a network of PyTorch, a model of Keras, an ONNX model, or the path of a file that `convoy import` takes.
        name: of the model.
        repository: the folder of models; created if it is missing.
        transforms: how pictures were prepared in the evaluation: a transform of torchvision or timm, an image processor of Hugging
            Face, the name of a preset, or the path of a preprocessor file. A transform is also run on real pictures, and its pixels
            must be those that the server makes. For code of your own, a dict with the values of the flags of `convoy import`:
            `scale`, `mean`, `std`, `channels`, `resize`, `filter`, `crop`, `alpha`, ... None takes what the model's file says.
        labels: names of the classes, in the order of the scores; a table of them by number, as `id2label`, or numbers by name, as
            `class_to_idx`; or the path of a file. None takes those of the model, or of the data.
        data: a folder of labelled pictures, `DIR/<class>/*.jpg`, on which the accuracy is measured.
        minimum_accuracy: the fraction of them that must be right.
        input_shape: (height, width) of the network's input, if neither the transforms nor the model say it.
        scores: what the network's numbers are: `logits`, `probabilities`, `log-probabilities`, `sigmoid` (one of two labels is
            true) or `multilabel` (each is true or not). `auto` finds it on real pictures, and refuses what is not clear.
        precision: what the layers compute in; `int8`, for CPUs, is made on the pictures of `data`, and may lose half a point of
            accuracy on them.
        explainable: add what a server needs for class activation maps, to a network that ends in global average pooling.
        embeddings: add what the last linear layer takes, as the output `embedding`.
        say: called with a line for each thing that was decided and each gate.

    Returns:
        The model file in the repository; beside it is the model card.

    Raises:
        UserError: something is missing or cannot be expressed, or a gate failed; the message says what is accepted.
    """
    preparation = _Preparation(transforms)
    request = Request(
        name=name, repository=Path(repository), labels=_labels(labels, model), input_shape=input_shape or preparation.size,
        data=None if data is None else Path(data), minimum_accuracy=minimum_accuracy, scores=scores, precision=precision,
        transform=preparation.pixels if preparation.can_run else None,
        command=f"export.publish({type(model).__name__}, transforms={preparation.name})",
        hidden=HiddenOutputs(explainable, embeddings),
    )  # fmt: skip
    with temporary_folder() as scratch:
        if _is_of(model, "keras"):
            source, reference = _of_keras(model, preparation, request, scratch / "model.onnx")
        elif _is_of(model, "torch") and hasattr(model, "state_dict"):
            source, reference = _of_torch(model, preparation, request, scratch / "model.onnx")
        else:
            source, reference = _read(model, scratch / "model.onnx"), None
        imported = import_model(source, preparation.recipe_of, replace(request, reference=reference), say)
    assert imported.path is not None  # noqa: S101 - it was no dry run
    return imported.path


class _Preparation:
    """How pictures are prepared: what the user gave, and its recipe once the network's input is known."""

    def __init__(self, transforms: Any) -> None:
        self.transforms = transforms
        self.is_named = transforms is None or isinstance(transforms, (str, Path, Recipe, Mapping))
        self.name = repr(str(transforms)) if isinstance(transforms, (str, Path)) else type(transforms).__name__
        self.options = RecipeOptions()
        if isinstance(transforms, Mapping):
            self.name, self.options = repr(dict(transforms)), recipe_values.options_of(transforms)
        elif isinstance(transforms, _FUNCTIONS):
            name = getattr(transforms, "__name__", self.name)
            raise UserError(f"transforms: a function ({name}) cannot be translated; {TRANSFORMS}")
        self.recipe: Recipe | None = None

    @property
    def can_run(self) -> bool:
        """Whether there is a transform, whose pixels can be compared."""
        return not self.is_named

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the crop, if a dict says one."""
        return None if self.options.crop is None else (self.options.crop, self.options.crop)

    def recipe_of(self, network: NetworkInput, found: FileMetadata) -> Recipe:
        """As `pipeline.MakeRecipe`."""
        given = self.transforms
        says_flags = given is None or isinstance(given, Mapping)
        self.recipe = self.options.recipe(network, found) if says_flags else self.recipe_for(network)
        return self.recipe

    def recipe_for(self, network: NetworkInput) -> Recipe:
        """The recipe of what was given. Raises UserError if it is none, or does not fit the network."""
        given, sizes = self.transforms, (network.height, network.width, network.channels)
        if isinstance(given, Recipe):
            return given
        if isinstance(given, Mapping):
            return self.options.recipe(network, FileMetadata())
        if isinstance(given, str) and given in PRESETS:
            return preset(given, *sizes)
        if isinstance(given, (str, Path)):
            if not Path(given).exists():
                raise UserError(f"transforms={str(given)!r}: neither a preset nor a file; {TRANSFORMS}")
            return read_preprocessor(Path(given), *sizes)
        if given is None:
            raise UserError(f"transforms is missing, and the model does not say how pictures are prepared; {TRANSFORMS}")
        return of_transforms(given, network.channels, network.height, network.width)

    def pixels(self, encoded: bytes) -> NDArray[Any]:
        """As `reference.Transform`, once the recipe is made."""
        assert self.recipe is not None  # noqa: S101 - the import makes it first
        return pixels_of_transform(self.transforms, self.recipe)(encoded)


def _of_torch(model: Any, preparation: _Preparation, request: Request, path: Path) -> tuple[Source, Reference]:
    """A network of PyTorch as an ONNX file, and its own answers to the pictures that the file is tried on."""
    from export.importing.torch_network import TorchNetwork, channels_of

    height, width = request.input_shape or (0, 0)
    refusal = None
    for channels in (known,) if (known := channels_of(model)) else (3, 1):
        try:
            taken = NetworkInput("image", np.dtype(np.float32), "nchw", height, width, channels)
            recipe = preparation.recipe_for(taken)
            taken = taken.with_size(recipe.input.height, recipe.input.width)
            network = TorchNetwork(model, taken.height, taken.width, channels)
            reference = _answers("PyTorch", network.scores, taken, recipe, request)
        except UserError as error:
            refusal = refusal or error
            continue
        onnx.save_model(network.to_onnx(), path)
        return _source(path, network.name, f"pytorch {importlib.metadata.version('torch')}"), reference
    assert refusal is not None  # noqa: S101 - there was one for each number of channels
    raise refusal


def _of_keras(model: Any, preparation: _Preparation, request: Request, path: Path) -> tuple[Source, Reference]:
    """A model of Keras as an ONNX file, and its own answers to the pictures that the file is tried on."""
    conversion.keras_to_onnx(model, path, type(model).__name__)
    shape = tuple(model.input_shape)
    if len(shape) != 4:
        raise UserError(f"{type(model).__name__}: it takes {shape}, and (None, height, width, channels) is accepted")
    height, width = request.input_shape or (shape[1] or 0, shape[2] or 0)
    taken = NetworkInput("image", np.dtype(np.float32), "nhwc", height, width, shape[3])
    recipe = preparation.recipe_for(taken)
    taken = taken.with_size(recipe.input.height, recipe.input.width)
    source = _source(path, type(model).__name__, f"keras {importlib.metadata.version('keras')}")
    return source, _answers("Keras", lambda inputs: np.asarray(model.predict_on_batch(inputs)), taken, recipe, request)


def _answers(name: str, run: Callable[[Any], NDArray[Any]], network: NetworkInput, recipe: Recipe, request: Request) -> Reference:
    folder = None if request.data is None else pictures_of_folder(request.data)
    pictures, _ = tried_pictures(folder, recipe.input)
    outputs = run(prepare(served_pixels(pictures, recipe), network, recipe))
    return Reference(name, tuple(pictures), outputs=outputs)


def _read(model: Any, path: Path) -> Source:
    if isinstance(model, (str, Path)):
        return read_source(Path(model))
    if isinstance(model, onnx.ModelProto):
        onnx.save_model(model, path)
        return _source(path, model.graph.name or "onnx.ModelProto", f"{model.producer_name} {model.producer_version}".strip())
    raise UserError(f"{type(model).__name__} is no model; {MODELS}")


def _source(path: Path, name: str, framework: str) -> Source:
    return replace(read_source(path), path=Path(name), framework=framework)


def _labels(labels: Any, model: Any) -> tuple[str, ...] | None:
    if labels is None:
        labels = getattr(getattr(model, "config", None), "id2label", None)  # of Hugging Face
        return None if labels is None else labels_in(labels)
    if isinstance(labels, (str, Path)):
        return read_labels_file(Path(labels))
    found = labels_in(labels) if isinstance(labels, (Sequence, Mapping)) else None  # a set has no order
    if found is None:
        raise UserError(
            "labels: a list of names, a table of them by number or of numbers by name, or the path of a file is accepted"
        )
    return found


def _is_of(model: Any, package: str) -> bool:
    """Whether an object's class, or one that it is derived from, is of a package."""
    return any(kind.__module__.partition(".")[0] == package for kind in type(model).__mro__)
