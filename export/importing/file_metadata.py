"""What a model file says of itself: labels, size of the images, and how they are normalised.

Exporters write this into an ONNX file's `metadata_props`, each under names of its own; Hugging Face writes it into JSON files
beside the model. Where each thing was found is kept, to be said if it is taken: a flag goes before it.
"""

from dataclasses import dataclass
from pathlib import Path

import onnx

from export.importing import onnx_graph
from export.importing.assembly import numbers
from export.importing.labels import labels_in, read_labels_file, read_literal
from export.importing.source import Source
from service.errors import UserError

_LABELS = ("names", "labels", "classes", "class_names", "class_labels", "label_names", "categories", "id2label", "character")
_SIZES = ("imgsz", "input_size", "image_size", "img_size")
_MEANS = ("mean", "image_mean", "img_mean", "pixel_mean")
_STDS = ("std", "image_std", "img_std", "pixel_std")
_LONGEST_SIDE = 4096
_MAX_UNIT = 2.0
"""Means and deviations up to this are of pixels from 0 to 1, larger ones of pixels from 0 to 255."""


@dataclass(frozen=True)
class FileMetadata:
    """What a file says of itself; what it does not say is None.

    Attributes:
        labels: names of the classes.
        size: (height, width) of the images.
        scale: what pixels are divided by, before `mean` and `std`.
        mean: by channel, after the scale.
        std: likewise.
        ultralytics: whether it is a classifier of Ultralytics, whose preprocessing is known.
        preprocessor: a file beside the model that says how pictures are prepared.
        labels_from: where they were found, for people.
        size_from: likewise.
        normalised_by: where scale, mean and std were found.
    """

    labels: tuple[str, ...] | None = None
    size: tuple[int, int] | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    ultralytics: bool = False
    preprocessor: Path | None = None
    labels_from: str = ""
    size_from: str = ""
    normalised_by: str = ""


def read_metadata(source: Source) -> FileMetadata:
    """What the source says. Raises UserError if it says that it is no classifier."""
    entries = {entry.key.strip().lower(): entry.value for entry in source.model.metadata_props}
    labels, labels_from = _labels(entries, source)
    size, size_from = _size(entries)
    (scale, mean, std), normalised_by = _normalisation(entries)
    ultralytics = "ultralytics" in f"{entries.get('description', '')} {entries.get('author', '')}".lower()
    task = entries.get("task", "")
    if ultralytics and task not in ("", "classify"):
        raise UserError(f"{source.file}: its metadata say that its task is {task!r}: no classifier")
    preprocessor = next((path for path in _beside(source, "preprocessor_config.json") if path.is_file()), None)
    return FileMetadata(labels, size, scale, mean, std, ultralytics, preprocessor, labels_from, size_from, normalised_by)


def strip_zipmap(model: onnx.ModelProto) -> tuple[str, ...] | None:
    """Gives the tensor instead of the list of tables that scikit-learn's converter makes of it, and returns the labels in it."""
    found = None
    computed = onnx_graph.producers(model)
    for output in model.graph.output:
        node = computed.get(output.name)
        if node is not None and node.op_type == "ZipMap":
            names = onnx_graph.attribute(node, "classlabels_strings") or onnx_graph.attribute(node, "classlabels_int64s")
            found = (
                labels_in([name.decode() if isinstance(name, bytes) else name for name in names])
                if isinstance(names, list)
                else None
            )
            output.CopyFrom(onnx.ValueInfoProto(name=node.input[0]))
    if found is not None:
        onnx_graph.prune(model, [output.name for output in model.graph.output])
    return found


def _labels(entries: dict[str, str], source: Source) -> tuple[tuple[str, ...] | None, str]:
    for key in (*_LABELS, "config", "pretrained_cfg"):
        if key in entries and (labels := labels_in(entries[key])) is not None:
            return labels, f"{key!r} in the file"
    for path in _beside(source, "config.json"):
        if not path.is_file():
            continue
        try:
            labels = read_labels_file(path)
        except UserError:  # a file of another program
            continue
        return labels, f"{path.name} beside the file"
    return None, ""


def _beside(source: Source, name: str) -> list[Path]:
    """Where Hugging Face puts a file: beside the model, or in the folder above its `onnx`."""
    folder = source.file.absolute().parent
    return [folder / name, *([folder.parent / name] if folder.name == "onnx" else [])]


def _size(entries: dict[str, str]) -> tuple[tuple[int, int] | None, str]:
    for key in _SIZES:
        value = read_literal(entries.get(key, ""))
        sides = [value, value] if isinstance(value, int) else list(value) if isinstance(value, list | tuple) else []
        if len(sides) == 3 and sides[0] in (1, 3):  # timm: channels, height, width
            sides = sides[1:]
        if len(sides) == 2 and all(isinstance(side, int) and 0 < side <= _LONGEST_SIDE for side in sides):
            return (sides[0], sides[1]), f"{key!r} in the file"
    return None, ""


def _normalisation(
    entries: dict[str, str],
) -> tuple[tuple[float | None, tuple[float, ...] | None, tuple[float, ...] | None], str]:
    """Scale, mean and standard deviation. A mean alone, or a deviation alone, is not taken: the other would be guessed."""
    mean_key, mean = _first_numbers(entries, _MEANS)
    std_key, std = _first_numbers(entries, _STDS)
    if mean is None or std is None:
        return (None, None, None), ""
    scale = 255.0 if max(map(abs, (*mean, *std))) <= _MAX_UNIT else 1.0
    of_pixels = f"of pixels from 0 to {1 if scale == 255.0 else 255}"
    return (scale, mean, std), f"{mean_key!r} and {std_key!r} in the file, {of_pixels}"


def _first_numbers(entries: dict[str, str], keys: tuple[str, ...]) -> tuple[str, tuple[float, ...] | None]:
    return next(((key, found) for key in keys if (found := _numbers(entries.get(key, "")))), ("", None))


def _numbers(text: str) -> tuple[float, ...] | None:
    value = read_literal(text if text.strip()[:1] in ("[", "(") else f"[{text}]")
    if not isinstance(value, list | tuple) or len(value) not in (1, 3):
        return None
    try:
        return numbers("the file", "normalisation", value)
    except UserError:  # no numbers that a network takes
        return None
